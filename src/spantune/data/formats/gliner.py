"""GLiNER's training data: a JSON array, or JSONL, of `{"tokenized_text": […], "ner": [[first, last, "label"], …]}`.

Token numbers count from 0, and the last one is inclusive. The text is joined from the tokens by the rule of `tokens`.
The tokens are kept in the document's meta if cutting the text would give others. Labels stay as they are written.

The layouts of two models with spans of tokens are read too:

- W2NER: `{"sentence": […], "ner": [{"index": [0, 1], "type": "label"}]}`, with the numbers of all tokens of an entity.
- SpERT: `{"tokens": […], "entities": [{"start": 0, "end": 2, "type": "label"}]}`, where the end is exclusive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from spantune.core import Document
from spantune.data.raw import tagged, tokens
from spantune.data.raw.document import (
    SEVERAL_PARTS,
    Item,
    Options,
    RawDocument,
    RawEntity,
    Sample,
    each,
    with_meta,
)
from spantune.data.raw.json_files import read_json, write_json
from spantune.data.raw.json_records import Record, document_id

_TOKENS, _SPANS = "tokenized_text", "ner"


class _Span(NamedTuple):
    """An entity as a file states it: its record, the numbers of its first and its last token, and its label."""

    row: Record
    first: int
    last: int
    label: str


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    for layout in _LAYOUTS:
        rows = record.get(layout.entities)
        if isinstance(record.get(layout.tokens), list) and isinstance(rows, list):
            return layout is _GLINER or all(isinstance(row, dict) for row in rows)
    return False


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    census = tokens.TokenCensus()
    for record in read_json(path, Counter(), options.encoding):
        words = record.values.get(_layout(record).tokens) if isinstance(record, Record) else None
        for index, word in enumerate(words if isinstance(words, list) else []):
            if isinstance(word, str) and word:
                census.add(word, index == 0)
    joiner = "" if options.joiner is None and census.cjk and census.characters else options.joiner
    return each(read_json(path, notes, options.encoding), lambda record: _document(record, joiner, notes))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`: as JSONL if its name ends in `.jsonl`, else as an array; `notes` counts losses.

    Raises:
        DataError: an entity begins or ends with white space, a meta key is one of the layout's own fields, or the file
            cannot be written.
    """
    tokenizer = tagged.Tokenizer(notes, options.joiner)
    write_json(path, (_record(document, tokenizer) for document in documents))
    tokenizer.finish()


def _gliner_spans(record: Record, notes: Counter[str]) -> Iterator[_Span]:
    for index, value in enumerate(record.items("ner")):
        row = record.cells(f"ner[{index}]", value, "[first, last, label]")
        yield _Span(row, row.integer("[0]"), row.integer("[1]"), row.text("[2]"))


def _w2ner_spans(record: Record, notes: Counter[str]) -> Iterator[_Span]:
    for row in record.rows("ner"):
        stated = row.items("index")
        numbers = [number for number in stated if type(number) is int]
        if not numbers or len(numbers) < len(stated) or numbers != sorted(set(numbers)):
            raise row.error("expected the numbers of the entity's tokens, such as [3, 4]: mend them", "index")
        notes[SEVERAL_PARTS] += numbers[-1] - numbers[0] >= len(numbers)
        yield _Span(row, numbers[0], numbers[-1], row.text("type"))


def _spert_spans(record: Record, notes: Counter[str]) -> Iterator[_Span]:
    for row in record.rows("entities"):
        yield _Span(row, row.integer("start"), row.integer("end") - 1, row.text("type"))


@dataclass(frozen=True)
class _Layout:
    """A layout: its fields of tokens and of entities, how it states the entities, and what it counts as their end."""

    tokens: str
    entities: str
    spans: Callable[[Record, Counter[str]], Iterator[_Span]]
    end: str = "the last inclusive"


_GLINER = _Layout(_TOKENS, _SPANS, _gliner_spans)
_LAYOUTS = (
    _GLINER,
    _Layout("sentence", "ner", _w2ner_spans),
    _Layout("tokens", "entities", _spert_spans, end="the end exclusive"),
)


def _layout(record: Record) -> _Layout:
    return next((layout for layout in _LAYOUTS if layout.tokens in record.values), _GLINER)


def _document(record: Record, joiner: str | None, notes: Counter[str]) -> RawDocument:
    layout = _layout(record)
    words = tagged.words_in(record, layout.tokens)
    text, places = tokens.join(words, joiner)
    notes[tagged.JOINED] += 1
    entities = []
    for row, first, last, label in layout.spans(record, notes):
        if not 0 <= first <= last < len(words):
            raise row.error(
                f"found tokens {first} to {last} of {len(words)}; expected the numbers of the first and the last token "
                f"from 0, {layout.end}: mend them"
            )
        start, end = places[first][0], places[last][1]
        entities.append(RawEntity(start, end, label, text[start:end], field=row.inside.rstrip(".")))
    name, meta = document_id(record, notes), record.others(("id", layout.tokens, layout.entities))
    document = RawDocument(name, text, tuple(entities), record.path, record.line, meta, is_counted=True)
    return tagged.with_tokens(document, words)


def _record(document: Document, tokenizer: tagged.Tokenizer) -> dict[str, object]:
    words, spans = tokenizer.words(document, document.entities)
    rows = [[first, end - 1, e.label] for (first, end), e in zip(spans, document.entities, strict=True)]
    tokenizer.notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    meta = {key: value for key, value in document.meta.items() if key != tagged.KEPT_TOKENS}
    record: dict[str, object] = {"id": document.id, _TOKENS: words, _SPANS: rows}
    return with_meta(record, replace(document, meta=meta), ())
