"""Tokens and tags as Hugging Face data sets have them, as JSON lines, a JSON array or Parquet, a document a row.

A row is `{"tokens": ["EU", …], "ner_tags": ["B-ORG", …]}`. Other usual names (`words`, `tags`, `ner`, `labels`) are
known, and the option `column` can name any column of tags. `{"text": "患者", "labels": ["B-x", "I-x"]}` has a tag for
each character. Tags may be numbers if a Parquet file names their classes, in the metadata `huggingface` of its schema.
Other columns become the document's meta, and meta is written as fields. JSON lines are written, which `run_ner.py` of
transformers can read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spantune.core import DataError, Document, need
from spantune.data.raw import tabular, tags
from spantune.data.raw.document import Item, Options, Sample, each, with_meta
from spantune.data.raw.json_files import read_json, write_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.tagged import KEPT_TOKENS, Tagged, Tokenizer, class_names
from spantune.data.raw.text_files import cannot_be_read, read_bytes

_TOKENS = ("tokens", "words")
_TAGS = ("ner_tags", "ner", "tags", "labels", "ner_labels")
_TEXT = "text"
"""The field of the tokens, as a list or as a string of characters, if there is no field of `_TOKENS`."""
_TEXT_TAGS = (*_TAGS, "label")
_PARQUET = b"PAR1"
_FOOTER = 1 << 20  # the number of last bytes of a Parquet file in which the names of columns are searched


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    if sample.head.startswith(_PARQUET):
        footer = _footer(sample.path)
        named = {name for name in (*_TOKENS, "text", "entities") if bytes([len(name)]) + name.encode() in footer}
        return not named.isdisjoint(_TOKENS) and not {"text", "entities"} <= named
    record = sample.record or {}
    if any(tags.are_tags_of(record.get(_TEXT), record.get(column)) for column in _TEXT_TAGS):
        return True
    return any(
        isinstance(record.get(words), list) and isinstance(record.get(column), list)
        for words in _TOKENS
        for column in _TAGS
    )


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<row>`, with rows from 1.

    Raises:
        DataError: a column is missing, or the rest of the file cannot be read.
        ConfigError: the file is Parquet, and pyarrow is not installed.
    """
    if read_bytes(path, len(_PARQUET)) == _PARQUET:
        return _read_parquet(path, notes, options)
    return _read_rows(partial(read_json, path, encoding=options.encoding), path, notes, options)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as JSON lines; `notes` counts losses.

    Raises:
        DataError: the name ends in `.parquet`, entities overlap and `options.nested` is `error`, one begins or ends
            with white space, a label cannot stand in a tag, a meta key is one of the layout's own fields, or the file
            cannot be written.
    """
    if path.suffix.lower() == ".parquet":
        raise DataError("tokens and tags are written as JSON lines; give a name that ends in .jsonl", path=path)
    tokenizer = Tokenizer(notes, options.joiner)
    write_json_lines(path, (_record(document, tokenizer, options) for document in documents))
    tokenizer.finish()


def _record(document: Document, tokenizer: Tokenizer, options: Options) -> dict[str, object]:
    entities = tags.flat(document, options)
    tokenizer.notes["overlapping entity left out"] += len(document.entities) - len(entities)
    tokenizer.notes["score left out"] += sum(entity.score is not None for entity in entities)
    words, spans = tokenizer.words(document, entities)
    chunks = []
    for (start, end), entity in zip(spans, entities, strict=True):
        if tags.parse_tag(f"B-{entity.label}") is None:
            raise DataError(
                f"document {document.id!r}: the label {entity.label!r} is empty or has white space in it, which no tag "
                "can; rename it",
                field="entities",
            )
        chunks.append(tags.Chunk(start, end, entity.label))
    meta = {key: value for key, value in document.meta.items() if key != KEPT_TOKENS}
    record: dict[str, object] = {
        "id": document.id,
        _TOKENS[0]: words,
        _TAGS[0]: tags.encode(len(words), chunks, options.scheme),
    }
    return with_meta(record, replace(document, meta=meta), (*_TOKENS, *_TAGS))


def _read_rows(
    rows: Callable[[Counter[str]], Iterator[Record | DataError]], path: Path, notes: Counter[str], options: Options
) -> Iterator[Item]:
    first = next((record for record in rows(Counter()) if isinstance(record, Record)), None)
    if first is None:
        return (record for record in rows(notes) if isinstance(record, DataError))
    words, column = _columns(list(first.values), options, path)
    tagged = Tagged(words, column, (), notes, options.joiner, keeps_tokens=True, label=options.label)
    return each(rows(notes), tagged.after(rows(Counter())).parse)


def _columns(names: Sequence[str], options: Options, path: Path) -> tuple[str, str]:
    """Return the columns of tokens and of tags among `names`.

    Raises:
        DataError: one of the two is missing.
    """
    words = next((name for name in _TOKENS if name in names), None)
    column = options.column
    known: Sequence[str] = _TAGS
    if words is None and _TEXT in names:
        words, known = _TEXT, _TEXT_TAGS
    if isinstance(column, int):
        column = names[column] if -len(names) <= column < len(names) else str(column)
    if column is None:
        column = next((name for name in known if name in names), None)
    if words is None or column not in names:
        found = ", ".join(map(repr, names)) or "none"
        raise DataError(
            f"there is no column {_TOKENS[0] if words is None else column or _TAGS[0]!r}; columns found: {found}; "
            "expected tokens and a column of tags such as ner_tags: rename it, or name that of the tags (--column "
            "NAME)",
            path=path,
        )
    assert column is not None
    return words, column


def _read_parquet(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    pyarrow, parquet = need("pyarrow", "table"), need("pyarrow.parquet", "table")

    def rows(columns: list[str] | None, row_notes: Counter[str]) -> Iterator[Record]:
        before = 0
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=tabular.BATCH_ROWS, columns=columns):
                yield from tabular.records(batch, before, path, row_notes)
                before += batch.num_rows

    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        words, column = _columns(names, options, path)
        names_of_tags = _class_names(metadata, column)
        tagged = Tagged(words, column, names_of_tags, notes, options.joiner, keeps_tokens=True, label=options.label)
        yield from each(rows(None, notes), tagged.after(rows([words, column], Counter())).parse)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not readable as Parquet: {error}; was it copied or downloaded whole?", path=path) from None


def _class_names(metadata: bytes, column: str) -> tuple[str, ...]:
    """Return the names of the classes of `column` from the metadata that `datasets` writes; () if there are none."""
    try:
        features = json.loads(metadata)["info"]["features"]
        feature = features[column]
    except (ValueError, KeyError, TypeError):
        return ()
    if isinstance(feature, list) and feature:  # versions of `datasets` before 4 may write a list
        feature = {"feature": feature[0]}
    return class_names(feature) if isinstance(feature, Mapping) else ()


def _footer(path: Path) -> bytes:
    """Return the last bytes of a Parquet file, which have the names of its columns.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _FOOTER))
            return file.read()
    except OSError as error:
        raise cannot_be_read(path, error) from None
