"""Which texts are equal or nearly equal, found without comparing each with each.

Of a text there are three fingerprints: a hash of it, a hash of its folded form, and MinHash in bands. Texts that share
a band are candidates, and each pair of these is verified by its shingles. Fingerprints are all that is held of a
corpus.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

from spantune.core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Hashes = NDArray[np.uint64]
    Rows = NDArray[np.int64]

THRESHOLD = 0.9

_HASHES = 128
_SKETCH = 64  # values of MinHash of which a byte is kept
_RECALL = 0.9995
_DIGITS = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
_WIDE = "\u2e80"  # the first character of the scripts in which a character counts for about three letters
_NARROW_SHINGLE, _WIDE_SHINGLE = 4, 2  # characters
_BATCH = 1 << 18  # characters whose shingles are hashed together, or pairs whose sketches are compared


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The fingerprints of `n` texts.

    Args:
        texts: hashes of the texts, (n, 2).
        keys: hashes of their keys, (n, 2).
        bands: hashes of the bands of MinHash, (n, bands).
        sketches: a byte of each of the first values of MinHash, (n, 64).
        threshold: the similarity from which on they find texts.
    """

    texts: Hashes
    keys: Hashes
    bands: Hashes
    sketches: Bytes
    threshold: float

    @classmethod
    def of(cls, texts: Sequence[str], threshold: float = THRESHOLD) -> Fingerprints:
        """Compute the fingerprints by which texts are found that are similar from `threshold` on.

        Raises:
            ConfigError: `threshold` is not a share above 0.
        """
        import numpy as np

        bands = band_count(threshold)
        keys = [key_of(text) for text in texts]
        values = np.concatenate([np.empty((0, _HASHES), np.uint32), *map(_min_hashes, _batches(keys))])
        sketches = values[:, :_SKETCH].astype(np.uint8)
        return cls(hashed(texts), hashed(keys), _banded(values, bands), sketches, threshold)

    @classmethod
    def joined(cls, parts: Iterable[Fingerprints], threshold: float = THRESHOLD) -> Fingerprints:
        """Return the fingerprints of all texts of `parts`, in their order."""
        import numpy as np

        all_parts = list(parts) or [cls.of((), threshold)]
        if len(all_parts) == 1:
            return all_parts[0]
        return cls(
            np.concatenate([part.texts for part in all_parts]),
            np.concatenate([part.keys for part in all_parts]),
            np.concatenate([part.bands for part in all_parts]),
            np.concatenate([part.sketches for part in all_parts]),
            threshold,
        )

    def like(self) -> Likeness:
        """Return which of the texts are equal, and which may be similar."""
        import numpy as np

        first_of = first_equal(self.texts)
        distinct = np.flatnonzero(first_of == np.arange(len(first_of)))
        first_key = first_equal(self.keys[distinct])
        is_first = first_key == np.arange(len(distinct))
        folded = np.stack([distinct[first_key[~is_first]], distinct[~is_first]], axis=1)
        firsts = distinct[is_first]
        return Likeness(first_of, folded, self._promising(firsts[_candidates(self.bands[firsts])]))

    def _promising(self, pairs: Rows) -> Rows:
        """Return the pairs of rows whose sketches agree about as often as those of similar texts.

        The share of values that agree is an estimate of the similarity; one that is six standard deviations below the
        threshold does not come from similar texts.
        """
        import numpy as np

        share = self.threshold
        fewest = _SKETCH * share - 6 * (_SKETCH * share * (1 - share)) ** 0.5
        kept = [np.empty((0, 2), dtype=np.int64)]
        for begin in range(0, len(pairs), _BATCH):
            chunk = pairs[begin : begin + _BATCH]
            agreeing = (self.sketches[chunk[:, 0]] == self.sketches[chunk[:, 1]]).sum(axis=1)
            kept.append(chunk[agreeing >= fewest])
        return np.concatenate(kept)


@dataclass(frozen=True, slots=True)
class Likeness:
    """Which rows belong together.

    Args:
        first_of: for each row the first row with the same text.
        folded: the pairs (earlier, later) of rows whose texts differ, but not when folded; of many the earlier is the
            first.
        candidates: the pairs (earlier, later) of rows that share a band; each is still to be verified.

    Only the first row of a text is in a pair.
    """

    first_of: Rows
    folded: Rows
    candidates: Rows


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of positions in `texts` whose Jaccard similarity is `threshold` or more, in order.

    Of texts that are equal after `fold`, each is paired with the first only, and only the first with other texts. So
    the connected pairs are the groups of near-duplicates, and many repetitions give few pairs. Texts that consist of
    numbers after `fold` are compared unfolded.

    Raises:
        ConfigError: `threshold` is not a share above 0.
    """
    prints = Fingerprints.of(texts, threshold)
    likeness = replace(prints, texts=prints.keys).like()
    pairs = [(int(first), row) for row, first in enumerate(likeness.first_of) if first != row]
    rows = {row for pair in likeness.candidates.tolist() for row in pair}
    shingles = {row: shingles_of(key_of(texts[row])) for row in rows}
    for earlier, later in likeness.candidates.tolist():
        if are_similar(shingles[earlier], shingles[later], threshold):
            pairs.append((earlier, later))
    return sorted(pairs)


def key_of(text: str) -> str:
    """Return what texts are compared by: `text` folded, or as it is if it consists of numbers after that."""
    folded = fold(text)
    return folded if folded.strip("0") else text


def fold(text: str) -> str:
    """Return `text` without case, compatibility forms, numbers, white space and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub("", _DIGITS.sub("0", plain))


