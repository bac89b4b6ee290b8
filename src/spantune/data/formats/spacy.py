"""spaCy's DocBin (`.spacy`), the JSONL of Prodigy and of `Doc.to_json`, and spaCy 2's training data as JSON.

The JSONL is `{"text", "spans" or "ents"}`, or `{"text", "entities": [[start, end, label], …]}`. The training data are
`[[text, {"entities": [[start, end, label], …]}], …]`; the module `pairs` reads them, also as ner-annotator wraps them.

Entities are `doc.ents` or a span group. If some entities of a corpus overlap, all are written to the span group "sc",
because a component of spaCy is trained on one of the two. Tokens are made so that every entity begins and ends at the
edge of a token; id and meta are in `user_data`. A DocBin is read as a whole by spaCy's own class, which unpickles
nothing; JSONL is read line by line. A document with two different annotations is refused, unless `options.column` names
one.
"""

from __future__ import annotations

import gc
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from spantune.core import DataError, Document, Entity, need, replacing_path, to_json, to_record
from spantune.data.raw import pairs, tabular, tokens
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample, each
from spantune.data.raw.json_files import begins_array, read_json, write_json_lines
from spantune.data.raw.json_records import Record, document_id
from spantune.data.raw.text_files import read_bytes

_ZLIB = b"\x78"
_KEYS = (b"\xa7version", b"\xa5attrs")  # the first keys of a DocBin, in MessagePack
_GROUP = "sc"  # the default name in spaCy
_FIELDS = ("id", "text", "ents", "spans", "entities", "meta", "answer")
_SPAN_FIELDS = ("token_start", "token_end")
_REFUSED = ("reject", "ignore")
_ANSWERS = ("accept", *_REFUSED)


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    if sample.record is not None:
        if "text" in sample.record and pairs.are_triples(sample.record.get("entities")):
            return True
        if sample.record.get("answer") in _ANSWERS and (
            "_input_hash" in sample.record or "_task_hash" in sample.record
        ):
            return "text" in sample.record  # from Prodigy, which leaves out an empty list
        stated = [sample.record[name] for name in ("ents", "spans") if name in sample.record]
        return "text" in sample.record and "entities" not in sample.record and _are_spans(stated)
    if not sample.head.startswith(_ZLIB):
        return pairs.begins(sample.text.encode("utf-8", "replace") or sample.head)
    try:
        start = zlib.decompressobj().decompress(sample.head, 64)
    except zlib.error:
        return False
    return all(key in start for key in _KEYS)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`, or `<stem>-<line>` in JSONL.

    Raises:
        DataError: the file is neither JSON nor a whole DocBin.
        ConfigError: the file is a DocBin, and spaCy is not installed.
    """
    if read_bytes(path, len(_ZLIB)) == _ZLIB:
        return _read_docs(path, notes, options)
    if pairs.begins(pairs.head_of(path, options.encoding)):
        return pairs.read(path, notes, options.encoding)
    accepted = (record for record in read_json(path, notes, options.encoding) if not _is_refused(record, notes))
    is_array = begins_array(path, options.encoding)
    return each(accepted, lambda record: _of_record(record, notes, options, is_array))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`. The suffix of its name decides how.

    `.jsonl` gives Prodigy's JSONL, `.json` spaCy 2's training data, and `.spacy` a DocBin.

    Raises:
        DataError: the name has another suffix, spaCy cannot hold a document, or the file cannot be written.
        ConfigError: the file is a DocBin, and spaCy is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        write_json_lines(path, map(_record, documents))
    elif suffix == ".json":
        pairs.write(path, documents, notes)
    elif suffix == ".spacy":
        with replacing_path(path) as partial:
            _write_docs(partial, list(documents), notes)
    else:
        raise DataError(
            "the name tells no kind; expected one that ends in .spacy, .jsonl or .json: rename it", path=path
        )


def _record(document: Document) -> dict[str, object]:
    """Return `document` as an object of Prodigy's JSONL."""
    record = to_record(document)
    record["spans"] = record.pop("entities")
    return record


