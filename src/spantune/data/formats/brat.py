r"""brat's standoff: a folder, and those in it, of `.txt` files with an `.ann` file beside each.

    T1⇥Disease 0 14⇥Ovarian cancer
    T2⇥Finding 5 9;20 24⇥hand pain
    R1⇥shows Arg1:T2 Arg2:T1

Offsets count the code points of the `.txt` file, or what `--offsets` says, with line ends and a byte-order mark. An
entity of several parts is read as one from the first to the last part. Its parts, and all lines that are not T lines,
are stored in meta and written back, without the lines whose entity no longer exists. As in brat, an entity is written
in parts around its line breaks, so that it cannot begin or end with one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from spantune.core import DataError, Document, Entity, replacing_path
from spantune.data.raw.document import (
    Defect,
    Item,
    Options,
    RawDocument,
    RawEntity,
    Row,
    Sample,
    meta_error,
    stored_meta,
    with_rows,
)
from spantune.data.raw.text_files import CRLF_NOTE, cannot_be_read, read_text
from spantune.data.raw.units import Unit, code_point
from spantune.data.rules import Rule

NAME = "brat"
PARTS_NOTE = "entity of several parts: read from the first to the last"
SPACES = Defect(Rule.LINE_BREAK_AS_SPACE, "entity text has spaces for line breaks", tolerated=True)

_SPAN = re.compile("(\\S+) ([0-9]{1,18} [0-9]{1,18}(?:;[0-9]{1,18} [0-9]{1,18})*)")
_PART = re.compile("\\[[0-9]+, [0-9]+\\]$")
_KIND = re.compile("[TAMNRE][0-9]|#|\\*")
_OTHER = re.compile("([AMNRE][0-9]|#|\\*)[^\t\n]*\t[^\n]*")
_BREAK = "[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"  # where Python, and so brat, ends a line
_BREAKS = re.compile(_BREAK + "+")
# Characters that some system does not allow in a file name, or that hide the file, and `%`, which replaces them.
_UNSAFE = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]|^\.|[. ]$')
_REPLACED = re.compile("%([0-7][0-9A-F])")
_NAME_BYTES = 251  # of the 255 that a file system allows


Parts = list[list[int]]


def claims(sample: Sample) -> bool:
    """Whether the folder holds, or the file is one of, such a pair."""
    if sample.path.suffix in (".txt", ".ann") and not sample.path.is_dir():
        return all(sample.path.with_suffix(suffix).is_file() for suffix in (".txt", ".ann"))
    return sample.path.is_dir() and any(sample.path.rglob("*.ann"))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of the folder, named by their path in it without suffix, or the document of one file.

    Raises:
        DataError: there is nothing there, or a file that is not of a pair.
    """
    if path.is_dir():
        stems, unreadable = _stems(path, notes)
        yield from unreadable
    elif path.suffix in (".txt", ".ann"):
        stems = {path.with_suffix(""): None}
    else:
        stated = "a file of another name" if path.exists() else "nothing"
        raise DataError(f"found {stated}; expected a folder, or a .txt or .ann file: mend the path", path=path)
    for stem in stems:
        id = (stem.relative_to(path) if path.is_dir() else PurePosixPath(stem.name)).as_posix()
        try:
            name = _REPLACED.sub(lambda match: chr(int(match[1], 16)), id)
            yield _document(name, stem, notes, options.offsets or "codepoints")
        except DataError as error:
            yield error


