"""Split a corpus that is read in parts, so that it need not fit into memory; the result equals `splitting.split`.

The parts are read twice. The first pass collects the strata, the group, the drawn number and the fingerprints of each
document; about 300 bytes per document are kept. When the split of each document is known, the second pass writes the
documents of each part into one file for each split. These files are then joined in the order of the parts.
"""

from __future__ import annotations

import shutil
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spantune.core import ConfigError, DataError, Document, replacing, replacing_path, to_json
from spantune.data import formats
from spantune.data.engines import Engine
from spantune.data.likeness import Fingerprints, are_similar, first_equal, hashed, key_of, shingles_of
from spantune.data.parts import Divided, Part
from spantune.data.placement import Placement, Strata, drawn_number, group_of, links_of, placed, strata_of
from spantune.data.raw.document import repeated_id, verified
from spantune.data.raw.text_files import CHUNK
from spantune.data.splitting import (
    RECORD,
    SUFFIXES,
    Counts,
    Rule,
    Written,
    no_group,
    record_of,
    require_empty,
    require_filled,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 1000  # documents that are held in memory at a time
_CHUNK = 256  # pairs of texts in one task
_PARTS = ".parts"


@dataclass(slots=True)
class Traits:
    """What is kept of the n documents of a part, or of several parts, with a row for each document.

    Args:
        ids: hashes of the ids, (n, 2).
        places: the place by which the document's Part reads it again, (n,).
        lines: the number of the document's line, (n,).
        drawn: the number in [0, 1) that is drawn for the document, (n,).
        prints: the fingerprints of the texts.
        strata: the different sets of strata, each with its number.
        kinds: for each document the number of its set of strata, (n,).
        groups: for each document its group, or None.
        keys: the keys that occur in meta, if groups are asked for.
        has_groups: whether a document has the key `group` in its meta.
        notes: what reading noted, with counts.
        error: the error of the first document that cannot be used; no document after it is read.
        sizes: the number of documents of each part.
    """

    ids: NDArray[Any]
    places: NDArray[Any]
    lines: NDArray[Any]
    drawn: NDArray[Any]
    prints: Fingerprints
    strata: dict[Strata, int] = field(default_factory=dict)
    kinds: array[int] = field(default_factory=lambda: array("l"))
    groups: list[str | None] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    has_groups: bool = False
    notes: Counter[str] = field(default_factory=Counter)
    error: DataError | None = None
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence[Traits], threshold: float) -> Traits:
        """Return the traits of all documents of `parts`, in their order. `sizes` is left empty."""
        import numpy as np

        strata: dict[Strata, int] = {}
        kinds = array("l")
        for part in parts:
            numbers = [strata.setdefault(own, len(strata)) for own in part.strata]
            kinds.extend(numbers[kind] for kind in part.kinds)
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.lines for part in parts]),
            np.concatenate([part.drawn for part in parts]),
            Fingerprints.joined((part.prints for part in parts), threshold),
            strata,
            kinds,
            [group for part in parts for group in part.groups],
            set().union(*(part.keys for part in parts)),
            any(part.has_groups for part in parts),
            sum((part.notes for part in parts), Counter()),
            next((part.error for part in parts if part.error), None),
        )

    def spot(self, row: int) -> tuple[int, int]:
        """Return the place and the line of the document of `row`, by which its Part reads it again."""
        return int(self.places[row]), int(self.lines[row])


@dataclass(frozen=True, slots=True)
class Target:
    """The folder into which a split is written, which all machines must reach, and the format of its files."""

    folder: Path
    format: str


@dataclass(frozen=True, slots=True)
class _Output:
    """The folder for the files of parts, their format, and the names of the splits."""

    folder: Path
    format: str
    names: tuple[str, ...]

    def part(self, name: str, number: int) -> Path:
        """Return the file for the documents of part `number` that belong to the split `name`."""
        return self.folder / _PARTS / f"{name}-{number:06d}.jsonl"


@dataclass(frozen=True, slots=True)
class _Task:
    """A part to write.

    Args:
        part: the part.
        number: its number.
        begin: the row of its first document.
        homes: for each of its documents the number of its split.
        wanted: the rows of this part whose ids are returned.
    """

    part: Part
    number: int
    begin: int
    homes: array[int]
    wanted: tuple[int, ...]


@dataclass(slots=True)
class _PartWritten:
    """What a part wrote: documents and entities by split, the ids of the wanted rows, and notes with counts."""

    documents: Counter[str] = field(default_factory=Counter)
    entities: dict[str, Counter[str]] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, later: _PartWritten) -> None:
        """Add what a later part wrote."""
        self.documents.update(later.documents)
        for name, labels in later.entities.items():
            self.entities.setdefault(name, Counter()).update(labels)
        self.ids |= later.ids
        self.notes.update(later.notes)


