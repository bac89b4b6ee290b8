"""Check single documents, and collect the counts for the rules that compare documents.

An entity with wrong offsets is counted once. It is then moved to its right place or dropped before the other rules see
it, so that one fault is not reported five times.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from spantune.core import DataError, closest
from spantune.data.boundaries import Surface, surfaces_of
from spantune.data.findings import Tally, excerpt, place, place_of, shown
from spantune.data.likeness import Fingerprints, hashed
from spantune.data.offsets import Shift, fault, repaired_span
from spantune.data.parts import Part
from spantune.data.raw.document import RawDocument, RawEntity, SurrogateError
from spantune.data.rules import LONG, Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHARACTERS = {
    Rule.CONTROL_CHARACTER: re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]"),
    Rule.ZERO_WIDTH_CHARACTER: re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"),
}
_BATCH = 1000  # documents that are held in memory at a time
_AROUND = 10  # characters shown before and after a cut word
# Scripts in which an entity may end inside a run of letters. Most have no spaces between words: Thai, Lao, Tibetan,
# Burmese, Khmer, the Tai scripts and those of China and Japan. In Hangul, particles are written onto the word.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\ua4cf\ua9e0-\ua9ff"
    "\uaa60-\uaadf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00016fe0-\U00018d08\U0001b000-\U0001b2ff"
    "\U00020000-\U000323af]"
)


@dataclass(frozen=True, slots=True)
class Demands:
    """What a corpus is checked against besides the rules.

    Args:
        labels: the label set; any label is right when it is empty.
        max_tokens: the most tokens that a text may have.
        count_tokens: returns the number of tokens of each text; None if lengths are not checked.
    """

    labels: Collection[str] = ()
    max_tokens: int = 0
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None


@dataclass(slots=True)
class Stated:
    """Counts of the entities of a file as the file states them, from which follows what their faults have in common.

    Args:
        entities: the number of entities.
        defects: the number of defects that the reader reported, by rule.
        faults: the number of wrong offsets, by rule and by whether they can be repaired.
        ends: for END_MISMATCH, the number of ends by how much they are too large (negative: too small).
        astray: the number of entities whose stated text does not begin at their start.
    """

    entities: int = 0
    defects: Counter[Rule] = field(default_factory=Counter)
    faults: Counter[tuple[Rule, bool]] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    astray: int = 0

    def add(self, later: Stated) -> None:
        """Add the counts of later documents."""
        self.entities += later.entities
        self.astray += later.astray
        self.defects.update(later.defects)
        self.faults.update(later.faults)
        self.ends.update(later.ends)


@dataclass(slots=True)
class Labels:
    """The number of entities of each label, in the order of first occurrence, and where each label occurs first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def count(self, document: RawDocument) -> None:
        """Count the entities of a document."""
        for entity in document.entities:
            self.counts[entity.label] += 1
            if entity.label not in self.first:
                self.first[entity.label] = place_of(document, entity)

    def add(self, later: Labels) -> None:
        """Add the counts of later documents."""
        self.counts.update(later.counts)
        for label, where in later.first.items():
            self.first.setdefault(label, where)


@dataclass(slots=True)
class Rows:
    """Arrays with a row for each of n documents: all that is kept of a document in memory.

    Args:
        ids: hashes of the ids, (n, 2) of uint64.
        places: the place by which the document's Part reads it again, (n,) of int64.
        lines: the number of the document's line, (n,) of int64; 0 where there is none.
        marks: a hash of the document's annotation, (n,) of uint64.
        filled: whether the text is not blank, (n,) of bool.
        prints: the fingerprints of the texts that are not blank, in their order.
    """

    ids: NDArray[Any]
    places: NDArray[Any]
    lines: NDArray[Any]
    marks: NDArray[Any]
    filled: NDArray[Any]
    prints: Fingerprints

    @classmethod
    def joined(cls, batches: Sequence[Rows]) -> Rows:
        """Return the rows of all `batches`, in their order."""
        import numpy as np

        every = batches or [rows_of([], [])]
        return cls(
            np.concatenate([rows.ids for rows in every]),
            np.concatenate([rows.places for rows in every]),
            np.concatenate([rows.lines for rows in every]),
            np.concatenate([rows.marks for rows in every]),
            np.concatenate([rows.filled for rows in every]),
            Fingerprints.joined(rows.prints for rows in every),
        )


