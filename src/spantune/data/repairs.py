"""Mends of a corpus what has one right answer: `repair(source, out)` writes another file and a log of every change.

An entity is moved to where its text stands (by the rule that the whole file is off by, else to its only place), what
its format stated otherwise than it says is written as it says, an exact repetition is dropped. Texts are never changed
and an input is never written to. What has no one right answer cannot stand in a document: it is left out, logged, and
counted by `left_out`, which a caller reports as an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spantune.core import ConfigError, DataError, Document, Entity, replacing, replacing_path
from spantune.data import formats
from spantune.data.checks import FILE_NOTES, Source
from spantune.data.findings import Tally, place
from spantune.data.offsets import Shift, fault, mended, shared_shift
from spantune.data.raw.document import RawDocument, RawEntity

LOG_SUFFIX = ".changes.jsonl"


@dataclass(frozen=True, slots=True)
class Change:
    """One change: `what` is the finding that it mends; `after` is None where something was left out."""

    file: str
    line: int | None
    document: str | None
    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Repaired:
    """A file that was written, the log beside it, its changes, and `notes`: what its format had no place for."""

    path: Path
    log: Path
    changes: tuple[Change, ...]
    notes: Mapping[str, int]

    @property
    def left_out(self) -> list[Change]:
        """What was in the input and is not in the output, repetitions apart."""
        return [change for change in self.changes if change.after is None and change.what != "duplicate-annotation"]


def repair_all(sources: Sequence[Source], out: Path) -> list[Repaired]:
    """Repair one source into the file `out`, or several into files of their names in the new folder `out`.

    Raises:
        ConfigError: `out` is an input, or two inputs have one name.
        DataError: nothing can be written; nothing is left behind then.
    """
    targets = [out] if len(sources) == 1 else [out / source.path.name for source in sources]
    if len(set(targets)) < len(targets):
        raise ConfigError(f"two inputs have the same name, and both would be written to {out}: rename one")
    for target in [*targets, *map(_log_of, targets)]:
        place_and_above = {target.resolve(), *target.resolve().parents}
        if touched := next((source.path for source in sources if source.path.resolve() in place_and_above), None):
            raise ConfigError(f"--fix {out} would write over or into the input {touched}; name another place")
    if len(sources) == 1:
        return [repair(sources[0], out)]
    with replacing_path(out) as partial:
        partial.mkdir()
        written = [repair(source, partial / source.path.name) for source in sources]
    return [
        Repaired(target, _log_of(target), one.changes, one.notes) for target, one in zip(targets, written, strict=True)
    ]


def repair(source: Source, out: Path) -> Repaired:
    """Write what can be kept and mended of `source` to `out`, in its format, and the changes beside it.

    Raises:
        DataError: no document could be read, or the format cannot hold one.
    """
    changes: list[Change] = []
    for note, what in FILE_NOTES.items():
        if count := source.notes.get(note):
            changes.append(Change(str(source.path), None, None, what, count, 0))
    shift = shared_shift(source.documents)
    documents = []
    for item in source.items:
        if isinstance(item, DataError):
            changes.append(Change(str(item.path or source.path), item.line, None, "unreadable", item.message, None))
        else:
            documents.append(_mended(item, shift, changes))
    if not documents:
        raise DataError("no document can be read, so nothing is written; mend what is found first", path=source.path)
    log = _log_of(out)
    with replacing(log) as file:
        for change in changes:
            file.write(json.dumps(asdict(change), ensure_ascii=False) + "\n")
        notes = formats.write(out, documents, source.format)
    return Repaired(out, log, tuple(changes), notes)


def count_left_out(repaired: Sequence[Repaired], tally: Tally) -> None:
    """Add to `tally` what could not be mended, each with its place in the input."""
    for one in repaired:
        for change in one.left_out:
            tally.add(
                "left-out",
                place(change.file, change.line),
                f"{change.what}: {json.dumps(change.before, ensure_ascii=False)}",
            )


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + LOG_SUFFIX)


def _mended(document: RawDocument, shift: Shift | None, changes: list[Change]) -> Document:
    """`document` with the entities that stand where they say or could be moved there."""
    kept: dict[Entity, None] = {}
    for entity in document.entities:
        what = fault(document, entity)
        span = mended(document.text, entity, shift) if entity.surface is not None else (entity.start, entity.end)
        if span is None or (what and entity.surface is None):
            changes.append(_change(document, entity, what or "surface-mismatch", None))
            continue
        after = Entity(*span, entity.label, entity.score)
        if after in kept:
            changes.append(_change(document, entity, "duplicate-annotation", None))
            continue
        kept[after] = None
        if span != (entity.start, entity.end):
            changes.append(_change(document, entity, what or "surface-mismatch", after))
        if entity.defect is not None:
            changes.append(_change(document, entity, entity.defect.code, after))
    return Document(document.id, document.text, tuple(kept), document.meta)


def _change(document: RawDocument, entity: RawEntity, what: str, after: Entity | None) -> Change:
    """The change of an entity; of one with a defect, what its format stated is in the defect's words."""
    line = entity.line if entity.line is not None else document.line
    before: dict[str, Any] = {"start": entity.start, "end": entity.end, "label": entity.label}
    if entity.surface is not None:
        before["text"] = entity.surface
    if entity.defect is not None and what == entity.defect.code:
        before = {"stated": entity.defect.message, "text": entity.surface, "label": entity.label}
    if entity.field:
        before["field"] = entity.field
    now = None
    if after is not None:
        text = document.text[after.start : after.end]
        now = {"start": after.start, "end": after.end, "label": after.label, "text": text}
    return Change(str(document.path), line, document.id, what, before, now)
