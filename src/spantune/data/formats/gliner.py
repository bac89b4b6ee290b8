"""GLiNER's training data: a JSON array, or JSONL, of `{"tokenized_text": […], "ner": [[first, last, "label"], …]}`.

Token numbers count from 0, and the last one is inclusive. The text is joined from the tokens by the rule of `tokens`.
The tokens are kept in the document's meta if cutting the text would give others. Labels stay as they are written.

The layouts of two models with spans of tokens are read too:

- W2NER: `{"sentence": […], "ner": [{"index": [0, 1], "type": "label"}]}`, with the numbers of all tokens of an entity.
- SpERT: `{"tokens": […], "entities": [{"start": 0, "end": 2, "type": "label"}]}`, where the end is exclusive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from spantune.core import Document, replacing, to_json
from spantune.data.raw import tagged, tokens
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample, each, with_meta
from spantune.data.raw.json_files import read_json
from spantune.data.raw.json_records import Record, document_id

_TOKENS, _SPANS = "tokenized_text", "ner"
_FIELDS = ("id", _TOKENS, _SPANS)
PARTS = "entity of several parts, read from the first to the last"
_LAYOUTS = {_TOKENS: _SPANS, "sentence": "ner", "tokens": "entities"}
"""The field of the entities by the field of the tokens: GLiNER, W2NER, SpERT."""


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    for words, spans in _LAYOUTS.items():
        rows = record.get(spans)
        if isinstance(record.get(words), list) and isinstance(rows, list):
            return words == _TOKENS or all(isinstance(row, dict) for row in rows)
    return False


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    census = tokens.TokenCensus()
    for record in read_json(path, Counter(), options.encoding):
        words = record.values.get(_layout(record)[0]) if isinstance(record, Record) else None
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
    opening, between, closing = ("", "\n", "\n") if path.suffix.lower() == ".jsonl" else ("[\n", ",\n", "\n]\n")
    tokenizer = tagged.Tokenizer(notes, options.joiner)
    with replacing(path) as file:
        before = opening
        for document in documents:
            file.write(before + to_json(_record(document, tokenizer)))
            before = between
        file.write(closing if before == between else opening + closing)
    tokenizer.finish()


def _layout(record: Record) -> tuple[str, str]:
    """Return the fields of the tokens and of the entities."""
    return next(((words, _LAYOUTS[words]) for words in _LAYOUTS if words in record.values), (_TOKENS, _SPANS))


def _document(record: Record, joiner: str | None, notes: Counter[str]) -> RawDocument:
    of_words, of_spans = _layout(record)
    words = tagged.words_in(record, of_words)
    text, spans = tokens.join(words, joiner)
    notes[tagged.JOINED] += 1
    entities = []
    for row, first, last, label in _rows(record, of_words, of_spans, notes):
        if not 0 <= first <= last < len(words):
            counted = "the end exclusive" if of_spans == "entities" else "the last inclusive"
            raise row.error(
                f"found tokens {first} to {last} of {len(words)}; expected the numbers of the first and the last token "
                f"from 0, {counted}: mend them"
            )
        start, end = spans[first][0], spans[last][1]
        entities.append(RawEntity(start, end, label, text[start:end], field=row.inside.rstrip(".")))
    name, meta = document_id(record, notes), record.others(("id", of_words, of_spans))
    document = RawDocument(name, text, tuple(entities), record.path, record.line, meta, is_counted=True)
    return tagged.with_tokens(document, words)


def _rows(record: Record, of_words: str, of_spans: str, notes: Counter[str]) -> Iterator[tuple[Record, int, int, str]]:
    """Yield for each entity its record, the numbers of its first and its last token, and its label."""
    if of_words == _TOKENS:
        for index, value in enumerate(record.items(of_spans)):
            row = record.cells(f"{of_spans}[{index}]", value, "[first, last, label]")
            yield row, row.integer("[0]"), row.integer("[1]"), row.text("[2]")
        return
    for row in record.rows(of_spans):
        if of_spans == _SPANS:
            stated = row.items("index")
            numbers = [number for number in stated if type(number) is int]
            if not numbers or len(numbers) < len(stated) or numbers != sorted(set(numbers)):
                raise row.error("expected the numbers of the entity's tokens, such as [3, 4]: mend them", "index")
            notes[PARTS] += numbers[-1] - numbers[0] >= len(numbers)
            yield row, numbers[0], numbers[-1], row.text("type")
        else:
            yield row, row.integer("start"), row.integer("end") - 1, row.text("type")


def _record(document: Document, tokenizer: tagged.Tokenizer) -> dict[str, object]:
    words, spans = tokenizer.words(document, document.entities)
    rows = [[first, end - 1, e.label] for (first, end), e in zip(spans, document.entities, strict=True)]
    tokenizer.notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    meta = {key: value for key, value in document.meta.items() if key != tagged.KEPT_TOKENS}
    record: dict[str, object] = {"id": document.id, _TOKENS: words, _SPANS: rows}
    return with_meta(record, replace(document, meta=meta), _FIELDS)
