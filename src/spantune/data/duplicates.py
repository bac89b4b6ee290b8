"""Find duplicate and near-duplicate texts in a file and between files, and whether their annotations agree.

A text in two splits makes the scores on it too high, and a text annotated in two ways teaches at least one error. Blank
texts are not compared. The annotations of near-duplicates conflict if a surface that both texts contain is an entity in
only one of them; its position is not compared.

What is compared are the hashes that `document_checks` made. A document is read again only where its text is needed: as
an example, or to compare it with one that it may be similar to.
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

_CHUNK = 256  # pairs that are compared together
_CONFLICTING = {
    Rule.NEAR_DUPLICATE: Rule.CONFLICTING_NEAR_DUPLICATE,
    Rule.SHARED_NEAR_DUPLICATE: Rule.CONFLICTING_SHARED_NEAR_DUPLICATE,
}
File = tuple[Part, Shift | None]
"""What reads the documents of a file again, and the shift by which its wrong offsets are corrected."""


class Spot(NamedTuple):
    """Where a document stands: the number of its file, its place there, and its line."""

    file: int
    place: int
    line: int

    def document(self, files: Sequence[File]) -> RawDocument:
        """Read the document again."""
        part, shift = files[self.file]
        return repaired(part.document(self.place, self.line), shift)


@dataclass(frozen=True, slots=True)
class Stack:
    """What is held of the documents of a file, as one array each; see Rows."""

    file: File
    rows: Rows

    @classmethod
    def of(cls, part: Part, shift: Shift | None, batches: Sequence[Rows]) -> Stack:
        """Join the rows of batches."""
        return cls((part, shift), Rows.joined(batches))

    def spot(self, row: int, file: int = 0) -> Spot:
        """Return where the document of a row stands, in the file of that number."""
        return Spot(file, int(self.rows.places[row]), int(self.rows.lines[row]))


class Pair(NamedTuple):
    """Two texts to compare, each by one document of each annotation and file; `is_like` if they surely are alike."""

    is_like: bool
    earlier: tuple[Spot, ...]
    later: tuple[Spot, ...]


class Near(NamedTuple):
    """A finding: texts that are alike, where, an example, and the place and the example of a conflict if any."""

    rule: Rule
    where: str
    example: str
    conflict: tuple[str, str] | None


def check_ids(stack: Stack, tally: Tally) -> None:
    """Count the documents of a file that have the id of an earlier one."""
    import numpy as np

    firsts = first_equal(stack.rows.ids)
    repeated = np.flatnonzero(firsts != np.arange(len(firsts)))
    if len(repeated):
        document = stack.spot(int(repeated[0])).document([stack.file])
        tally.add(Rule.REPEATED_ID, place_of(document), excerpt(document.id), len(repeated))


def check_repetition(stacks: Sequence[Stack], tally: Tally, engine: Engine = HERE) -> None:
    """Count the texts that are duplicates or near-duplicates of one of the same or another file."""
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
    """How often a rule is broken, and the first document that does so with the earlier one, as rows."""

    row: int
    earlier: int
    count: int = 0


class _Texts:
    """The texts of all files that are not blank, by rows: where each stands, its annotation, and which are equal."""

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
        """Return where the document of a row stands."""
        return Spot(int(self._files[row]), int(self._places[row]), int(self._lines[row]))

    def equal(self) -> dict[Rule, _Found]:
        """Count the documents that repeat one of their file, and the texts once that are in several files."""
        findings: dict[Rule, _Found] = {}
        for first in (self._sizes > 1).nonzero()[0].tolist():
            for rule, row, earlier in self._repetitions(self._copies(first)):
                findings.setdefault(rule, _Found(row, earlier)).count += 1
        return findings

    def pairs(self) -> tuple[list[int], list[Pair]]:
        """Return the later row of each pair that is or may be alike, and the pairs, in the order of their rows."""
        likeness = self._likeness
        known = [(earlier, later, True) for earlier, later in likeness.folded.tolist()]
        found = sorted(known + [(earlier, later, False) for earlier, later in likeness.candidates.tolist()])
        pairs = [
            Pair(is_like, self._annotations(earlier), self._annotations(later)) for earlier, later, is_like in found
        ]
        return [later for _, later, _ in found], pairs

    def _copies(self, first: int) -> list[int]:
        """Return the rows that have the text of the row `first`, which is the first of them."""
        begin = self._begins[first]
        rows: list[int] = self._order[begin : begin + self._sizes[first]].tolist()
        return rows

    def _annotations(self, first: int) -> tuple[Spot, ...]:
        """Return where the first document of each annotation and file stands, of those with the text of `first`."""
        if self._sizes[first] == 1:
            return (self.spot(first),)
        firsts: dict[tuple[int, int], int] = {}
        for row in self._copies(first):
            firsts.setdefault((int(self._files[row]), int(self._marks[row])), row)
        return tuple(self.spot(row) for row in firsts.values())

    def _repetitions(self, copies: Sequence[int]) -> Iterator[tuple[Rule, int, int]]:
        """Yield what is wrong with documents of one text: the rule, the row of the document, and of the earlier one."""
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
    """Compare pairs of texts; None for one that is not alike."""
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
    """Return the finding of two texts that are alike."""
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
    """Return the place and an example of a conflict between the annotations of texts that are alike."""
    conflict = _missing(first, second) or _missing(second, first)
    return (place_of(second), f"{_pair(second, first)}: {conflict}") if conflict else None


def _surfaces(document: RawDocument) -> set[tuple[str, str]]:
    return {(document.text[entity.start : entity.end], entity.label) for entity in document.entities}


def _missing(first: RawDocument, second: RawDocument) -> str:
    """Show an entity of `first` whose surface occurs in `second` and is not an entity there; "" if there is none."""
    missing = sorted(_surfaces(first) - _surfaces(second))
    return next((f"{excerpt(surface)} ({label})" for surface, label in missing if surface in second.text), "")


def _pair(document: RawDocument, earlier: RawDocument) -> str:
    return f"{excerpt(document.text)}, as {earlier.id!r} at {place_of(earlier)}"
