"""PubTator: `PMID|t|title`, `PMID|a|abstract`, then `PMID⇥start⇥end⇥mention⇥type⇥id` a line; a blank line between.

The text is the title, one space and the abstract. Offsets are half-open code points of this text, and the mention must
stand at them. Ids of entities and lines of relations (`PMID⇥CID⇥D1⇥D2`) are kept in the document's meta and written
back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from spantune.core import DataError, Document, Entity, replacing
from spantune.data.raw.document import (
    Item,
    Options,
    RawDocument,
    RawEntity,
    Sample,
    meta_error,
    stored_meta,
    unwritten_meta,
    with_rows,
)
from spantune.data.raw.text_files import read_lines

NAME = "pubtator"

_SECTION = re.compile(r"([^\s|]{1,100})\|([a-z])\|(.*)", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SENTENCE_END = re.compile(r"[.?!。](?= )")
_COLUMNS = ("id", "start", "end", "mention", "type")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    lines = sample.text.strip("\n").split("\n")
    first = _SECTION.fullmatch(lines[0])
    if first is None or first[2] != "t":
        return False
    return all(_SECTION.fullmatch(line) or "\t" in line for line in takewhile(str.strip, lines))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with their PMIDs as ids.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    block: list[tuple[int, str]] = []
    for number, line in read_lines(path, notes, blank=True, encoding=options.encoding):
        match = _SECTION.fullmatch(line)
        if block and (not line.strip() or (match and match[2] == "t")):
            yield _item(block, path, notes)
            block = []
        if line.strip():
            block.append((number, line))
    if block:
        yield _item(block, path, notes)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`. A text is cut into title and abstract where it was, or after its first sentence.

    Raises:
        DataError: an id, a text, a surface or a label cannot be written on a line, or the file cannot be written.
    """
    with replacing(path) as file:
        for document in documents:
            file.write("".join(f"{line}\n" for line in _lines(document, notes)) + "\n")


def _item(block: list[tuple[int, str]], path: Path, notes: Counter[str]) -> Item:
    try:
        return _document(block, path, notes)
    except DataError as error:
        return error


def _document(block: list[tuple[int, str]], path: Path, notes: Counter[str]) -> RawDocument:
    first, line = block[0]
    opening = _SECTION.fullmatch(line)
    if opening is None:
        raise DataError(
            f"found {line[:40]!r}; expected PMID|t|title, which begins a document: mend it", path=path, line=first
        )
    id, sections = opening[1], []
    entities: list[RawEntity] = []
    rows: list[dict[str, object]] = []
    relations: list[list[str]] = []
    for number, line in block:
        if (match := _SECTION.fullmatch(line)) and match[1] == id and not rows and not relations:
            sections.append(match[3])
            continue
        cells = line.split("\t")
        if cells[0] != id:
            raise DataError(
                f"found {line[:40]!r}; expected a line of the document {id}: mend it", path=path, line=number
            )
        if len(cells) < len(_COLUMNS) or not (_NUMBER.fullmatch(cells[1]) and _NUMBER.fullmatch(cells[2])):
            if len(cells) < 3 or _NUMBER.fullmatch(cells[1]):
                expected = "⇥".join((*_COLUMNS, "concept"))
                raise DataError(
                    f"found {line[:60]!r}; expected {expected}, or a relation: mend it", path=path, line=number
                )
            relations.append(cells[1:])
            continue
        start, end, mention, label = int(cells[1]), int(cells[2]), cells[3], cells[4]
        if not mention or not label:
            raise DataError("the mention or its type is empty; expected both: mend it", path=path, line=number)
        entities.append(RawEntity(start, end, label, mention, field=f"entity {len(entities) + 1}", line=number))
        rows.append({"start": start, "end": end, "label": label, "id": "\t".join(cells[5:])})
    return RawDocument(id, " ".join(sections), tuple(entities), path, first, _meta(sections, rows, relations))


def _meta(sections: list[str], rows: list[dict[str, object]], relations: list[list[str]]) -> dict[str, object]:
    """Return what `write` needs to write the same lines: the end of the title, concepts and relations."""
    meta: dict[str, object] = {}
    if len(sections) > 1:
        meta["title"] = len(sections[0])
    if any(row["id"] for row in rows):
        meta["entities"] = rows
    if relations:
        meta["relations"] = relations
    return {NAME: meta} if meta else {}


def _lines(document: Document, notes: Counter[str]) -> Iterator[str]:
    if not re.fullmatch(r"[^\s|\ufeff]{1,100}", document.id):
        raise DataError(
            f"document {document.id!r}: the id is empty, longer than 100 characters or has white space or a bar in it, "
            "which no line can begin with; change it"
        )
    if re.search(r"[\r\n]", document.text):
        raise DataError(f"document {document.id!r}: a text with a line break cannot be on a line; remove it")
    stored = stored_meta(document, NAME)
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    notes["meta left out"] += bool(set(document.meta) - {NAME}) or unwritten_meta(
        document, NAME, ("title", "entities", "relations")
    )
    title = _title_end(document, stored.get("title"))
    yield f"{document.id}|t|{document.text if title is None else document.text[:title]}"
    if title is not None:
        yield f"{document.id}|a|{document.text[title + 1 :]}"
    pairs, gone = with_rows(document, NAME)
    notes["concept left out: its entity is gone"] += len(gone)
    for entity, row in sorted(pairs, key=lambda pair: pair[0]):
        concept = str(row.get("id", ""))
        if re.search(r"[\r\n]", concept):  # a tab is allowed: it may separate a further column
            raise meta_error(document, NAME, f"found {concept!r:.40} for an id; expected no line break in it")
        yield _entity_line(document, entity, concept)
    relations = stored.get("relations", [])
    if not isinstance(relations, list) or not all(isinstance(cells, list) for cells in relations):
        raise meta_error(document, NAME, f"found {relations!r:.40} for relations; expected lists of strings")
    for cells in relations:
        if any(re.search(r"[\t\r\n]", str(cell)) for cell in cells):
            raise meta_error(document, NAME, f"found {cells!r:.60} in relations; expected no tab or line break in them")
        yield "\t".join([document.id, *map(str, cells)])


def _title_end(document: Document, stored: object) -> int | None:
    """Return the place of the space between title and abstract; None if there is no such space."""
    if isinstance(stored, int) and document.text[stored : stored + 1] == " ":
        return stored
    match = _SENTENCE_END.search(document.text)
    return match.end() if match else None


def _entity_line(document: Document, entity: Entity, concept: str) -> str:
    surface = document.surface(entity)
    if "\t" in surface or re.search(r"[\t\r\n]", entity.label) or not entity.label:
        raise DataError(
            f"document {document.id!r}: {entity.label!r} {surface!r} [{entity.start}, {entity.end}) has a tab or a "
            "line break in it, or no label, which no column can hold; change it",
            field="entities",
        )
    cells = [document.id, str(entity.start), str(entity.end), surface, entity.label]
    return "\t".join([*cells, concept] if concept else cells)
