"""Checks annotated files, the splits of one corpus: `check(sources, demands)` applies every rule of `findings`.

A wrong entity is counted and set aside, so that it is one finding and not five; a document that cannot be read is
counted and passed over. The trade-off: all documents are held in memory, since half of what matters lies between them.
Whether an annotation is true is not looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spantune.core import DataError
from spantune.data import formats
from spantune.data.duplicates import check_repetition
from spantune.data.findings import LONG, RARE, Report, Tally, excerpt, place, place_of, shown
from spantune.data.offsets import ENOUGH, Shift, fault, mended, shared_shift
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE

_SIGNS = {
    "control-character": re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]"),
    "zero-width-character": re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"),
}
FILE_NOTES = {BOM_NOTE: "byte-order-mark", CRLF_NOTE: "crlf"}
"""A reader's note of a whole file to the name of the finding."""

_MANY = 100  # documents, from which on it is no chance that all have entities

Fault = tuple[str, RawEntity, bool]  # its name, the entity, whether it can be mended


@dataclass(frozen=True, slots=True)
class Source:
    """A file as its reader states it; `notes` is what the reader counted."""

    path: Path
    format: str
    items: tuple[Item, ...]
    notes: Mapping[str, int]

    @property
    def documents(self) -> list[RawDocument]:
        """The documents that could be read."""
        return [item for item in self.items if isinstance(item, RawDocument)]


@dataclass(frozen=True, slots=True)
class Demands:
    """What a corpus is held against besides itself: a label set, and a budget of tokens with who counts them."""

    labels: Collection[str] = ()
    max_tokens: int = 0
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None


def read_source(file: str | Path, format: str | None = None, options: Options | None = None) -> Source:
    """Read `file`; what is wrong inside it is in the items.

    Raises:
        DataError: it cannot be read at all, or no further.
    """
    notes: Counter[str] = Counter()
    path = formats.resolve(file)
    name = format or formats.detect(path)
    items = tuple(formats.items(path, name, notes, options or Options()))
    return Source(path, name, items, dict(+notes))


def check(sources: Sequence[Source], demands: Demands, tally: Tally | None = None) -> Report:
    """Check `sources`, the splits of one corpus; what is found is added to `tally`, where one was begun."""
    tally = tally or Tally()
    splits: list[list[RawDocument]] = []
    for source in sources:
        _check_items(source, tally)
        documents = source.documents
        splits.append(_sound(documents, source.path.name, tally))
        _check_texts(documents, tally)
        _check_lengths(documents, demands, tally)
    sound = [document for split in splits for document in split]
    _check_normalisation(sound, tally)
    for document in sound:
        _check_spans(document, tally)
    _check_labels(sound, demands.labels, tally)
    for one in inconsistencies(sound):
        example = (
            f"{excerpt(one.whole)} {one.times} times, only {excerpt(one.part)} in it {one.cut} times ({one.label})"
        )
        tally.add("boundary-inconsistency", place_of(one.document), example)
    check_repetition(splits, tally)
    entities = sum(len(document.entities) for source in sources for document in source.documents)
    return Report(tuple(str(source.path) for source in sources), len(sound), entities, tally.findings())


def _check_items(source: Source, tally: Tally) -> None:
    """Count what could not be read, ids given twice, and what the reader noted of the file."""
    ids: set[str] = set()
    for item in source.items:
        if isinstance(item, DataError):
            name = "lone-surrogate" if item.message.startswith("half of a surrogate pair") else "unreadable"
            example = f"field {item.field}: {item.message}" if item.field else item.message
            tally.add(name, place(item.path or source.path, item.line), example)
            continue
        if item.id in ids:
            tally.add("repeated-id", place_of(item), excerpt(item.id))
        ids.add(item.id)
    for note, name in FILE_NOTES.items():
        if count := source.notes.get(note, 0):
            tally.add(name, str(source.path), note, count)


