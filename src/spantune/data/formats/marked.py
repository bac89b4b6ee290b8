r"""Sentences with their entities marked inline, one a line: `{sym|{bod|腹部}胀痛}三天，{ite|体温}正常。`

Marks may be nested. `# group: NAME` opens a group, which becomes the meta of the sentences below it; `# group:` closes
it. Other lines that begin with `#` are comments. A backslash stands before `{`, `}`, `|` and `\` in a text, and before
a `#` at its beginning. Crossing entities, line breaks and blank texts cannot be written and are refused.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spantune.core import DataError, Document, Entity, replacing
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.text_files import read_lines

_HEADING = re.compile(r"#\s*group\s*[:：](.*)")
_MARK = re.compile(r"(?<!\\)\{(?:[^{}|\\\"\n]|\\[{}|\\])+\|")
_SPECIAL = "{}|\\"
_PLAIN = re.compile(r"[^{}|\\]+")
# Special at the beginning of a line only; reading would remove a byte-order mark there.
_SPECIAL_FIRST = "#\ufeff"


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    return any(_HEADING.match(line) or _MARK.search(line) for line in sample.text.split("\n"))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the sentences of `path`, with the ids `<stem>-<line>`; `notes` counts the comment lines."""
    group = ""
    for number, line in read_lines(path, notes, encoding=options.encoding):
        if heading := _HEADING.match(line):
            group = heading[1].strip()
        elif line.startswith("#"):
            notes["comment line"] += 1
        else:
            try:
                text, entities = _Line(line, path, number).parse()
            except DataError as error:
                yield error
                continue
            meta = {"group": group} if group else {}
            yield RawDocument(f"{path.stem}-{number}", text, entities, path, number, meta, is_counted=True)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, with a heading before each group; `notes` counts what the format cannot hold.

    Raises:
        DataError: entities cross, a text or a label cannot be written on a line, or the file cannot be written.
    """
    group = ""
    with replacing(path) as file:
        for document in documents:
            if (its_group := _group(document)) != group:
                group = its_group
                file.write(f"# group: {group}".rstrip() + "\n")
            file.write(_marked(document) + "\n")
            notes["id left out"] += 1
            notes["meta left out"] += bool(set(document.meta) - {"group"})
            notes["score left out"] += sum(entity.score is not None for entity in document.entities)


@dataclass
class _Line:
    """A line with marks, and the place up to which it has been read."""

    line: str
    path: Path
    number: int
    place: int = 0

    def parse(self) -> tuple[str, tuple[RawEntity, ...]]:
        text, length = io.StringIO(), 0
        stated: list[tuple[int, int, str, int]] = []
        marks: list[tuple[str, int, int]] = []
        while self.place < len(self.line):
            opened, character = self.place, self.line[self.place]
            if run := _PLAIN.match(self.line, self.place):
                length += text.write(run[0])
                self.place = run.end()
            elif character == "{":
                self.place += 1
                marks.append((self._label(opened), length, opened))
            elif character == "}":
                self.place += 1
                if not marks:
                    raise self._error(opened, "} closes no mark; remove it or write \\}")
                label, start, opening = marks.pop()
                if start == length:
                    raise self._error(opening, f"the mark {label!r} covers no text; fill or remove it")
                stated.append((start, length, label, opening))
            elif character == "|":
                raise self._error(opened, "| stands outside the head of a mark; write \\|, or the mark as {label|text}")
            else:
                length += text.write(self._character())
        if marks:
            raise self._error(marks[-1][2], f"the mark {marks[-1][0]!r} is not closed; add its }}")
        whole = text.getvalue()
        return whole, tuple(
            RawEntity(start, end, label, whole[start:end], field=f"column {opening + 1}")
            for start, end, label, opening in stated
        )

    def _label(self, opened: int) -> str:
        characters = list[str]()
        while self.line[self.place : self.place + 1] not in ("|", "{", "}", ""):
            characters.append(self._character())
        label = "".join(characters)
        if self.line[self.place : self.place + 1] != "|":
            raise self._error(opened, "{ opens a mark without a label; expected {label|text}, or \\{ for the character")
        self.place += 1
        if not label.strip():
            raise self._error(opened, "the label is empty; expected {label|text}")
        return label

    def _character(self) -> str:
        """Return the character at `place` without its escape, and move `place` behind it.

        Raises:
            DataError: the escape is not valid.
        """
        character = self.line[self.place]
        self.place += 1
        if character != "\\":
            return character
        escaped = self.line[self.place : self.place + 1]
        if not escaped or escaped not in _SPECIAL + _SPECIAL_FIRST:
            raise self._error(self.place - 1, f"unknown escape \\{escaped}; valid: \\{{ \\}} \\| \\\\ \\#")
        self.place += 1
        return escaped

    def _error(self, place: int, message: str) -> DataError:
        return DataError(f"column {place + 1}: {message}", path=self.path, line=self.number)


def _marked(document: Document) -> str:
    """Return `document` as one line.

    Raises:
        DataError: the text is blank or has a line break, a label cannot be written, or entities cross.
    """
    text = document.text
    if "\n" in text or text.endswith("\r") or not text.strip():
        raise DataError(
            f"document {document.id!r}: a blank text or one with a line break cannot stand on a line; split it, "
            "or write another format"
        )
    opening: dict[int, str] = {}
    closing: Counter[int] = Counter()
    for entity in _nested(document):
        opening[entity.start] = opening.get(entity.start, "") + f"{{{_label(document, entity)}|"
        closing[entity.end] += 1
    marked = "".join(
        "}" * closing[place] + opening.get(place, "") + _escaped(character) for place, character in enumerate(text)
    )
    first = "\\" if marked[0] in _SPECIAL_FIRST else ""
    return first + marked + "}" * closing[len(text)]


def _nested(document: Document) -> list[Entity]:
    """Return the entities, outer ones before inner ones.

    Raises:
        DataError: two entities cross.
    """
    entities = sorted(document.entities, key=lambda entity: (entity.start, -entity.end, entity.label))
    around: list[Entity] = []
    for entity in entities:
        while around and around[-1].end <= entity.start:
            around.pop()
        if around and around[-1].end < entity.end:
            outer = around[-1]
            raise DataError(
                f"document {document.id!r}: {outer.label} {document.surface(outer)!r} [{outer.start}, {outer.end}) and "
                f"{entity.label} {document.surface(entity)!r} [{entity.start}, {entity.end}) cross, which marks cannot "
                "show; write another format",
                field="entities",
            )
        around.append(entity)
    return entities


def _label(document: Document, entity: Entity) -> str:
    if not entity.label.strip() or "\n" in entity.label:
        raise DataError(f"document {document.id!r}: the label {entity.label!r} cannot stand in a mark; rename it")
    return "".join(map(_escaped, entity.label))


def _escaped(character: str) -> str:
    return "\\" + character if character in _SPECIAL else character


def _group(document: Document) -> str:
    """Return the name of the document's group; "" if it has none.

    Raises:
        DataError: the name cannot be written in a heading.
    """
    group = document.meta.get("group", "")
    if not isinstance(group, str) or "\n" in group or group != group.strip():
        raise DataError(f"document {document.id!r}: the group {group!r} cannot stand in a heading; rename it")
    return group
