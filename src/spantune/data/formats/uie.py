"""UIE's JSONL (PaddleNLP): `{"content", "result_list": [{"text", "start", "end"}], "prompt": "label"}` a line.

Each line asks for one label. The lines with the same content are one document, so the file is held in memory as a
whole. Ends are half-open, and `text` must stand at its offsets. A prompt for a relation, `<entity>的<relation>`, is
left out and counted. Writing asks for every label of the corpus in every document, with an empty list if there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spantune.core import DataError, Document
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.json_files import read_json, write_json_lines
from spantune.data.raw.json_records import Record

_FIELDS = ("content", "result_list", "prompt")
_OF = "的"


@dataclass(slots=True)
class _Content:
    """The lines with the same content: the first line, the number of the document, and the entities by prompt.

    `error` is the first error in one of the lines.
    """

    line: int
    number: int
    prompts: dict[str, list[RawEntity]] = field(default_factory=dict)
    error: DataError | None = None


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    return isinstance(record.get("result_list"), list) and {"content", "prompt"} <= set(record)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path` in the order of their first lines, with the ids `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    contents: dict[str, _Content] = {}
    for record in read_json(path, notes, options.encoding):
        if isinstance(record, DataError):
            yield record
            continue
        try:
            text = record.text("content", blank=True)
        except DataError as error:
            yield error
            continue
        content = contents.setdefault(text, _Content(record.line, len(contents) + 1))
        try:
            prompt = record.text("prompt")
            content.prompts.setdefault(prompt, []).extend(
                _entity(row, prompt, notes) for row in record.rows(_FIELDS[1])
            )
        except DataError as error:
            content.error = content.error or error
        for name in record.others(_FIELDS):
            notes[f"field {name!r} not read"] += 1
    for text, content in contents.items():
        name = f"{path.stem}-{content.number}"
        if content.error:
            yield content.error
        else:
            yield RawDocument(name, text, tuple(_entities(content, notes)), path, content.line)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, with a line for each document and each label of the corpus.

    Raises:
        DataError: no document has an entity, or the file cannot be written.
    """
    documents = list(documents)
    labels = list(dict.fromkeys(entity.label for document in documents for entity in document.entities))
    if documents and not labels:
        raise DataError(
            "no document has an entity; expected at least one label, which a line needs: write another format"
        )
    write_json_lines(path, (_line(document, label) for document in documents for label in labels))
    texts = {document.text for document in documents}
    notes["text of an earlier document: reading joins the two"] += len(documents) - len(texts)
    notes["id left out"] += len(documents)
    notes["meta left out"] += sum(bool(document.meta) for document in documents)
    notes["score left out"] += sum(e.score is not None for document in documents for e in document.entities)


def _entity(row: Record, prompt: str, notes: Counter[str]) -> RawEntity:
    row.note_others(("text", "start", "end"), notes)
    surface = row.text("text")
    return RawEntity(row.integer("start"), row.integer("end"), prompt, surface, field=row.place("text"))


def _entities(content: _Content, notes: Counter[str]) -> Iterator[RawEntity]:
    """Yield the entities of a content, each once; answers to prompts for relations are left out."""
    subjects = {entity.surface for entities in content.prompts.values() for entity in entities}
    for prompt, entities in content.prompts.items():
        parts = prompt.split(_OF)
        if any(_OF.join(parts[:count]) in subjects for count in range(1, len(parts))):
            notes["prompt of a relation left out"] += 1
            continue
        once = {(entity.start, entity.end): entity for entity in reversed(entities)}
        notes["entity stated again: left out"] += len(entities) - len(once)
        yield from reversed(once.values())


def _line(document: Document, label: str) -> dict[str, object]:
    rows = [
        {"text": document.surface(entity), "start": entity.start, "end": entity.end}
        for entity in document.entities
        if entity.label == label
    ]
    return {"content": document.text, "result_list": rows, "prompt": label}
