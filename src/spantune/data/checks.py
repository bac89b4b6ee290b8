"""Check annotated files, the splits of one corpus: `check(sources, demands)` applies every rule of `rules`.

A wrong entity is counted once and then moved to its place or dropped, so that one fault is not reported as five. A
document that cannot be read is counted and skipped. All documents are held in memory, because half of the rules compare
documents. Whether an annotation is medically or linguistically right is not checked.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from spantune.core import DataError, closest
from spantune.data import formats
from spantune.data.duplicates import check_repetition
from spantune.data.findings import Report, Tally, excerpt, place, place_of, shown
from spantune.data.offsets import ENOUGH, Shift, fault, repaired_span, shared_shift
from spantune.data.raw import faithful
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, SurrogateError
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE
from spantune.data.raw.units import trimmed
from spantune.data.rules import LONG, RARE, Rule

_CHARACTERS = {
    Rule.CONTROL_CHARACTER: re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]"),
    Rule.ZERO_WIDTH_CHARACTER: re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"),
}
FILE_RULES = {BOM_NOTE: Rule.BYTE_ORDER_MARK, CRLF_NOTE: Rule.CRLF}
"""The rule for each note that a reader makes of a whole file."""

_MANY = 100  # documents; if so many all have entities, that is not chance


class _Fault(NamedTuple):
    """An entity with wrong offsets, the rule that it breaks, and whether it can be repaired."""

    rule: Rule
    entity: RawEntity
    is_repairable: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A file as its reader reports it; `notes` are the reader's notes with their counts."""

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
    """What a corpus is checked against besides the rules: a label set, and a token budget with its token counter."""

    labels: Collection[str] = ()
    max_tokens: int = 0
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None


def read_source(file: str | Path, format: str | None = None, options: Options | None = None) -> Source:
    """Read `file` without raising for single documents: their errors are among the items.

    Raises:
        DataError: the file cannot be read at all, or not to its end.
    """
    notes: Counter[str] = Counter()
    path = formats.resolve(file)
    name = format or formats.detect(path, options or Options())
    items = tuple(formats.items(path, name, notes, options or Options()))
    return Source(path, name, items, dict(+notes))


def check(sources: Sequence[Source], demands: Demands, tally: Tally | None = None) -> Report:
    """Check `sources`, the splits of one corpus, and add the findings to `tally` if one is given."""
    tally = tally or Tally()
    splits: list[list[RawDocument]] = []
    for source in sources:
        _check_items(source, tally)
        splits.append(_check_offsets(source.documents, source.path.name, tally))
        _check_texts(source.documents, tally)
        _check_lengths(source.documents, demands, tally)
    documents = [document for split in splits for document in split]
    _check_normalisation(documents, tally)
    for document in documents:
        _check_spans(document, tally)
    _check_labels(documents, demands.labels, tally)
    _check_spellings(documents, tally)
    _check_files(splits, tally)
    for case in inconsistencies(documents):
        example = (
            f"{excerpt(case.whole)} {case.times} times, only {excerpt(case.part)} in it {case.cut} times ({case.label})"
        )
        tally.add(Rule.BOUNDARY_INCONSISTENCY, place_of(case.document), example)
    check_repetition(splits, tally)
    entities = sum(len(document.entities) for source in sources for document in source.documents)
    return Report(tuple(str(source.path) for source in sources), len(documents), entities, tally.findings())


def of_file(notes: Mapping[str, int]) -> Iterator[tuple[Rule, str, int]]:
    """Yield the rule, the note and its count for each of a reader's `notes` that is a finding about the whole file."""
    for note, count in notes.items():
        rule = Rule.META_LEFT_OUT if note.startswith(faithful.NOTE) else FILE_RULES.get(note)
        if rule is not None and count:
            yield rule, note, count


def _check_items(source: Source, tally: Tally) -> None:
    """Count documents that could not be read, repeated ids, and the reader's notes of the whole file."""
    ids: set[str] = set()
    for item in source.items:
        if isinstance(item, DataError):
            rule = Rule.LONE_SURROGATE if isinstance(item, SurrogateError) else Rule.UNREADABLE
            example = f"field {item.field}: {item.message}" if item.field else item.message
            tally.add(rule, place(item.path or source.path, item.line), example)
            continue
        if item.id in ids:
            tally.add(Rule.REPEATED_ID, place_of(item), excerpt(item.id))
        ids.add(item.id)
    for rule, note, count in of_file(source.notes):
        tally.add(rule, str(source.path), note, count)


