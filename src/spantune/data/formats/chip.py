"""CHIP 2020's text: `sentence|||start    end    type|||start    end    type|||` a line, `end` inclusive, from 0.

The file states no surfaces. Offsets can therefore not be verified, except that they are inside the sentence; this is
noted. Start, end and type may be separated by any number of blanks; four spaces are written. A sentence with a line
break, with `|||` or with a `|` at its end cannot be written and is refused, as is a label with white space or with `|`
at an edge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import DataError, Document, Entity, replacing
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.text_files import read_lines

_BAR = "|||"
_ENTITY = re.compile(r"[ \t]*([0-9]{1,12})[ \t]+([0-9]{1,12})[ \t]+([^\s]+)[ \t]*")
_CLAIM = re.compile(rf"\|\|\|{_ENTITY.pattern}\|\|\|\s*$")
_BOM = "\ufeff"


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    return any(_CLAIM.search(line) for line in sample.text.split("\n"))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the sentences of `path`, with the ids `<stem>-<line>`."""
    for number, line in read_lines(path, notes, encoding=options.encoding):
        try:
            text, entities = _parse(line)
        except DataError as error:
            yield DataError(error.message, path=path, line=number, field=error.field)
            continue
        yield RawDocument(f"{path.stem}-{number}", text, entities, path, number)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one on each line; `notes` counts what the format cannot hold.

    Raises:
        DataError: a text or a label cannot be written on a line, or the file cannot be written.
    """
    with replacing(path) as file:
        for number, document in enumerate(documents):
            if number == 0 and document.text.startswith(_BOM):
                file.write("\n")  # reading would remove a byte-order mark at the very beginning of the file
            file.write(_line(document) + "\n")
            notes["id left out"] += 1
            notes["meta left out"] += bool(document.meta)
            notes["score left out"] += sum(entity.score is not None for entity in document.entities)


def _parse(line: str) -> tuple[str, tuple[RawEntity, ...]]:
    text, bar, rest = line.partition(_BAR)
    if not bar:
        raise DataError(
            f"found no ||| in {line[:40]!r}; expected sentence|||start    end    type|||…, or sentence||| for one "
            "without entities: add it"
        )
    stated = rest.rstrip(" \t").split(_BAR)
    if stated.pop():
        raise DataError(f"the line ends in {line[-20:]!r}; expected ||| after the last entity: is it cut off? Add it")
    return text, tuple(_entity(entity, f"entity {index}") for index, entity in enumerate(stated, 1))


def _entity(stated: str, field: str) -> RawEntity:
    if not (match := _ENTITY.fullmatch(stated)):
        raise DataError(
            f"found {stated[:40]!r}; expected start, inclusive end and type, blanks between them: mend it (a sentence "
            "that contains ||| cannot be told from entities)",
            field=field,
        )
    start, end = int(match[1]), int(match[2])
    if end < start:
        raise DataError(
            f"found the end {end} before the start {start}; expected an inclusive end, {start} for one character: "
            "mend it",
            field=field,
        )
    return RawEntity(start, end + 1, match[3], field=field)


def _line(document: Document) -> str:
    text = document.text
    if "\n" in text or _BAR in text or text.endswith("|"):
        raise DataError(
            f"document {document.id!r}: a text with a line break, with ||| or with | at its end cannot stand before "
            "|||; split it, or write another format",
            field="text",
        )
    entities = "".join(
        f"{entity.start}    {entity.end - 1}    {_label(document, entity)}{_BAR}" for entity in document.entities
    )
    return text + _BAR + entities


def _label(document: Document, entity: Entity) -> str:
    label = entity.label
    if not _ENTITY.fullmatch(f"0 0 {label}") or label != label.strip() or _BAR in label or "|" in (label[0], label[-1]):
        raise DataError(
            f"document {document.id!r}: the label {label!r} is empty, has white space in it, ||| or | at an edge; "
            "rename it, or write another format",
            field="entities",
        )
    return label