def shingles_of(text: str) -> set[str]:
    """Return the substring at each character: two characters from an ideograph on, else four."""
    return {
        text[place : place + (_WIDE_SHINGLE if character >= _WIDE else _NARROW_SHINGLE)]
        for place, character in enumerate(text)
    }


def are_similar(one: set[str], other: set[str], threshold: float) -> bool:
    """Whether the Jaccard index of two sets of shingles is `threshold` or more."""
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared)


def band_count(threshold: float) -> int:
    """Return the fewest bands, and so candidates, that find a pair at `threshold` with `_RECALL`.

    Raises:
        ConfigError: `threshold` is not a share above 0.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the similarity threshold is {threshold}; expected a share above 0, and 1 at the most")
    return next(
        bands
        for bands in (8, 16, 32, 64, _HASHES)
        if bands == _HASHES or 1 - (1 - threshold ** (_HASHES // bands)) ** bands >= _RECALL
    )


def hashed(texts: Iterable[str]) -> Hashes:
    """Return a hash of 128 bits of each text: (n, 2)."""
    import numpy as np

    digests = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def first_equal(hashes: Hashes) -> Rows:
    """Return for each row of `hashes`, (n, 2), the first row that is equal to it: (n,)."""
    import numpy as np

    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable, so that the first of equal rows comes first
    ordered = hashes[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[is_new][np.cumsum(is_new) - 1]
    return firsts


def _candidates(bands: Hashes) -> Rows:
    """Return the pairs (i, j), i < j, of rows that have the same hash in a band, in order: (pairs, 2)."""
    import numpy as np

    found = [np.empty(0, dtype=np.int64)]
    rows = len(bands)
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        ends = np.flatnonzero(np.append(column[order][1:] != column[order][:-1], True)) + 1
        begins = np.concatenate([[0], ends[:-1]])
        for begin, end in zip(begins[ends - begins > 1], ends[ends - begins > 1], strict=True):
            run = order[begin:end]
            earlier, later = np.triu_indices(len(run), 1)
            found.append(run[earlier] * rows + run[later])
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs // max(rows, 1), pairs % max(rows, 1)], axis=1)


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield stretches of `keys` of some `_BATCH` characters."""
    begin = characters = 0
    for place, key in enumerate(keys):
        characters += len(key)
        if characters > _BATCH:
            yield keys[begin : place + 1]
            begin, characters = place + 1, 0
    if begin < len(keys):
        yield keys[begin:]


def _min_hashes(keys: Sequence[str]) -> NDArray[np.uint32]:
    """Return the MinHash of the shingles of each of `keys`: (n, 128)."""
    import numpy as np
    from rensa import RMinHash

    offsets = np.zeros(len(keys) + 1, dtype=np.uint64)
    np.cumsum([len(key) for key in keys], out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(_shingle_hashes(keys), offsets, _HASHES, 1)
    values = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint32, count=len(keys) * _HASHES)
    return values.reshape(len(keys), _HASHES)


def _banded(values: NDArray[np.uint32], bands: int) -> Hashes:
    """Return a hash of each band of `values`, (n, 128), the values that stand beside each other: (n, bands)."""
    import numpy as np

    result = np.zeros((len(values), bands), dtype=np.uint64)
    for value in np.moveaxis(values.reshape(len(values), bands, _HASHES // bands), 2, 0):
        result = _mixed(result ^ value)
    return result


def _shingle_hashes(keys: Sequence[str]) -> Hashes:
    """Return the hash of the shingle at each character of each key, one key behind the other."""
    import numpy as np

    gap = _NARROW_SHINGLE - 1  # zeros behind each key, so that no shingle reaches into the next one
    codes = np.frombuffer(("\0" * gap).join([*keys, ""]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = codes.astype(np.uint64)
    lengths = np.array([len(key) for key in keys], dtype=np.int64)
    places = np.arange(lengths.sum()) + np.repeat(np.arange(len(keys)) * gap, lengths)
    first, second = codes[places], codes[places + 1]
    rest = codes[places + 2] | codes[places + 3] << np.uint64(32)
    rest[first >= ord(_WIDE)] = 0
    return _mixed(_mixed(first | second << np.uint64(32)) ^ rest)


def _mixed(values: Hashes) -> Hashes:
    """Mix the bits of 64-bit values, as splitmix64 does."""
    import numpy as np

    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
