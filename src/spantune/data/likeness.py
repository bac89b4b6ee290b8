"""Find texts that are equal or nearly equal, without comparing each text with each other one.

Each text has three fingerprints: a hash of the text, a hash of its folded form, and its MinHash values (Broder, On the
resemblance and containment of documents, 1997), which are hashed in bands. Texts that share a band are candidates; the
shingles of each pair of candidates are then compared. Only the fingerprints of a corpus are kept in memory.
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
_SKETCH = 64  # the number of MinHash values of which one byte each is kept
_RECALL = 0.9995  # the probability that two texts with a similarity of exactly the threshold share a band
_DIGITS = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
_WIDE = "\u2e80"  # from this character on: scripts in which a character counts for about three letters
_NARROW_SHINGLE, _WIDE_SHINGLE = 4, 2  # characters of a shingle
_BATCH = 1 << 18  # characters whose shingles are hashed together
_FEW = 256  # the most texts of a band whose pairs are compared in one array


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The fingerprints of `n` texts.

    Args:
        texts: hashes of the texts, (n, 2) of uint64.
        keys: hashes of the folded texts (see `key_of`), (n, 2) of uint64.
        bands: hashes of the bands of MinHash values, (n, bands) of uint64.
        sketches: one byte of each of the first MinHash values, (n, 64) of uint8.
        threshold: the Jaccard similarity from which pairs of texts are found.
    """

    texts: Hashes
    keys: Hashes
    bands: Hashes
    sketches: Bytes
    threshold: float

    @classmethod
    def of(cls, texts: Sequence[str], threshold: float = THRESHOLD) -> Fingerprints:
        """Compute the fingerprints of `texts`, which find the pairs with a similarity of `threshold` or more.

        Raises:
            ConfigError: `threshold` is not in (0, 1].
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
        """Return which of the texts are equal, equal when folded, or candidates for near-duplicates."""
        import numpy as np

        first_of = first_equal(self.texts)
        distinct = np.flatnonzero(first_of == np.arange(len(first_of)))
        first_key = first_equal(self.keys[distinct])
        is_first = first_key == np.arange(len(distinct))
        folded = np.stack([distinct[first_key[~is_first]], distinct[~is_first]], axis=1)
        firsts = distinct[is_first]
        return Likeness(first_of, folded, self._candidates(firsts))

    def _candidates(self, rows: Rows) -> Rows:
        """Return the pairs of `rows` that share a band and have similar sketches, sorted: (pairs, 2)."""
        import numpy as np

        found = [np.empty((0, 2), dtype=np.int64)]
        for number in range(self.bands.shape[1]):
            band = self.bands[rows, number]
            order = np.argsort(band, kind="stable")
            ordered = rows[order]
            ends = np.flatnonzero(np.append(band[order][1:] != band[order][:-1], True)) + 1
            begins = np.concatenate([[0], ends[:-1]])
            twos = begins[ends - begins == 2]
            found.append(self._promising(np.stack([ordered[twos], ordered[twos + 1]], axis=1)))
            is_long = ends - begins > 2
            for begin, end in zip(begins[is_long], ends[is_long], strict=True):
                found += [self._promising(pairs) for pairs in _pairs_of(ordered[begin:end])]
        count = max(len(self.texts), 1)
        pairs = np.concatenate(found)
        numbers = np.unique(pairs[:, 0] * count + pairs[:, 1])
        return np.stack([numbers // count, numbers % count], axis=1)

    def _promising(self, pairs: Rows) -> Rows:
        """Return the pairs of rows whose sketches agree about as often as those of similar texts.

        The share of equal values estimates the similarity. A pair is left out if its share is more than six standard
        deviations below the threshold: similar texts practically never have such a share.
        """
        share = self.threshold
        fewest = _SKETCH * share - 6 * (_SKETCH * share * (1 - share)) ** 0.5
        agreeing = (self.sketches[pairs[:, 0]] == self.sketches[pairs[:, 1]]).sum(axis=1)
        promising: Rows = pairs[agreeing >= fewest]
        return promising


@dataclass(frozen=True, slots=True)
class Likeness:
    """Which rows have equal or similar texts.

    Args:
        first_of: for each row the first row with the same text, (n,).
        folded: the pairs (earlier, later) of rows whose texts differ, but are equal when folded, (pairs, 2). `earlier`
            is the first row with that folded text.
        candidates: the pairs (earlier, later) of rows that share a band and have similar sketches, (pairs, 2). Their
            shingles are still to be compared.

    Of several rows with the same text, only the first is in pairs.
    """

    first_of: Rows
    folded: Rows
    candidates: Rows


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of positions in `texts` whose Jaccard similarity is `threshold` or more, in order.

    Of texts that are equal after `fold`, each is paired with the first only, and only the first is paired with other
    texts. So the groups of near-duplicates are the connected components of the pairs, and many repetitions give few
    pairs. Texts of which `fold` leaves only numbers are compared unfolded.

    Raises:
        ConfigError: `threshold` is not in (0, 1].
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
    """Return the form in which texts are compared: `text` folded, or unfolded if folding leaves only numbers."""
    folded = fold(text)
    return folded if folded.strip("0") else text


def fold(text: str) -> str:
    """Return `text` casefolded and in NFKC, with each number as 0, without white space and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub("", _DIGITS.sub("0", plain))


