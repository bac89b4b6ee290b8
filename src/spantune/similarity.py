"""Texts that are nearly the same: candidates by MinHash, each verified by exact Jaccard similarity.

Texts are compared folded: NFKC, case folded, a run of digits as one, and neither white space nor punctuation, since a
sentence that differs in a dose or a date teaches the same spans. The trade-off: hashing makes it fast (15,000 sentences
in half a second) and may overlook one pair in two thousand that lies just at the threshold; no pair is made up. It
knows nothing of meaning: a paraphrase is another text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from spantune.errors import ConfigError

THRESHOLD = 0.9

_HASHES = 128
_RECALL = 0.9995
_DIGITS = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
_WIDE = "\u2e80"  # where the scripts begin of which a character says about as much as three letters


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of positions in `texts` whose Jaccard similarity is `threshold` or more, in order.

    Of texts that are equal when folded, each is paired with the first only, and only the first with others: the
    connected pairs are the groups of near-duplicates, and many repetitions stay few pairs. Texts that folding leaves
    nothing of but numbers are compared as they are.

    Raises:
        ConfigError: `threshold` is not a share above 0.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the similarity threshold is {threshold}; expected a share above 0, and 1 at the most")
    firsts: dict[str, int] = {}
    pairs = []
    for place, text in enumerate(texts):
        folded = fold(text)
        first = firsts.setdefault(folded if folded.strip("0") else text, place)
        if first != place:
            pairs.append((first, place))
    places = list(firsts.values())
    pairs += [(places[i], places[j]) for i, j in _similar(list(firsts), threshold)]
    return sorted(pairs)


def fold(text: str) -> str:
    """`text` without what makes no difference: case, compatibility forms, numbers, white space and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub("", _DIGITS.sub("0", plain))


def _similar(folded: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of texts that differ and are similar enough."""
    from rensa import RMinHash, RMinHashLSH

    shingles = [_shingles(text) for text in folded]
    hashes = RMinHash.from_token_sets([list(found) for found in shingles], num_perm=_HASHES, seed=1)
    index = RMinHashLSH(threshold, _HASHES, _bands(threshold))
    pairs = []
    for place, (mine, its_hash) in enumerate(zip(shingles, hashes, strict=True)):
        for earlier in index.query(its_hash):
            shared = len(mine & shingles[earlier])
            if shared >= threshold * (len(mine) + len(shingles[earlier]) - shared):
                pairs.append((earlier, place))
        index.insert(place, its_hash)
    return pairs


def _shingles(text: str) -> set[str]:
    """The pieces that begin at each character: two ideographs, or four letters, which say about as much."""
    return {text[place : place + (2 if sign >= _WIDE else 4)] for place, sign in enumerate(text)}


def _bands(threshold: float) -> int:
    """The fewest bands of the index, so the fewest candidates, that find a pair at `threshold` with `_RECALL`."""
    return next(
        bands
        for bands in (8, 16, 32, 64, _HASHES)
        if bands == _HASHES or 1 - (1 - threshold ** (_HASHES // bands)) ** bands >= _RECALL
    )