def _sound(documents: Sequence[RawDocument], file: str, tally: Tally) -> list[RawDocument]:
    """The documents with every wrong entity counted and moved to where it belongs, or left out where that is open."""
    shift = shared_shift(documents)
    faults: list[Fault] = []
    sound = []
    for document in documents:
        good = []
        for entity in document.entities:
            name = fault(document, entity)
            if not name and entity.surface is not None and entity.defect is None:
                good.append(entity)
                continue
            where = place_of(document, entity)
            if name:
                span = mended(document.text, entity, shift)
                faults.append((name, entity, span is not None))
                tally.add(name, where, f"{shown(document, entity)}, but {_standing(document, entity)}")
                if span is None:
                    continue
                entity = replace(entity, start=span[0], end=span[1])
            good.append(entity)
            if entity.surface is None:
                tally.add("unverified", where, shown(document, entity))
            if entity.defect is not None:
                tally.add_defect(entity.defect, where, shown(document, entity))
        sound.append(replace(document, entities=tuple(good)))
    _explain(documents, faults, shift, file, tally)
    return sound


def _standing(document: RawDocument, entity: RawEntity) -> str:
    """What stands at the offsets of a wrong entity."""
    if not 0 <= entity.start <= entity.end <= len(document.text):
        return f"the text has {len(document.text)} characters"
    return f"{excerpt(document.text[entity.start : entity.end])} stands there"


def _explain(
    documents: Sequence[RawDocument], faults: Sequence[Fault], shift: Shift | None, file: str, tally: Tally
) -> None:
    """Say of how many entities a fault or defect is, what the faults have in common and how many can be mended."""
    entities = [entity for document in documents for entity in document.entities]

    def share(count: int) -> str:
        return f"{'all' if count == len(entities) else f'{count} of the'} {len(entities)} entities of {file}"

    for code, count in Counter(entity.defect.code for entity in entities if entity.defect).items():
        tally.explain(code, share(count))
    for name, count in Counter(name for name, _, _ in faults).items():
        its = [(entity, mendable) for other, entity, mendable in faults if other == name]
        rule = _shared_end([entity for entity, _ in its]) if name == "end-mismatch" else str(shift or "")
        mendable = sum(mendable for _, mendable in its)
        tally.explain(name, f"{share(count)}{rule and f' ({rule})'}, --fix mends {mendable}")


def _shared_end(entities: Sequence[RawEntity]) -> str:
    """How the ends of `entities`, which have a text, are wrong; "" when they have nothing in common."""
    distances = Counter(entity.end - entity.start - len(entity.surface or "") for entity in entities)
    by, count = distances.most_common(1)[0]
    return f"each end is {abs(by)} too {'small' if by < 0 else 'large'}" if count >= ENOUGH * len(entities) else ""


def _check_texts(documents: Sequence[RawDocument], tally: Tally) -> None:
    for document in documents:
        text = document.text
        if not text.strip():
            tally.add("empty-text", place_of(document), excerpt(text))
        if not document.entities:
            tally.add("without-entities", place_of(document), excerpt(text))
        if len(text) > LONG:
            tally.add("long-text", place_of(document), f"{len(text)} characters: {excerpt(text)}")
        for name, pattern in _SIGNS.items():
            if found := pattern.search(text):
                tally.add(name, place_of(document), f"U+{ord(found[0]):04X} at character {found.start()}")
    if len(documents) >= _MANY and all(document.entities for document in documents):
        tally.add("no-negatives", str(documents[0].path), f"{len(documents)} documents, all with entities")


def _check_lengths(documents: Sequence[RawDocument], demands: Demands, tally: Tally) -> None:
    if demands.count_tokens is None:
        return
    counts = demands.count_tokens([document.text for document in documents])
    for document, count in zip(documents, counts, strict=True):
        if count > demands.max_tokens:
            found = f"{count} tokens, {demands.max_tokens} allowed: {excerpt(document.text)}"
            tally.add("too-long", place_of(document), found)


def _check_normalisation(documents: Iterable[RawDocument], tally: Tally) -> None:
    """Count the texts outside NFC, where there are composed characters, too: one letter is then written in two ways."""
    others = [document for document in documents if not unicodedata.is_normalized("NFC", document.text)]
    if not others or all(unicodedata.is_normalized("NFD", document.text) for document in documents):
        return
    for document in others:
        text = document.text
        composed = unicodedata.normalize("NFC", text)
        first = next((i for i, (old, new) in enumerate(zip(text, composed, strict=False)) if old != new), len(composed))
        tally.add("mixed-normalisation", place_of(document), f"{excerpt(text[first : first + 2])} at character {first}")