def split_in_parts(source: Divided, rule: Rule, engine: Engine, target: Target, facts: Mapping[str, object]) -> Written:
    """Split the file `source` by `rule`, and write every split and `split.json`. Either all files are written, or none.

    Args:
        source: the corpus.
        rule: how it is split.
        engine: where the parts are read and written.
        target: a new folder, and a format whose files can be joined.
        facts: keys and values that the record has before its own.

    Raises:
        ConfigError: files of the format cannot be joined.
        DataError: a document cannot be used, a split would have no documents, no document has the meta key that
            `rule.by` names, or the folder is not empty or cannot be made.
    """
    require_joinable(target.format)
    require_empty(target.folder)
    traits = _traits(source, rule, engine)
    copies = _copies(source, traits, rule, engine)
    kinds = list(traits.strata)
    placement = placed(
        _Strata(kinds, traits.kinds), links_of(traits.groups, copies), lambda row: float(traits.drawn[row]), rule.shares
    )
    counted = Counter(placement.homes)
    require_filled({name: counted[name] for name in rule.shares}, rule)
    with replacing_path(target.folder) as partial:
        (partial / _PARTS).mkdir(parents=True)
        output = _Output(partial.resolve(), target.format, tuple(rule.shares))
        rows = {row for pair in copies for row in pair}
        written = _write(source, placement, traits, rows, output, engine)
        record = record_of(
            rule,
            Counts(
                {name: written.documents[name] for name in rule.shares},
                {name: written.entities.get(name, Counter()) for name in rule.shares},
            ),
            {group: home for group, home in zip(traits.groups, placement.homes, strict=True) if group is not None},
            [(written.ids[later], written.ids[earlier], placement.homes[later]) for later, earlier in copies],
        )
        record = {**facts, **record, "moved": [written.ids[row] for row in placement.moved]}
        with replacing(partial / RECORD) as file:
            file.write(to_json(record, indent=1) + "\n")
    return Written(record, +(traits.notes + written.notes), traits.has_groups)


def require_joinable(format: str) -> None:
    """Check that files of `format` can be written in parts and then joined.

    Raises:
        ConfigError: they cannot.
        DataError: there is no format of that name.
    """
    if not formats.of_name(format, writing=True).divisible:
        able = ", ".join(name for name in formats.FORMATS if formats.FORMATS[name].divisible)
        raise ConfigError(
            f"--write-format {format}: a split that is written in parts is one of {able}; write one of these, and "
            "convert it: spantune data convert"
        )


class _Strata(Sequence[Strata]):
    """The strata of each document. Equal sets of strata are stored once; a document has the number of its set."""

    def __init__(self, kinds: Sequence[Strata], numbers: Sequence[int]):
        self._kinds, self._numbers = kinds, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: Any) -> Any:
        return self._kinds[self._numbers[row]]


def _traits(source: Divided, rule: Rule, engine: Engine) -> Traits:
    """Read the corpus for the first time, and return the traits of all documents.

    Raises:
        DataError: a document cannot be used, an id is repeated, there are no documents, or none has a group.
    """
    import numpy as np

    parts: list[Traits] = []
    for part in engine.map(_traits_of, rule, source.parts, "read"):
        parts.append(part)
        if part.error is not None:
            break
    traits = Traits.joined(parts, rule.threshold)
    traits.sizes = [len(part.kinds) for part in parts]
    firsts = first_equal(traits.ids)
    if len(repeated := np.flatnonzero(firsts != np.arange(len(firsts)))):
        row = int(repeated[0])
        raise repeated_id(source.whole.document(*traits.spot(row)), int(traits.lines[firsts[row]]))
    if traits.error is not None:
        raise traits.error
    if not len(firsts):
        raise formats.no_document(source.format, source.path, {})
    if rule.by is not None and all(group is None for group in traits.groups):
        raise no_group(rule.by, traits.keys)
    return traits


def _traits_of(rule: Rule, part: Part) -> Traits:
    """Return the traits of the documents of a part. An engine applies this function to all parts."""
    notes: Counter[str] = Counter()
    batches: list[Traits] = []
    rows: list[tuple[int, int, Document]] = []
    error = None
    for place, item in part.read(notes):
        try:
            (document,) = verified([item], notes)
        except DataError as wrong:
            error = wrong
            break
        rows.append((place, item.line or 0, document))
        if len(rows) == _BATCH:
            batches.append(_batch(rows, rule))
            rows = []
    traits = Traits.joined([*batches, _batch(rows, rule)], rule.threshold)
    traits.notes, traits.error = notes, error
    return traits