def _are_spans(stated: list[object]) -> bool:
    """Return whether these values are lists of spans, or objects of such lists."""
    lists = [spans for value in stated for spans in (value.values() if isinstance(value, dict) else [value])]
    rows = [row for spans in lists if isinstance(spans, list) for row in spans]
    return (
        bool(stated)
        and all(isinstance(spans, list) for spans in lists)
        and all(isinstance(row, dict) and "start" in row for row in rows[:1])
    )


def _is_refused(record: Record | DataError, notes: Counter[str]) -> bool:
    """Return whether the annotator rejected or ignored the record in Prodigy."""
    answer = None if isinstance(record, DataError) else record.values.get("answer")
    if answer not in _REFUSED:
        return False
    notes[f"document left out: its answer is {answer}"] += 1
    return True


def _of_record(record: Record, notes: Counter[str], options: Options, is_array: bool) -> RawDocument:
    if is_array:
        name = document_id(record, notes)
    elif "id" in record.values:
        name = record.text("id")
    else:
        name = f"{record.path.stem}-{record.line}"
        notes["id made from the line number"] += 1
    stated: dict[str, tuple[RawEntity, ...]] = {}
    if pairs.are_triples(triples := record.values.get("entities")) or (triples == [] and "spans" not in record.values):
        stated["entities"] = pairs.triples(record, "entities")
    if "ents" in record.values:
        stated["ents"] = _spans(record, "ents", notes)
    if isinstance(groups := record.values.get("spans"), dict):
        inside = replace(record, values=groups, inside=record.place("spans."))
        stated |= {key: _spans(inside, key, notes) for key in groups}
    elif groups is not None or (not stated and "answer" not in record.values):  # Prodigy leaves out an empty list
        stated["spans"] = _spans(record, "spans", notes)
    for field in record.others(_FIELDS):
        notes[f"field {field!r} not read"] += 1
    document = RawDocument(name, record.text("text", blank=True), (), record.path, record.line, record.mapping("meta"))
    return _annotated(document, stated, options)


def _spans(record: Record, field: str, notes: Counter[str]) -> tuple[RawEntity, ...]:
    return tuple(tabular.entity(row, notes, _SPAN_FIELDS) for row in record.rows(field))


def _annotated(document: RawDocument, stated: Mapping[str, tuple[RawEntity, ...]], options: Options) -> RawDocument:
    """Return `document` with its only annotation, or with the one that the options name.

    Raises:
        DataError: the named one is missing, or there are several that differ.
    """
    if isinstance(options.column, str) and stated:
        if options.column not in stated:
            raise document.error(f"there are no entities under {options.column!r}; found: {', '.join(stated)}")
        return replace(document, entities=stated[options.column])
    filled = {name: entities for name, entities in stated.items() if entities}
    if len({frozenset((e.start, e.end, e.label) for e in entities) for entities in filled.values()}) > 1:
        raise document.error(
            f"entities stand under {', '.join(filled)} and differ; expected one annotation: name it (--column NAME)"
        )
    return replace(document, entities=next(iter(filled.values()), ()))


def _docs(path: Path) -> Iterator[tuple[Any, dict[str, tuple[RawEntity, ...]]]]:
    """Yield each Doc of a DocBin, with the entities of its ents, if these are annotated, and of its span groups.

    Raises:
        DataError: the rest of the DocBin cannot be read.
    """
    spacy, serialized = need("spacy", "spacy"), need("spacy.tokens", "spacy")
    collecting = gc.isenabled()
    number = 0
    try:
        for doc in serialized.DocBin().from_disk(path).get_docs(spacy.vocab.Vocab()):
            spans = ({"ents": doc.ents} if doc.has_annotation("ENT_IOB") else {}) | dict(doc.spans)
            yield doc, {key: tuple(map(_of_span, group)) for key, group in spans.items()}
            number += 1
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        if collecting:
            gc.enable()  # spaCy's reader leaves it disabled after an error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"not readable as a DocBin after document {number}: {reason}; was it written whole, by spaCy 3?", path=path
        ) from None