def _check_offsets(documents: Sequence[RawDocument], file: str, tally: Tally) -> list[RawDocument]:
    """Count wrong offsets and defects, and return the documents with wrong entities moved to their place or dropped."""
    shift = shared_shift(documents)
    faults: list[_Fault] = []
    checked = []
    for document in documents:
        entities = []
        for entity in document.entities:
            rule = fault(document, entity)
            if rule is None and entity.surface is not None and entity.defect is None:
                entities.append(entity)
                continue
            where = place_of(document, entity)
            if rule is not None:
                span = repaired_span(document.text, entity, shift)
                faults.append(_Fault(rule, entity, span is not None))
                tally.add(rule, where, f"{shown(document, entity)}, but {_text_at(document, entity)}")
                if span is None:
                    continue
                entity = replace(entity, start=span[0], end=span[1])
            entities.append(entity)
            if entity.surface is None:
                tally.add(Rule.UNVERIFIED, where, shown(document, entity))
            if entity.defect is not None:
                tally.add_defect(entity.defect, where, shown(document, entity))
        checked.append(replace(document, entities=tuple(entities)))
    _explain(documents, faults, shift, file, tally)
    return checked


def _text_at(document: RawDocument, entity: RawEntity) -> str:
    """Say what the text has at the offsets of a wrong entity."""
    if not 0 <= entity.start <= entity.end <= len(document.text):
        return f"the text has {len(document.text)} characters"
    return f"{excerpt(document.text[entity.start : entity.end])} stands there"


def _explain(
    documents: Sequence[RawDocument], faults: Sequence[_Fault], shift: Shift | None, file: str, tally: Tally
) -> None:
    """Add to each finding how many entities it concerns, what they have in common and how many can be repaired."""
    entities = [entity for document in documents for entity in document.entities]

    def share(count: int) -> str:
        return f"{'all' if count == len(entities) else f'{count} of the'} {len(entities)} entities of {file}"

    for rule, count in Counter(entity.defect.rule for entity in entities if entity.defect).items():
        tally.explain(rule, share(count))
    for rule, count in Counter(wrong.rule for wrong in faults).items():
        same = [wrong for wrong in faults if wrong.rule is rule]
        is_end = rule is Rule.END_MISMATCH
        common = _shared_end([wrong.entity for wrong in same]) if is_end else str(shift or "")
        repairable = sum(wrong.is_repairable for wrong in same)
        tally.explain(rule, f"{share(count)}{common and f' ({common})'}, --fix mends {repairable}")


def _shared_end(entities: Sequence[RawEntity]) -> str:
    """Say how the ends of `entities`, which have a text, are wrong; "" if they have nothing in common."""
    distances = Counter(entity.end - entity.start - len(entity.surface or "") for entity in entities)
    by, count = distances.most_common(1)[0]
    return f"each end is {abs(by)} too {'small' if by < 0 else 'large'}" if count >= ENOUGH * len(entities) else ""


def _check_texts(documents: Sequence[RawDocument], tally: Tally) -> None:
    for document in documents:
        text = document.text
        if not text.strip():
            tally.add(Rule.EMPTY_TEXT, place_of(document), excerpt(text))
        if not document.entities:
            tally.add(Rule.WITHOUT_ENTITIES, place_of(document), excerpt(text))
        if len(text) > LONG:
            tally.add(Rule.LONG_TEXT, place_of(document), f"{len(text)} characters: {excerpt(text)}")
        for rule, pattern in _CHARACTERS.items():
            if match := pattern.search(text):
                tally.add(rule, place_of(document), f"U+{ord(match[0]):04X} at character {match.start()}")
    if len(documents) >= _MANY and all(document.entities for document in documents):
        tally.add(Rule.NO_NEGATIVES, str(documents[0].path), f"{len(documents)} documents, all with entities")


def _check_lengths(documents: Sequence[RawDocument], demands: Demands, tally: Tally) -> None:
    if demands.count_tokens is None:
        return
    counts = demands.count_tokens([document.text for document in documents])
    for document, count in zip(documents, counts, strict=True):
        if count > demands.max_tokens:
            example = f"{count} tokens, {demands.max_tokens} allowed: {excerpt(document.text)}"
            tally.add(Rule.TOO_LONG, place_of(document), example)


def _check_normalisation(documents: Iterable[RawDocument], tally: Tally) -> None:
    """Count the texts that are not NFC if others have composed characters: one letter is then written in two ways."""
    decomposed = [document for document in documents if not unicodedata.is_normalized("NFC", document.text)]
    if not decomposed or all(unicodedata.is_normalized("NFD", document.text) for document in documents):
        return
    for document in decomposed:
        text = document.text
        composed = unicodedata.normalize("NFC", text)
        first = next((i for i, (old, new) in enumerate(zip(text, composed, strict=False)) if old != new), len(composed))
        tally.add(
            Rule.MIXED_NORMALISATION, place_of(document), f"{excerpt(text[first : first + 2])} at character {first}"
        )


def _check_spans(document: RawDocument, tally: Tally) -> None:
    """Count repeated entities, spans with several labels, crossing entities and surfaces that occur repeatedly."""
    entities, text = document.entities, document.text
    labels: dict[tuple[int, int], set[str]] = {}
    for entity in entities:
        _check_borders(document, entity, tally)
        if text.count(surface := text[entity.start : entity.end]) > 1:
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
    if trimmed(text, start, end) != (start, end):
        tally.add(Rule.EDGE_SPACE, place_of(document, entity), f"{excerpt(text[start:end])} ({entity.label})")
    if any(0 < border < len(text) and _is_in_word(text[border - 1], text[border]) for border in (start, end)):
        around = text[max(start - _AROUND, 0) : end + _AROUND]
        tally.add(Rule.CUT_WORD, place_of(document, entity), f"{shown(document, entity)} in {excerpt(around)}")


