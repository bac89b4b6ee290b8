"""Near-duplicate texts: MinHash proposes pairs, the exact Jaccard index of their character shingles decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

_SHINGLE, _PERMUTATIONS, _ROWS, _SEED = 3, 128, 4, 1


def near_duplicates(texts: Sequence[str], threshold: float = 0.9) -> list[tuple[int, int]]:
    """Pairs of indices (i < j) whose texts resemble each other: Jaccard index of shingles of at least `threshold`."""
    from rensa import RMinHash

    shingles = [_shingles(text) for text in texts]
    digests = RMinHash.digests_from_token_sets([list(tokens) for tokens in shingles], _PERMUTATIONS, _SEED)
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        for band in range(0, _PERMUTATIONS, _ROWS):
            buckets[band, *digest[band : band + _ROWS]].append(index)
    candidates = {pair for members in buckets.values() for pair in combinations(members, 2)}
    return sorted(pair for pair in candidates if _jaccard(shingles[pair[0]], shingles[pair[1]]) >= threshold)


def _shingles(text: str) -> set[str]:
    folded = "".join(text.casefold().split())
    return {folded[start : start + _SHINGLE] for start in range(max(1, len(folded) - _SHINGLE + 1))}


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)