def _stems(folder: Path, notes: Counter[str]) -> tuple[dict[Path, None], list[DataError]]:
    """Return the paths of the documents in `folder` without suffix, and an error for each folder that is unreadable."""
    files: list[Path] = []
    errors: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        notes["link to a folder not followed"] += sum((Path(place) / name).is_symlink() for name in folders)
        files += [Path(place) / name for name in names]
    stems: dict[Path, None] = {}
    for file in sorted(files):
        if file.suffix in (".txt", ".ann") and not _hidden(file, folder):
            stems[file.with_suffix("")] = None
        else:
            notes["file that is no .txt or .ann not read"] += 1
    return stems, [cannot_be_read(Path(error.filename), error) for error in errors]


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` into a new folder `path`, a pair of files each; `notes` counts what brat cannot hold.

    Characters of an id that a file name cannot hold are written as `%` and their number, which reading undoes.

    Raises:
        DataError: an id, a label or an entity cannot be written, or the folder is not empty.
    """
    with replacing_path(path) as folder:
        if path.is_dir() and any(path.iterdir()):
            raise DataError("the folder exists and is not empty; name another, or remove it", path=path)
        folder.mkdir()
        for document in documents:
            lines = "".join(line + "\n" for line in _lines(document, notes))
            name = _file_name(document.id)
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                for suffix, content in ((".txt", document.text), (".ann", lines)):
                    with (folder / (name + suffix)).open("xb") as file:
                        file.write(content.encode())
            except OSError as error:
                raise DataError(
                    f"document {document.id!r}: {name}.txt cannot be made: {error.strerror}; give it another id",
                    path=path,
                    field="id",
                ) from None


def _document(id: str, stem: Path, notes: Counter[str], unit: Unit) -> RawDocument:
    texts, annotation = stem.with_name(stem.name + ".txt"), stem.with_name(stem.name + ".ann")
    if not texts.is_file():
        raise DataError(f"there is no {texts.name} beside it, so no text; add it, or remove this file", path=annotation)
    text = read_text(texts)
    notes["byte-order mark kept: offsets count it"] += text.startswith("\ufeff")
    if not annotation.is_file():
        notes["text without .ann file: no entities"] += 1
        return RawDocument(id, text, (), texts)
    entities: list[RawEntity] = []
    rows: list[Row] = []
    others: list[str] = []
    for number, line in _numbered(annotation, notes):
        if not _KIND.match(line) or "\t" not in line:
            raise DataError(
                f"found {line[:40]!r}; expected an id that begins with T, A, M, N, R, E, # or *, and a tab: mend it",
                path=annotation,
                line=number,
            )
        if line.startswith("T"):
            row, entity = _text_bound(_Line(line, number, annotation), text, unit)
            rows.append(row)
            entities.append(entity)
        else:
            others.append(line)
    is_repeated = len({row["id"] for row in rows}) < len(rows)
    if is_repeated:
        others = _with_own_ids(rows, entities, others, notes)
    notes[PARTS_NOTE] += sum("parts" in row for row in rows)
    is_special = others or is_repeated or any("parts" in row for row in rows)
    meta = {NAME: {"entities": rows, "lines": others}} if is_special else {}
    return RawDocument(id, text, tuple(entities), annotation, meta=meta)


def _with_own_ids(rows: list[Row], entities: list[RawEntity], lines: list[str], notes: Counter[str]) -> list[str]:
    """Give every row after the first with its id a new one, and return `lines` without those that refer to such an id.

    Where lines refer to it, this is a defect of the later entity; otherwise nothing is ambiguous, and it is noted.
    """
    ids = Counter(row["id"] for row in rows)
    repeated = {str(id) for id, times in ids.items() if times > 1}
    kept, left_out = _without(lines, repeated)
    fresh = _fresh_numbers(rows)
    seen: set[object] = set()
    for index, row in enumerate(rows):
        id = row["id"]
        if id in seen:
            row["id"] = f"T{next(fresh)}"
            lost = _without(left_out, {str(id)})[1]
            if lost:
                listed = ", ".join(line.partition("\t")[0] for line in lost)
                message = (
                    f"the id {id} is repeated and {listed} may mean either; make ids unique (--fix makes it "
                    f"{row['id']} and leaves out the lines that refer to it)"
                )
                defect = Defect(Rule.REPEATED_ENTITY_ID, message, tolerated=False)
                entities[index] = replace(entities[index], defect=defect)
            else:
                notes["repeated id of an entity made unique: no line refers to it"] += 1
        seen.add(id)
    notes["line left out: the id that it refers to is repeated"] += len(left_out)
    return kept


def _fresh_numbers(rows: Iterable[Row]) -> Iterator[int]:
    """Yield the numbers from the one after the highest of the rows' ids."""
    numbers = [re.fullmatch("T([0-9]{1,18})", str(row["id"])) for row in rows]
    return count(max((int(number[1]) for number in numbers if number), default=0) + 1)


def _numbered(path: Path, notes: Counter[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines of an `.ann` file that are not blank."""
    for number, line in enumerate(read_text(path).removeprefix("\ufeff").split("\n"), start=1):
        notes[CRLF_NOTE] += line.endswith("\r")
        if line.strip():
            yield number, line.removesuffix("\r")


class _Line(NamedTuple):
    """A line of an `.ann` file and its place."""

    text: str
    number: int
    path: Path

    def error(self, message: str) -> DataError:
        """Return a DataError with the place of this line."""
        return DataError(message, path=self.path, line=self.number, field=self.text.partition("\t")[0])


def _text_bound(line: _Line, text: str, unit: Unit) -> tuple[Row, RawEntity]:
    """Return the row to store for a T line (its id, and its parts if the span does not imply them) and its entity.

    Offsets are counted in `unit`; the entity's are code points.
    """
    id, _, rest = line.text.partition("\t")
    span, tab, stated = rest.partition("\t")
    match = _SPAN.fullmatch(span)
    if match is None:
        raise line.error(
            f"found {span[:40]!r}; expected `label start end`, further parts after semicolons, and a tab: mend it"
        )
    parts = [[_place(line, text, int(place), unit) for place in part.split(" ")] for part in match[2].split(";")]
    start, end = min(part[0] for part in parts), max(part[1] for part in parts)
    row: Row = {"id": id, "start": start, "end": end, "label": match[1]}
    if len(parts) > 1 and parts != _parts(text, start, end):
        row["parts"] = parts
    surface, defect = stated if tab else None, None
    impossible = [part for part in parts if not 0 <= part[0] < part[1] <= len(text)]
    pieces = [text[first:last] for first, last in parts]
    if len(parts) > 1 and impossible:
        (start, end), surface = impossible[0], None
    elif len(parts) > 1 and stated in (" ".join(pieces), "".join(pieces)):  # "": brat before 1.3
        surface = text[start:end]
    elif stated != text[start:end] and stated == re.sub(_BREAK, " ", " ".join(pieces)):
        surface, defect = text[start:end], SPACES
    return row, RawEntity(start, end, match[1], surface, field=id, line=line.number, defect=defect)


def _place(line: _Line, text: str, offset: int, unit: Unit) -> int:
    """Return the offset in code points; one in code points already may lie outside the text, which is judged later."""
    place = offset if unit == "codepoints" else code_point(text, offset, unit)
    if place is None:
        raise line.error(
            f"{offset} is inside a character or outside the text, counted as --offsets {unit} says; check what the "
            "offsets count"
        )
    return place


def _parts(text: str, start: int, end: int) -> Parts:
    """Return the parts of a span between its line breaks, as brat stores a span over several lines."""
    places = [start]
    for match in _BREAKS.finditer(text, start, end):
        places += match.span()
    places.append(end)
    return [list(part) for part in zip(places[::2], places[1::2], strict=True)]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _file_name(id: str) -> str:
    """Return the path in the folder, without suffix, for the document `id`."""
    names = [_UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name) for name in id.split("/")]
    if not all(names) or any(len(name.encode()) > _NAME_BYTES for name in names):
        raise DataError(
            f"document {id!r}: an id names the file, and a part of this one is empty or over {_NAME_BYTES} bytes; "
            "give it another id",
            field="id",
        )
    return "/".join(names)


def _lines(document: Document, notes: Counter[str]) -> list[str]:
    """Return the lines of the `.ann` file."""
    pairs, gone = with_rows(document, NAME)
    fresh = _fresh_numbers((*(row for _, row in pairs if row), *gone))
    lines = [_text_bound_line(document, entity, row or {"id": f"T{next(fresh)}"}) for entity, row in pairs]
    notes["meta left out"] += bool(set(document.meta) - {NAME})
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    return lines + _other_lines(document, {str(row["id"]) for row in gone}, notes)


def _text_bound_line(document: Document, entity: Entity, row: Row) -> str:
    if not re.fullmatch("\\S+", entity.label):
        raise DataError(
            f"document {document.id!r}: brat's labels have no white space and are not empty; rename {entity.label!r}"
        )
    parts: object = row.get("parts") or _parts(document.text, entity.start, entity.end)
    if not isinstance(parts, list) or not all(_PART.match(str(part)) for part in parts):
        raise meta_error(document, NAME, f"found {parts!r:.60} for parts; expected [[start, end], …]")
    if not all(entity.start <= first < last <= entity.end for first, last in parts):
        raise DataError(
            f"document {document.id!r}: {entity.label} {document.surface(entity)!r} [{entity.start}, {entity.end}) "
            "begins or ends with a line break, which brat cannot hold; mend the span, or write another format",
            field="entities",
        )
    places = ";".join(f"{first} {last}" for first, last in parts)
    surface = " ".join(document.text[first:last] for first, last in parts)
    return f"{row['id']}\t{entity.label} {places}\t{surface}"


def _other_lines(document: Document, gone: set[str], notes: Counter[str]) -> list[str]:
    """Return the stored lines without those that depend, directly or indirectly, on an entity that is `gone`."""
    lines = stored_meta(document, NAME).get("lines", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) and _OTHER.fullmatch(line) for line in lines):
        raise meta_error(document, NAME, f"found {lines!r:.60} for lines; expected a list of brat's lines")
    kept, left_out = _without(lines, gone)
    notes["line left out: its entity is gone"] += len(left_out)
    return kept


def _without(lines: list[str], gone: set[str]) -> tuple[list[str], list[str]]:
    """Return `lines` without those that depend, directly or indirectly, on an id that is `gone`, and those lines."""
    left_out: list[str] = []
    while dangling := [line for line in lines if _named(line) & gone]:
        lines = [line for line in lines if not _named(line) & gone]
        left_out += dangling
        gone = gone | {line.partition("\t")[0] for line in dangling}
    return lines, left_out


def _named(line: str) -> set[str]:
    """Return the ids that a line refers to."""
    words = line.split("\t")[1].split(" ")
    if line[0] in "AMN#":  # a type, what it is of, and a value
        return set(words[1:2])
    return {word.rpartition(":")[2] for word in words}
