"""Repair what has exactly one right answer: `repair(source, out)` writes another file and a log of every change.

An entity with wrong offsets is moved to where its text occurs: by the shift that the whole file shares, or else to the
only occurrence. A defect of the format is rewritten as the format requires, and an exact repetition is dropped. Texts
are never changed, and an input is never written to. Entities and documents without one right answer are dropped and
logged. They are in `Repaired.dropped`, which a caller reports as errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, Entity, overwriting, replacing, replacing_path, to_json
from spantune.data import formats
from spantune.data.checks import FILE_RULES, of_file
from spantune.data.findings import Tally, place
from spantune.data.offsets import Shift, fault, repaired_span, shared_shift
from spantune.data.parts import Source
from spantune.data.raw.document import RawDocument, RawEntity, moved
from spantune.data.raw.units import trimmed
from spantune.data.rules import Rule

LOG_SUFFIX = ".changes.jsonl"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a repair.

    Args:
        file: the input.
        line: the line in it, if known.
        document: the id of the document; None for a change of the whole file, and if it cannot be read.
        what: the rule whose finding is repaired.
        before: the entity or the text that was found, or how often a whole file breaks the rule.
        after: the repaired entity; None if something was dropped; 0 for a change of the whole file.
    """

    file: str
    line: int | None
    document: str | None
    what: Rule
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class Repaired:
    """A repaired file, the log beside it, its changes, and in `notes` what its format could not hold, with counts."""

    path: Path
    format: str
    log: Path
    changes: tuple[Change, ...]
    notes: Mapping[str, int]

    @property
    def dropped(self) -> list[Change]:
        """The changes that dropped something from the output, apart from exact repetitions."""
        return [c for c in self.changes if c.after is None and c.what is not Rule.DUPLICATE_ANNOTATION]


def repair_targets(out: Path, count: int) -> list[Path]:
    """Return what `repair_all` writes for `count` sources: the file `out` and its log, or the folder `out`."""
    return [out, _log_of(out)] if count == 1 else [out]


def repair_all(sources: Sequence[Source], out: Path, *, force: bool = False) -> list[Repaired]:
    """Repair one source into the file `out`, or several into files of the same names in the folder `out`.

    With `force`, an existing file or folder is replaced after everything has been written.

    Raises:
        ConfigError: `out` is an input or lies in one, or two inputs have the same name.
        DataError: something cannot be written; then nothing is written.
    """
    targets = [out] if len(sources) == 1 else [out / source.path.name for source in sources]
    if len(set(targets)) < len(targets):
        raise ConfigError(f"two inputs have the same name, and both would be written to {out}: rename one")
    for target in [*targets, *map(_log_of, targets)]:
        path_and_parents = {target.resolve(), *target.resolve().parents}
        if input_path := next((source.path for source in sources if source.path.resolve() in path_and_parents), None):
            raise ConfigError(f"--fix {out} would write over or into the input {input_path}; name another place")
    if len(sources) == 1:
        return [repair(sources[0], out, force=force)]
    with overwriting(out, force=force) as place, replacing_path(place) as partial:
        partial.mkdir()
        written = [repair(source, partial / source.path.name) for source in sources]
    return [
        replace(repaired, path=target, log=_log_of(target)) for target, repaired in zip(targets, written, strict=True)
    ]


def repair(source: Source, out: Path, *, force: bool = False) -> Repaired:
    """Write the repaired documents of `source` to `out`, in its format, and the log of changes beside it.

    A source whose format can only be read is written in the native format; the notes say so.

    Raises:
        DataError: no document could be read, the format cannot hold one, or the file cannot be written.
    """
    changes: list[Change] = []
    for rule, note, count in of_file(source.notes):
        before = count if note in FILE_RULES else {"stated": note, "count": count}
        changes.append(Change(str(source.path), None, None, rule, before, 0))
    shift = shared_shift(source.documents)
    documents = []
    for item in source.items:
        if isinstance(item, DataError):
            path = str(item.path or source.path)
            problem = f"field {item.field}: {item.message}" if item.field else item.message
            changes.append(Change(path, item.line, None, Rule.UNREADABLE, problem, None))
        else:
            documents.append(_repaired(item, shift, changes))
    if not documents:
        raise DataError("no document can be read, so nothing is written; mend what is found first", path=source.path)
    log = _log_of(out)
    is_writable = formats.of_name(source.format).write is not None
    format = source.format if is_writable else "native"
    with replacing(log) as file:
        for change in changes:
            file.write(to_json(asdict(change)) + "\n")
        with overwriting(out, force=force) as place:
            notes = formats.write(place, documents, format)
    if not is_writable:
        notes[f"file written as native, since {source.format} can only be read"] = 1
    return Repaired(out, format, log, tuple(changes), notes)


