"""Find duplicate and near-duplicate texts in a file and between files, and whether their annotations agree.

A text in two splits makes the scores on it too high. A text that is annotated in two ways teaches at least one error.
Blank texts are not compared. The annotations of near-duplicates conflict if a surface that both texts contain is an
entity in only one of them; its position is not compared.

The hashes that `document_checks` made are compared. A document is read again only if its text is needed: for an
example, or to compare it with a text that may be similar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from spantune.data.document_checks import Rows, repaired
from spantune.data.engines import HERE, Engine
from spantune.data.findings import Tally, excerpt, place_of
from spantune.data.likeness import THRESHOLD, Fingerprints, are_similar, first_equal, key_of, shingles_of
from spantune.data.offsets import Shift
from spantune.data.parts import Part
from spantune.data.raw.document import RawDocument
from spantune.data.rules import Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 256  # pairs of texts in one task
_CONFLICTING = {
    Rule.NEAR_DUPLICATE: Rule.CONFLICTING_NEAR_DUPLICATE,
    Rule.SHARED_NEAR_DUPLICATE: Rule.CONFLICTING_SHARED_NEAR_DUPLICATE,
}
File = tuple[Part, Shift | None]
"""The part that reads any document of a file again, and the shift that corrects wrong offsets of the file."""


class Spot(NamedTuple):
    """Where a document stands: the number of its file, its place for `Part.document`, and its line."""

    file: int
    place: int
    line: int

    def document(self, files: Sequence[File]) -> RawDocument:
        """Read the document again from its file, with wrong offsets repaired."""
        part, shift = files[self.file]
        return repaired(part.document(self.place, self.line), shift)


@dataclass(frozen=True, slots=True)
class Stack:
    """What is kept of the documents of a file, with one array for the whole file; see Rows."""

    file: File
    rows: Rows

    @classmethod
    def of(cls, part: Part, shift: Shift | None, batches: Sequence[Rows]) -> Stack:
        """Return the stack of a file whose documents were checked in `batches`."""
        return cls((part, shift), Rows.joined(batches))

    def spot(self, row: int, file: int = 0) -> Spot:
        """Return the spot of the document in `row`; `file` is the number of this file."""
        return Spot(file, int(self.rows.places[row]), int(self.rows.lines[row]))


class Pair(NamedTuple):
    """Two texts to compare.

    `earlier` and `later` have the spots of the documents with the one and the other text: for each file and each
    annotation the first document. `is_like` is True if the texts are equal when folded and need no comparison.
    """

    is_like: bool
    earlier: tuple[Spot, ...]
    later: tuple[Spot, ...]


class Near(NamedTuple):
    """A finding: the rule, where the later text stands, an example, and the place and example of a conflict, if any."""

    rule: Rule
    where: str
    example: str
    conflict: tuple[str, str] | None


def check_ids(stack: Stack, tally: Tally) -> None:
    """Count the documents of a file whose id an earlier document of the file has."""
    import numpy as np

    firsts = first_equal(stack.rows.ids)
    repeated = np.flatnonzero(firsts != np.arange(len(firsts)))
    if len(repeated):
        document = stack.spot(int(repeated[0])).document([stack.file])
        tally.add(Rule.REPEATED_ID, place_of(document), excerpt(document.id), len(repeated))


def check_repetition(stacks: Sequence[Stack], tally: Tally, engine: Engine = HERE) -> None:
    """Count the texts that repeat, exactly or nearly, an earlier text of the same or of another file."""
    texts = _Texts(stacks)
    files = [stack.file for stack in stacks]
    for rule, found in texts.equal().items():
        later, earlier = (texts.spot(row).document(files) for row in (found.row, found.earlier))
        tally.add(rule, place_of(later), _pair(later, earlier), found.count)
    rows, pairs = texts.pairs()
    chunks = [pairs[begin : begin + _CHUNK] for begin in range(0, len(pairs), _CHUNK)]
    results = (near for chunk in engine.map(_compared, files, chunks, "compare texts") for near in chunk)
    seen: set[int] = set()
    for later_row, near in zip(rows, results, strict=True):
        if near is None or later_row in seen:
            continue
        seen.add(later_row)
        tally.add(near.rule, near.where, near.example)
        if near.conflict:
            tally.add(_CONFLICTING[near.rule], *near.conflict)


@dataclass(slots=True)
class _Found:
    """The number of findings of a rule, and the rows of the first such document and of the earlier one it repeats."""

    row: int
    earlier: int
    count: int = 0


class _Texts:
    """The texts of all files that are not blank, one in each row: its spot, its annotation, and its equal texts."""

    def __init__(self, stacks: Sequence[Stack]):
        import numpy as np

        all_rows = [stack.rows for stack in stacks]
        empty = np.empty(0, dtype=np.int64)
        self._files = np.concatenate([empty, *(np.full(rows.filled.sum(), i) for i, rows in enumerate(all_rows))])
        self._places = np.concatenate([empty, *(rows.places[rows.filled] for rows in all_rows)])
        self._lines = np.concatenate([empty, *(rows.lines[rows.filled] for rows in all_rows)])
        self._marks = np.concatenate([empty.astype(np.uint64), *(rows.marks[rows.filled] for rows in all_rows)])
        self._likeness = Fingerprints.joined(rows.prints for rows in all_rows).like()
        first_of = self._likeness.first_of
        self._order: NDArray[Any] = np.argsort(first_of, kind="stable")
        self._sizes: NDArray[Any] = np.bincount(first_of, minlength=len(first_of))
        self._begins: NDArray[Any] = np.cumsum(self._sizes) - self._sizes

    def spot(self, row: int) -> Spot:
        """Return the spot of the document in `row`."""
        return Spot(int(self._files[row]), int(self._places[row]), int(self._lines[row]))

    def equal(self) -> dict[Rule, _Found]:
        """Count the documents that repeat a text of their file, and the texts that occur in several files."""
        findings: dict[Rule, _Found] = {}
        for first in (self._sizes > 1).nonzero()[0].tolist():
            for rule, row, earlier in self._repetitions(self._copies(first)):
                findings.setdefault(rule, _Found(row, earlier)).count += 1
        return findings

    def pairs(self) -> tuple[list[int], list[Pair]]:
        """Return the pairs of texts that are or may be similar, in order of their rows, and each pair's later row."""
        likeness = self._likeness
        known = [(earlier, later, True) for earlier, later in likeness.folded.tolist()]
        found = sorted(known + [(earlier, later, False) for earlier, later in likeness.candidates.tolist()])
        pairs = [
            Pair(is_like, self._annotations(earlier), self._annotations(later)) for earlier, later, is_like in found
        ]
        return [later for _, later, _ in found], pairs

    def _copies(self, first: int) -> list[int]:
        """Return all rows with the same text as the row `first`, in order; `first` is the first of them."""
        begin = self._begins[first]
        rows: list[int] = self._order[begin : begin + self._sizes[first]].tolist()
        return rows

    def _annotations(self, first: int) -> tuple[Spot, ...]:
        """Return the spots of the documents with the text of row `first`: the first for each file and annotation."""
        if self._sizes[first] == 1:
            return (self.spot(first),)
        firsts: dict[tuple[int, int], int] = {}
        for row in self._copies(first):
            firsts.setdefault((int(self._files[row]), int(self._marks[row])), row)
        return tuple(self.spot(row) for row in firsts.values())

    def _repetitions(self, copies: Sequence[int]) -> Iterator[tuple[Rule, int, int]]:
        """Yield (rule, row of a document, row of the earlier one) for what is wrong with documents of one text."""
        files, marks = self._files[copies].tolist(), self._marks[copies].tolist()
        first_of: dict[int, int] = {}
        conflicting: set[int] = set()
        for index, file in enumerate(files):
            earlier = first_of.setdefault(file, index)
            if earlier == index:
                continue
            yield Rule.DUPLICATE_TEXT, copies[index], copies[earlier]
            if file not in conflicting and marks[index] != marks[earlier]:
                conflicting.add(file)
                yield Rule.CONFLICTING_DUPLICATE, copies[index], copies[earlier]
        shared = [index for index, file in enumerate(files) if file != files[0]]
        if shared:
            yield Rule.SHARED_TEXT, copies[shared[0]], copies[0]
            if conflicts := [index for index in shared if marks[index] != marks[0]]:
                yield Rule.CONFLICTING_SHARED_TEXT, copies[conflicts[0]], copies[0]