@dataclass(slots=True)
class Survey:
    """The findings in a part of a file, and the counts for the rules that compare documents.

    Args:
        tally: the findings.
        decomposed: findings of texts that are not in NFC. They count only if the corpus has composed characters too.
        composed: whether a text has composed characters.
        documents: the number of documents that could be read.
        annotated: the number of these that have entities.
        first: the file of the first document.
        stated: counts of the entities as the file states them.
        labels: counts of the labels.
        surfaces: counts of the entities by label and text.
        notes: what reading noted, with counts.
        rows: what is kept of each document; one value for each batch.
    """

    tally: Tally = field(default_factory=Tally)
    decomposed: Tally = field(default_factory=Tally)
    composed: bool = False
    documents: int = 0
    annotated: int = 0
    first: str = ""
    stated: Stated = field(default_factory=Stated)
    labels: Labels = field(default_factory=Labels)
    surfaces: Counter[Surface] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    rows: list[Rows] = field(default_factory=list)

    def add(self, later: Survey) -> None:
        """Add the survey of a later part, or of another file."""
        self.tally.add_all(later.tally)
        self.decomposed.add_all(later.decomposed)
        self.composed |= later.composed
        self.documents += later.documents
        self.annotated += later.annotated
        self.first = self.first or later.first
        self.stated.add(later.stated)
        self.labels.add(later.labels)
        self.surfaces.update(later.surfaces)
        self.notes.update(later.notes)
        self.rows += later.rows


def survey(demands: Demands, task: tuple[Part, Shift | None]) -> Survey:
    """Check each document of a part by itself. An engine applies this function to all parts of a file.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    part, shift = task
    result = Survey()
    batch: list[tuple[int, RawDocument]] = []
    for where, item in part.read(result.notes):
        if isinstance(item, DataError):
            rule = Rule.LONE_SURROGATE if isinstance(item, SurrogateError) else Rule.UNREADABLE
            example = f"field {item.field}: {item.message}" if item.field else item.message
            result.tally.add(rule, place(item.path or part.path, item.line), example)
            continue
        batch.append((where, item))
        if len(batch) == _BATCH:
            _check_batch(batch, shift, demands, result)
            batch = []
    if batch:
        _check_batch(batch, shift, demands, result)
    return result


def repaired_documents(part: Part, shift: Shift | None) -> Iterator[RawDocument]:
    """Yield the documents of `part` that can be read, with wrong entities moved to their place or dropped.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    for _, item in part.read(Counter()):
        if isinstance(item, RawDocument):
            yield repaired(item, shift)


def repaired(document: RawDocument, shift: Shift | None) -> RawDocument:
    """Return `document` with each wrong entity moved to its right place, or dropped if that is not known."""
    return _check_offsets(document, shift, Stated(), Tally())


def _check_batch(
    batch: Sequence[tuple[int, RawDocument]], shift: Shift | None, demands: Demands, result: Survey
) -> None:
    documents = [document for _, document in batch]
    checked = [_check_offsets(document, shift, result.stated, result.tally) for document in documents]
    for stated, document in zip(documents, checked, strict=True):
        _check_text(stated, result)
        _check_spans(document, result.tally)
        _check_labels(document, demands.labels, result)
    _check_lengths(documents, demands, result.tally)
    result.first = result.first or str(documents[0].path)
    result.surfaces.update(surfaces_of(checked))
    result.rows.append(rows_of([where for where, _ in batch], checked))