def _batch(rows: Sequence[tuple[int, int, Document]], rule: Rule) -> Traits:
    import numpy as np

    documents = [document for _, _, document in rows]
    groups = [None if rule.by is None else group_of(document, rule.by) for document in documents]
    drawn = [drawn_number(document, group, rule.seed) for document, group in zip(documents, groups, strict=True)]
    strata: dict[Strata, int] = {}
    return Traits(
        hashed(document.id for document in documents),
        np.array([place for place, _, _ in rows], dtype=np.int64),
        np.array([line for _, line, _ in rows], dtype=np.int64),
        np.array(drawn, dtype=np.float64),
        Fingerprints.of([document.text for document in documents], rule.threshold),
        strata,
        array("l", (strata.setdefault(strata_of(document), len(strata)) for document in documents)),
        groups,
        set() if rule.by is None else {key for document in documents for key in document.meta},
        any("group" in document.meta for document in documents),
    )


def _copies(source: Divided, traits: Traits, rule: Rule, engine: Engine) -> list[tuple[int, int]]:
    """Return the sorted pairs (later, earlier) of rows whose texts are the same or nearly the same."""
    likeness = traits.prints.like()
    copies = [(row, first) for row, first in enumerate(likeness.first_of.tolist()) if first != row]
    copies += [(later, earlier) for earlier, later in likeness.folded.tolist()]
    candidates = likeness.candidates.tolist()
    spots = [(traits.spot(earlier), traits.spot(later)) for earlier, later in candidates]
    chunks = [spots[begin : begin + _CHUNK] for begin in range(0, len(spots), _CHUNK)]
    results = engine.map(_are_alike, (source.whole, rule.threshold), chunks, "compare texts")
    verdicts = (is_alike for chunk in results for is_alike in chunk)
    for (earlier, later), is_alike in zip(candidates, verdicts, strict=True):
        if is_alike:
            copies.append((later, earlier))
    return sorted(copies)


def _are_alike(shared: tuple[Part, float], pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> list[bool]:
    """Return for each pair of spots whether their texts are similar. An engine applies this function to the pairs."""
    whole, threshold = shared
    spots = {spot for pair in pairs for spot in pair}
    shingles = {spot: shingles_of(key_of(whole.text(*spot))) for spot in spots}
    return [are_similar(shingles[earlier], shingles[later], threshold) for earlier, later in pairs]


def _write(
    source: Divided, placement: Placement, traits: Traits, rows: Iterable[int], output: _Output, engine: Engine
) -> _PartWritten:
    """Write the splits; return their counts, and the ids of `rows` and of the documents that moved."""
    numbers = {name: number for number, name in enumerate(output.names)}
    homes = array("H", (numbers[name] for name in placement.homes))
    wanted = sorted({*rows, *placement.moved})
    tasks = []
    begins = list(accumulate(traits.sizes, initial=0))
    for number, (part, begin, end) in enumerate(zip(source.parts, begins, begins[1:], strict=False)):
        ids = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
        tasks.append(_Task(part, number, begin, homes[begin:end], tuple(ids)))
    whole = _PartWritten()
    for written in engine.map(_write_part, output, tasks, "write"):
        whole.add(written)
    for name in output.names:
        with (output.folder / f"{name}{SUFFIXES.get(output.format, '.jsonl')}").open("wb") as joined:
            for task in tasks:
                if (path := output.part(name, task.number)).exists():
                    with path.open("rb") as file:
                        shutil.copyfileobj(file, joined, CHUNK)
                    path.unlink()
    (output.folder / _PARTS).rmdir()
    return whole


def _write_part(output: _Output, task: _Task) -> _PartWritten:
    """Write the documents of a part into one file for each split. An engine applies this function to all parts.

    Raises:
        DataError: the file has changed since it was first read, or a document cannot be written.
    """
    written = _PartWritten()
    documents: dict[str, list[Document]] = {name: [] for name in output.names}
    read = list(verified((item for _, item in task.part.read(Counter())), Counter()))
    if len(read) != len(task.homes):
        raise task.part.changed()
    for document, home in zip(read, task.homes, strict=True):
        documents[output.names[home]].append(document)
    for name, own in documents.items():
        if own:
            written.documents[name] = len(own)
            written.entities[name] = Counter(entity.label for document in own for entity in document.entities)
            written.notes.update(formats.write(output.part(name, task.number), own, output.format))
    written.ids = {row: read[row - task.begin].id for row in task.wanted}
    return written