def _compared(files: Sequence[File], pairs: Sequence[Pair]) -> list[Near | None]:
    """Compare pairs of texts; None for a pair that is not similar. An engine applies this function to the pairs."""
    shingles: dict[Spot, set[str]] = {}

    def of(spot: Spot) -> set[str]:
        if spot not in shingles:
            shingles[spot] = shingles_of(key_of(files[spot.file][0].text(spot.place, spot.line)))
        return shingles[spot]

    return [
        _near(files, pair) if pair.is_like or are_similar(of(pair.earlier[0]), of(pair.later[0]), THRESHOLD) else None
        for pair in pairs
    ]


def _near(files: Sequence[File], pair: Pair) -> Near:
    """Return the finding for two texts that are similar."""
    pairs = [(first, second) for first in pair.earlier for second in pair.later]
    rule = Rule.NEAR_DUPLICATE
    if between_files := [(first, second) for first, second in pairs if first.file != second.file]:
        rule, pairs = Rule.SHARED_NEAR_DUPLICATE, between_files
    documents = {spot: spot.document(files) for both in pairs for spot in both}
    first, second = (documents[spot] for spot in pairs[0])
    conflicts = (_conflict(documents[first], documents[second]) for first, second in pairs)
    return Near(
        rule, place_of(second), _pair(second, first), next((conflict for conflict in conflicts if conflict), None)
    )


def _conflict(first: RawDocument, second: RawDocument) -> tuple[str, str] | None:
    """Return the place and an example of a conflict between the annotations of similar texts; None without conflict."""
    conflict = _missing(first, second) or _missing(second, first)
    return (place_of(second), f"{_pair(second, first)}: {conflict}") if conflict else None


def _surfaces(document: RawDocument) -> set[tuple[str, str]]:
    return {(document.text[entity.start : entity.end], entity.label) for entity in document.entities}


def _missing(first: RawDocument, second: RawDocument) -> str:
    """Show an entity of `first` whose surface occurs in `second`, but is not an entity there; "" if there is none."""
    missing = sorted(_surfaces(first) - _surfaces(second))
    return next((f"{excerpt(surface)} ({label})" for surface, label in missing if surface in second.text), "")


def _pair(document: RawDocument, earlier: RawDocument) -> str:
    return f"{excerpt(document.text)}, as {earlier.id!r} at {place_of(earlier)}"