def rows_of(places: Sequence[int], documents: Sequence[RawDocument]) -> Rows:
    """Return what is kept of `documents`, whose places in their part are `places`."""
    import numpy as np

    filled = np.array([bool(document.text.strip()) for document in documents], dtype=bool)
    marks = b"".join(map(_mark, documents))
    return Rows(
        hashed(document.id for document in documents),
        np.array(places, dtype=np.int64),
        np.array([document.line or 0 for document in documents], dtype=np.int64),
        np.frombuffer(marks, dtype=np.uint64),
        filled,
        Fingerprints.of([document.text for document, is_filled in zip(documents, filled, strict=True) if is_filled]),
    )


def annotation_of(document: RawDocument) -> frozenset[tuple[int, int, str]]:
    """Return the entities of a document as a set of (start, end, label)."""
    return frozenset((entity.start, entity.end, entity.label) for entity in document.entities)


def _mark(document: RawDocument) -> bytes:
    """Return a hash of 8 bytes that is the same for documents with the same annotation."""
    annotation = repr(sorted(annotation_of(document))).encode("utf-8", "surrogatepass")
    return blake2b(annotation, digest_size=8).digest()


def _check_offsets(document: RawDocument, shift: Shift | None, stated: Stated, tally: Tally) -> RawDocument:
    """Count wrong offsets and defects. Return the document with each wrong entity moved to its place or dropped."""
    entities = []
    is_changed = False
    stated.entities += len(document.entities)
    for entity in document.entities:
        rule = fault(document, entity)
        if rule is None and entity.surface is not None and entity.defect is None:
            entities.append(entity)
            continue
        where = place_of(document, entity)
        if entity.defect is not None:
            stated.defects[entity.defect.rule] += 1
        if rule is not None:
            is_changed = True
            stated.astray += entity.surface is not None and rule is not Rule.END_MISMATCH
            span = repaired_span(document.text, entity, shift)
            stated.faults[rule, span is not None] += 1
            if rule is Rule.END_MISMATCH:
                stated.ends[entity.end - entity.start - len(entity.surface or "")] += 1
            tally.add(rule, where, f"{shown(document, entity)}, but {_text_at(document, entity)}")
            if span is None:
                continue
            entity = replace(entity, start=span[0], end=span[1])
        entities.append(entity)
        if entity.surface is None and not tally.again(Rule.UNVERIFIED):
            tally.add(Rule.UNVERIFIED, where, shown(document, entity))
        if entity.defect is not None:
            tally.add_defect(entity.defect, where, shown(document, entity))
    return replace(document, entities=tuple(entities)) if is_changed else document


def _text_at(document: RawDocument, entity: RawEntity) -> str:
    """Say what stands in the text at the offsets of a wrong entity."""
    if not 0 <= entity.start <= entity.end <= len(document.text):
        return f"the text has {len(document.text)} characters"
    return f"{excerpt(document.text[entity.start : entity.end])} stands there"


def _check_text(document: RawDocument, result: Survey) -> None:
    text, tally = document.text, result.tally
    result.documents += 1
    result.annotated += bool(document.entities)
    if not text.strip():
        tally.add(Rule.EMPTY_TEXT, place_of(document), excerpt(text))
    if not document.entities:
        tally.add(Rule.WITHOUT_ENTITIES, place_of(document), excerpt(text))
    if len(text) > LONG:
        tally.add(Rule.LONG_TEXT, place_of(document), f"{len(text)} characters: {excerpt(text)}")
    for rule, pattern in _CHARACTERS.items():
        if match := pattern.search(text):
            tally.add(rule, place_of(document), f"U+{ord(match[0]):04X} at character {match.start()}")
    result.composed = result.composed or not unicodedata.is_normalized("NFD", text)
    if not unicodedata.is_normalized("NFC", text):
        composed = unicodedata.normalize("NFC", text)
        first = next((i for i, (old, new) in enumerate(zip(text, composed, strict=False)) if old != new), len(composed))
        example = f"{excerpt(text[first : first + 2])} at character {first}"
        result.decomposed.add(Rule.MIXED_NORMALISATION, place_of(document), example)