def _is_in_word(left: str, right: str) -> bool:
    """Whether both are letters, or a letter and its mark, of a script with spaces between words."""
    return (
        _UNSPACED.match(left) is None
        and _UNSPACED.match(right) is None
        and unicodedata.category(left)[0] in "LM"
        and unicodedata.category(right)[0] in "LM"
    )


def _check_labels(documents: Sequence[RawDocument], schema: Collection[str], tally: Tally) -> None:
    """Count the entities whose label is not in a non-empty `schema`, and the labels with few examples."""
    counts: Counter[str] = Counter(dict.fromkeys(schema, 0))
    first: dict[str, str] = {}
    for document in documents:
        for entity in document.entities:
            counts[entity.label] += 1
            if counts[entity.label] == 1:
                first[entity.label] = place_of(document, entity)
            if schema and entity.label not in schema:
                close = closest(entity.label, schema)
                hint = f"; did you mean {close!r}?" if close else ""
                tally.add(Rule.LABEL_OUTSIDE, place_of(document, entity), shown(document, entity) + hint)
    for label, count in counts.items():
        if count < RARE and documents:
            tally.add(Rule.RARE_LABEL, first.get(label, str(documents[0].path)), f"{label}: {count}")


def _check_spellings(documents: Iterable[RawDocument], tally: Tally) -> None:
    """Count the labels that differ from a more frequent one in case or width only."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for document in documents:
        for entity in document.entities:
            counts[entity.label] += 1
            first.setdefault(entity.label, place_of(document, entity))
    frequent: dict[str, str] = {}
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        other = frequent.setdefault(unicodedata.normalize("NFKC", label).casefold(), label)
        if other != label:
            tally.add(Rule.LABEL_SPELLING, first[label], f"{label} {count} times, {other} {counts[other]} times")


def _check_files(splits: Sequence[Sequence[RawDocument]], tally: Tally) -> None:
    """Count the labels that only one of several annotated files has."""
    annotated = [split for split in splits if any(document.entities for document in split)]
    places: dict[str, list[str]] = {}
    for split in annotated:
        first: dict[str, str] = {}
        for document in split:
            for entity in document.entities:
                if entity.label not in first:
                    first[entity.label] = place_of(document, entity)
        for label, where in first.items():
            places.setdefault(label, []).append(where)
    for label, where_of_label in places.items():
        if len(annotated) > 1 and len(where_of_label) == 1:
            tally.add(Rule.LABEL_IN_ONE_FILE, where_of_label[0], f"{label}: in one of {len(annotated)} files")


_AROUND = 10  # characters shown around a cut word
_UNSPACED = re.compile(  # Thai, Lao, Tibetan, Burmese; Hangul, whose particles join the word; Khmer and the Tai scripts
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\ua4cf\ua9e0-\ua9ff"
    "\uaa60-\uaadf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00016fe0-\U00018d08\U0001b000-\U0001b2ff"
    "\U00020000-\U000323af]"
)
_WIDE = "\u2e80"  # the first character of the scripts without spaces between words
_LONGEST = 4  # characters of a word in such a script
_BEFORE = re.compile(r"[^\s\u2e80-\U0010ffff]+\s?$")
_AFTER = re.compile(r"\s?[^\s\u2e80-\U0010ffff]+")
_REACH = 40  # characters within which a word must end


@dataclass(slots=True)
class Inconsistency:
    """The surface `whole` is annotated `times` times, and only `part` of it `cut` times, first in `document`."""

    label: str
    whole: str
    part: str
    times: int
    document: RawDocument
    cut: int = 0


def inconsistencies(documents: Iterable[RawDocument]) -> list[Inconsistency]:
    """Find the surfaces that are annotated sometimes with and sometimes without a word at their edge."""
    documents = list(documents)
    surfaces = Counter(
        (entity.label, document.text[entity.start : entity.end])
        for document in documents
        for entity in document.entities
    )
    cases: dict[tuple[str, str, str], Inconsistency] = {}
    for document in documents:
        spans = {(entity.start, entity.end, entity.label) for entity in document.entities}
        for start, end, label in sorted(spans):
            for left, right in _wider(document.text, start, end):
                whole = document.text[left:right]
                if (label, whole) in surfaces and (left, right, label) not in spans:
                    part = document.text[start:end]
                    times = surfaces[label, whole]
                    case = cases.setdefault((label, whole, part), Inconsistency(label, whole, part, times, document))
                    case.cut += 1
    return list(cases.values())


def _wider(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans that are wider by a word on the left, and those by a word on the right."""
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


def _is_ideograph(character: str) -> bool:
    """Whether `character` is a letter of a script without spaces between words."""
    return character >= _WIDE and character.isalnum()