def _read_docs(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    for number, (doc, stated) in enumerate(_docs(path), start=1):
        user_data = {key: value for key, value in doc.user_data.items() if isinstance(key, str)}
        name, meta = user_data.pop("id", None), _listed(user_data.pop("meta", {}))
        if not isinstance(name, str) or not name:
            name = f"{path.stem}-{number}"
            notes["id made from the document's number"] += 1
        for key in user_data:
            notes[f"user_data {key!r} not read"] += 1
        if not stated and len(doc):
            notes["document without annotation: read as one without entities"] += 1
        elif "ents" in stated and not doc.has_annotation("ENT_IOB", require_complete=True):
            notes["document annotated in part: the rest read as without entities"] += 1
        document = RawDocument(
            name, doc.text, (), path, number, meta if isinstance(meta, dict) else {"meta": meta}, is_counted=True
        )
        try:
            yield _annotated(document, stated, options)
        except DataError as error:
            yield error


def _of_span(span: Any) -> RawEntity:
    return RawEntity(span.start_char, span.end_char, span.label_, span.text, field="entities")


def _listed(value: object) -> object:
    """Return `value` with lists in place of tuples, since spaCy reads lists as tuples."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _write_docs(partial: Path, documents: list[Document], notes: Counter[str]) -> None:
    spacy, serialized = need("spacy", "spacy"), need("spacy.tokens", "spacy")
    vocab = spacy.vocab.Vocab()
    is_flat = all(a.end <= b.start for document in documents for a, b in pairwise(document.entities))
    docs = serialized.DocBin(attrs=["ENT_IOB", "ENT_TYPE"], store_user_data=True)
    for document in documents:
        doc, spans = _doc(serialized, vocab, document)
        if is_flat:
            doc.set_ents(spans, default="outside")
        else:
            doc.spans[_GROUP] = spans
            notes[f"entities overlap: written to the span group {_GROUP!r}, not to ents"] += 1
        doc.user_data["id"] = document.id
        if document.meta:
            to_json(document.meta)  # raises for NaN and Infinity, which user_data could hold but reading leaves out
            doc.user_data["meta"] = dict(document.meta)
        notes["score left out"] += sum(entity.score is not None for entity in document.entities)
        try:
            docs.add(doc)
        except (OverflowError, TypeError, ValueError) as error:
            raise DataError(f"document {document.id!r}: its meta cannot be in user_data: {error}; change it") from None
    docs.to_disk(partial)


def _doc(serialized: Any, vocab: Any, document: Document) -> tuple[Any, list[Any]]:
    """Return the Doc of `document`, and the entities as spans of the Doc.

    Raises:
        DataError: an entity has no label.
    """
    if unnamed := next((entity for entity in document.entities if not entity.label), None):
        raise DataError(f"document {document.id!r}: the entity at {unnamed.start} has no label; give it one")
    words, spaces, starts, ends = _words(document.text, document.entities)
    doc = serialized.Doc(vocab, words=words, spaces=spaces)
    assert doc.text == document.text
    return doc, [serialized.Span(doc, starts[e.start], ends[e.end] + 1, label=e.label) for e in document.entities]


def _words(text: str, entities: tuple[Entity, ...]) -> tuple[list[str], list[bool], dict[int, int], dict[int, int]]:
    """Return tokens that cover `text`, whether a space follows each, and the index of a token by its start and end.

    As in spaCy, the first space after a token belongs to it, unless an entity begins or ends with this space. Other
    white space is a token.
    """
    starting, ending = {entity.start for entity in entities}, {entity.end for entity in entities}
    words: list[str] = []
    spaces: list[bool] = []
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for start, end in tokens.cut(_covering(text), starting | ending):
        if words and not spaces[-1] and text[start] == " " and start not in starting and start + 1 not in ending:
            spaces[-1] = True
            start += 1
        if start < end:
            starts[start] = ends[end] = len(words)
            words.append(text[start:end])
            spaces.append(False)
    return words, spaces, starts, ends


def _covering(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of the tokens of `text` and of the white space between them."""
    place = 0
    for start, end in [*tokens.split(text), (len(text), len(text))]:
        if place < start:
            yield place, start
        if start < end:
            yield start, end
        place = end