def _check_lengths(documents: Sequence[RawDocument], demands: Demands, tally: Tally) -> None:
    if demands.count_tokens is None:
        return
    counts = demands.count_tokens([document.text for document in documents])
    for document, count in zip(documents, counts, strict=True):
        if count > demands.max_tokens:
            example = f"{count} tokens, {demands.max_tokens} allowed: {excerpt(document.text)}"
            tally.add(Rule.TOO_LONG, place_of(document), example)


def _check_spans(document: RawDocument, tally: Tally) -> None:
    """Count repeated entities, spans with several labels, crossing entities and surfaces that occur repeatedly."""
    entities, text = document.entities, document.text
    labels: dict[tuple[int, int], set[str]] = {}
    for entity in entities:
        _check_borders(document, entity, tally)
        surface = text[entity.start : entity.end]
        if text.count(surface) > 1 and not tally.again(Rule.REPEATED_SURFACE):
            tally.add(Rule.REPEATED_SURFACE, place_of(document, entity), excerpt(surface))
        span_labels = labels.setdefault((entity.start, entity.end), set())
        if entity.label in span_labels:
            tally.add(Rule.DUPLICATE_ANNOTATION, place_of(document, entity), shown(document, entity))
        span_labels.add(entity.label)
    for (start, end), span_labels in labels.items():
        if len(span_labels) > 1:
            example = f"{excerpt(text[start:end])} [{start}, {end}): {', '.join(sorted(span_labels))}"
            tally.add(Rule.TWO_LABELS, place_of(document), example)
    spans = sorted(labels)
    crossing: dict[tuple[int, int], tuple[int, int]] = {}
    for number, (start, end) in enumerate(spans):
        for later in spans[number + 1 :]:
            if later[0] >= end:
                break
            if start < later[0] and end < later[1]:
                crossing.setdefault((start, end), later)
                crossing.setdefault(later, (start, end))
    for entity in entities:
        if crossed := crossing.get((entity.start, entity.end)):
            example = f"{shown(document, entity)} and {excerpt(text[slice(*crossed)])} [{crossed[0]}, {crossed[1]})"
            tally.add(Rule.CROSSING, place_of(document, entity), example)


def _check_borders(document: RawDocument, entity: RawEntity, tally: Tally) -> None:
    """Count an entity that begins or ends with white space, or inside a word."""
    text, start, end = document.text, entity.start, entity.end
    if text[start].isspace() or text[end - 1].isspace():
        tally.add(Rule.EDGE_SPACE, place_of(document, entity), f"{excerpt(text[start:end])} ({entity.label})")
    is_cut = start > 0 and _joins(text[start - 1]) and _joins(text[start])
    if is_cut or (end < len(text) and _joins(text[end - 1]) and _joins(text[end])):
        around = text[max(start - _AROUND, 0) : end + _AROUND]
        tally.add(Rule.CUT_WORD, place_of(document, entity), f"{shown(document, entity)} in {excerpt(around)}")


@lru_cache(maxsize=10_000)
def _joins(character: str) -> bool:
    """Return whether `character` is a letter or a combining mark of a script with spaces between words."""
    return _UNSPACED.match(character) is None and unicodedata.category(character)[0] in "LM"


def _check_labels(document: RawDocument, schema: Collection[str], result: Survey) -> None:
    """Count the entities of each label, and those with a label that is not in `schema`, if `schema` is not empty."""
    result.labels.count(document)
    for entity in document.entities if schema else ():
        if entity.label not in schema and not result.tally.again(Rule.LABEL_OUTSIDE):
            close = closest(entity.label, schema)
            hint = f"; did you mean {close!r}?" if close else ""
            result.tally.add(Rule.LABEL_OUTSIDE, place_of(document, entity), shown(document, entity) + hint)