def shingles_of(text: str) -> set[str]:
    """Return the shingles of `text`: from each character on, four characters; two where an ideograph stands first."""
    return {
        text[place : place + (_WIDE_SHINGLE if character >= _WIDE else _NARROW_SHINGLE)]
        for place, character in enumerate(text)
    }


def are_similar(one: set[str], other: set[str], threshold: float) -> bool:
    """Return whether the Jaccard index of two sets of shingles is `threshold` or more."""
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared)


def band_count(threshold: float) -> int:
    """Return how many bands the MinHash values are cut into, so that similar texts share one with enough probability.

    With b bands of r values, texts of similarity s share a band with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman
    and Ullman, Mining of Massive Datasets, chapter 3). Of 8, 16, 32, 64 and 128 bands, the fewest with a probability
    of `_RECALL` or more at `threshold` are taken, since fewer bands give fewer candidates.

    Raises:
        ConfigError: `threshold` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the similarity threshold is {threshold}; expected a share above 0, and 1 at the most")
    return next(
        bands
        for bands in (8, 16, 32, 64, _HASHES)
        if bands == _HASHES or 1 - (1 - threshold ** (_HASHES // bands)) ** bands >= _RECALL
    )


def hashed(texts: Iterable[str]) -> Hashes:
    """Return a hash of 128 bits of each text: (n, 2) of uint64."""
    import numpy as np

    digests = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def first_equal(hashes: Hashes) -> Rows:
    """Return for each row of `hashes`, (n, 2), the index of the first row that is equal to it: (n,)."""
    import numpy as np

    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable, so that the first of equal rows comes first
    ordered = hashes[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[is_new][np.cumsum(is_new) - 1]
    return firsts


def _pairs_of(rows: Rows) -> Iterator[Rows]:
    """Yield all pairs of `rows`, which are sorted: at once if there are few rows, else row by row to save memory."""
    import numpy as np

    if len(rows) <= _FEW:
        earlier, later = np.triu_indices(len(rows), 1)
        yield np.stack([rows[earlier], rows[later]], axis=1)
        return
    for place in range(len(rows) - 1):
        later = rows[place + 1 :]
        yield np.stack([np.full_like(later, rows[place]), later], axis=1)


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield consecutive runs of `keys`, each with about `_BATCH` characters."""
    begin = characters = 0
    for place, key in enumerate(keys):
        characters += len(key)
        if characters > _BATCH:
            yield keys[begin : place + 1]
            begin, characters = place + 1, 0
    if begin < len(keys):
        yield keys[begin:]


def _min_hashes(keys: Sequence[str]) -> NDArray[np.uint32]:
    """Return the MinHash values of the shingles of each of `keys`: (n, 128)."""
    import numpy as np
    from rensa import RMinHash

    offsets = np.zeros(len(keys) + 1, dtype=np.uint64)
    np.cumsum([len(key) for key in keys], out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(_shingle_hashes(keys), offsets, _HASHES, 1)
    values = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint32, count=len(keys) * _HASHES)
    return values.reshape(len(keys), _HASHES)


def _banded(values: NDArray[np.uint32], bands: int) -> Hashes:
    """Return a hash of each band of `values`, (n, 128): (n, bands). The values of a band are adjacent columns."""
    import numpy as np

    result = np.zeros((len(values), bands), dtype=np.uint64)
    for value in np.moveaxis(values.reshape(len(values), bands, _HASHES // bands), 2, 0):
        result = _mixed(result ^ value)
    return result


def _shingle_hashes(keys: Sequence[str]) -> Hashes:
    """Return a hash of the shingle at each character of each key, the keys one after another: (characters,)."""
    import numpy as np

    gap = _NARROW_SHINGLE - 1  # zeros after each key, so that no shingle reaches into the next key
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