def count_dropped(files: Sequence[Repaired], tally: Tally) -> None:
    """Add to `tally` everything that could not be repaired, each with its place in the input."""
    for repaired in files:
        for change in repaired.dropped:
            tally.add(
                Rule.LEFT_OUT,
                place(change.file, change.line),
                f"{change.what}: {to_json(change.before)}",
            )


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + LOG_SUFFIX)


def _repaired(document: RawDocument, shift: Shift | None, changes: list[Change]) -> Document:
    """Return `document` with the entities whose offsets are right or were repaired; add each change to `changes`."""
    entities: dict[Entity, None] = {}
    placed: list[RawEntity] = []
    for entity in document.entities:
        rule = fault(document, entity)
        span = _span(document, entity, shift)
        placed.append(entity if span is None else replace(entity, start=span[0], end=span[1]))
        if span is None:
            stated_rule = rule or (Rule.EDGE_SPACE if entity.surface is None else Rule.SURFACE_MISMATCH)
            changes.append(_change(document, entity, stated_rule, None))
            continue
        after = Entity(*span, entity.label, entity.score)
        if after in entities:
            changes.append(_change(document, entity, Rule.DUPLICATE_ANNOTATION, None))
            continue
        entities[after] = None
        if span != (entity.start, entity.end):
            is_trimmed = rule is None and entity.start <= span[0] and span[1] <= entity.end
            changes.append(_change(document, entity, rule or _mended_rule(is_trimmed), after))
        if entity.defect is not None and entity.defect.rule.fixable:
            changes.append(_change(document, entity, entity.defect.rule, after))
    meta = moved(document, placed, lambda offset: shift.start(document.text, offset) if shift else offset).meta
    return Document(document.id, document.text, tuple(entities), meta)


def _mended_rule(is_trimmed: bool) -> Rule:
    return Rule.EDGE_SPACE if is_trimmed else Rule.SURFACE_MISMATCH


def _span(document: RawDocument, entity: RawEntity, shift: Shift | None) -> tuple[int, int] | None:
    """Return the right span of `entity`, without white space at its edges; None if it is unknown or blank.

    With the defect OFFSET_UNIT it is not known what the offsets count, and the span is not trimmed.
    """
    if entity.surface is None:
        span = None if fault(document, entity) else (entity.start, entity.end)
    else:
        span = repaired_span(document.text, entity, shift)
    if span is None:
        return None
    if entity.defect is not None and entity.defect.rule is Rule.OFFSET_UNIT:
        return span  # white space at its edge may be due to the wrong unit, which the user has to name
    span = trimmed(document.text, *span)
    return span if span[0] < span[1] else None


def _change(document: RawDocument, entity: RawEntity, rule: Rule, after: Entity | None) -> Change:
    """Return the change of an entity. If `rule` is that of its defect, `before` has the message of the defect."""
    line = entity.line if entity.line is not None else document.line
    before: dict[str, object] = {"start": entity.start, "end": entity.end, "label": entity.label}
    if entity.surface is not None:
        before["text"] = entity.surface
    if entity.defect is not None and rule is entity.defect.rule:
        before = {"stated": entity.defect.message, "text": entity.surface, "label": entity.label}
    if entity.field:
        before["field"] = entity.field
    now = None
    if after is not None:
        text = document.text[after.start : after.end]
        now = {"start": after.start, "end": after.end, "label": after.label, "text": text}
    return Change(str(document.path), line, document.id, rule, before, now)
