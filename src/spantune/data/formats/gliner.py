"""GLiNER's training data: a JSON array, or JSONL, of `{"tokenized_text": […], "ner": [[first, last, "label"], …]}`.

Token numbers count from 0, and the last one is inclusive. The text is joined from the tokens by the rule of `tokens`.
The tokens are kept in the document's meta if cutting the text would give others. Labels stay as they are written.
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


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    return isinstance(record.get(_TOKENS), list) and isinstance(record.get(_SPANS), list)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    census = tokens.TokenCensus()
    for record in read_json(path, Counter(), options.encoding):
        words = record.values.get(_TOKENS) if isinstance(record, Record) else None
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


def _document(record: Record, joiner: str | None, notes: Counter[str]) -> RawDocument:
    words = tagged.words_in(record, _TOKENS)
    text, spans = tokens.join(words, joiner)
    notes[tagged.JOINED] += 1
    entities = []
    for index, value in enumerate(record.items(_SPANS)):
        row = record.cells(f"{_SPANS}[{index}]", value, "[first, last, label]")
        first, last, label = row.integer("[0]"), row.integer("[1]"), row.text("[2]")
        if not 0 <= first <= last < len(words):
            raise row.error(
                f"found tokens {first} to {last} of {len(words)}; expected the numbers of the first and the last token "
                "from 0, the last inclusive: mend them"
            )
        start, end = spans[first][0], spans[last][1]
        entities.append(RawEntity(start, end, label, text[start:end], field=row.place("")))
    name, meta = document_id(record, notes), record.others(_FIELDS)
    document = RawDocument(name, text, tuple(entities), record.path, record.line, meta, is_counted=True)
    return tagged.with_tokens(document, words)


def _record(document: Document, tokenizer: tagged.Tokenizer) -> dict[str, object]:
    words, spans = tokenizer.words(document, document.entities)
    rows = [[first, end - 1, e.label] for (first, end), e in zip(spans, document.entities, strict=True)]
    tokenizer.notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    meta = {key: value for key, value in document.meta.items() if key != tagged.KEPT_TOKENS}
    record: dict[str, object] = {"id": document.id, _TOKENS: words, _SPANS: rows}
    return with_meta(record, replace(document, meta=meta), _FIELDS)