def _check_spans(document: RawDocument, tally: Tally) -> None:
    """Count entities given twice, spans with several labels, crossing entities and surfaces that stand twice."""
    entities, text = document.entities, document.text
    labels: dict[tuple[int, int], set[str]] = {}
    for entity in entities:
        if text.count(surface := text[entity.start : entity.end]) > 1:
            tally.add("repeated-surface", place_of(document, entity), excerpt(surface))
        its = labels.setdefault((entity.start, entity.end), set())
        if entity.label in its:
            tally.add("duplicate-annotation", place_of(document, entity), shown(document, entity))
        its.add(entity.label)
    for (start, end), names in labels.items():
        if len(names) > 1:
            found = f"{excerpt(text[start:end])} [{start}, {end}): {', '.join(sorted(names))}"
            tally.add("two-labels", place_of(document), found)
    spans = sorted(labels)
    crossing: dict[tuple[int, int], tuple[int, int]] = {}
    for number, (start, end) in enumerate(spans):
        for other in spans[number + 1 :]:
            if other[0] >= end:
                break
            if start < other[0] and end < other[1]:
                crossing.setdefault((start, end), other)
                crossing.setdefault(other, (start, end))
    for entity in entities:
        if crossed := crossing.get((entity.start, entity.end)):
            found = f"{shown(document, entity)} and {excerpt(text[slice(*crossed)])} [{crossed[0]}, {crossed[1]})"
            tally.add("crossing", place_of(document, entity), found)


def _check_labels(documents: Sequence[RawDocument], schema: Collection[str], tally: Tally) -> None:
    """Count the entities whose label is none of `schema`, where there is one, and the labels with few examples."""
    counts: Counter[str] = Counter(dict.fromkeys(schema, 0))
    first: dict[str, str] = {}
    for document in documents:
        for entity in document.entities:
            counts[entity.label] += 1
            if counts[entity.label] == 1:
                first[entity.label] = place_of(document, entity)
            if schema and entity.label not in schema:
                tally.add("label-outside", place_of(document, entity), shown(document, entity))
    for label, count in counts.items():
        if count < RARE and documents:
            tally.add("rare-label", first.get(label, str(documents[0].path)), f"{label}: {count}")


_WIDE = "\u2e80"  # where the scripts without spaces between words begin
_LONGEST = 4
_BEFORE = re.compile(r"[^\s\u2e80-\U0010ffff]+\s?$")
_AFTER = re.compile(r"\s?[^\s\u2e80-\U0010ffff]+")
_REACH = 40  # characters, in which a word must end


@dataclass(slots=True)
class Inconsistency:
    """`whole` is annotated as `label` `times` times, and only `part` of it `cut` times, first in `document`."""

    label: str
    whole: str
    part: str
    times: int
    document: RawDocument
    cut: int = 0


def inconsistencies(documents: Iterable[RawDocument]) -> list[Inconsistency]:
    """The surfaces that are annotated sometimes with and sometimes without a word at their edge."""
    documents = list(documents)
    surfaces = Counter(
        (entity.label, document.text[entity.start : entity.end])
        for document in documents
        for entity in document.entities
    )
    found: dict[tuple[str, str, str], Inconsistency] = {}
    for document in documents:
        spans = {(entity.start, entity.end, entity.label) for entity in document.entities}
        for start, end, label in sorted(spans):
            for left, right in _wider(document.text, start, end):
                whole = document.text[left:right]
                if (label, whole) in surfaces and (left, right, label) not in spans:
                    part = document.text[start:end]
                    times = surfaces[label, whole]
                    one = found.setdefault((label, whole, part), Inconsistency(label, whole, part, times, document))
                    one.cut += 1
    return list(found.values())


def _wider(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans with a word more on the left, and those with one more on the right."""
    for left in range(start - 1, max(start - _LONGEST, 0) - 1, -1):
        if not _is_ideograph(text[left]):
            break
        yield left, end
    for right in range(end + 1, min(end + _LONGEST, len(text)) + 1):
        if not _is_ideograph(text[right - 1]):
            break
        yield start, right
    if start and text[start - 1] < _WIDE and (word := _BEFORE.search(text[max(start - _REACH, 0) : start])):
        yield start - len(word[0]), end
    if end < len(text) and text[end] < _WIDE and (word := _AFTER.match(text, end, end + _REACH)):
        yield start, end + len(word[0])


def _is_ideograph(sign: str) -> bool:
    """Whether `sign` is of a script without spaces, and no punctuation."""
    return sign >= _WIDE and sign.isalnum()
