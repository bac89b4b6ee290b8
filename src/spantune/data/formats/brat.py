r"""brat's standoff: a folder, and those in it, of `.txt` files with an `.ann` file beside each.

    T1⇥Disease 0 14⇥Ovarian cancer
    T2⇥Finding 5 9;20 24⇥hand pain
    R1⇥shows Arg1:T2 Arg2:T1

Offsets count the code points of the `.txt` file, with its line ends and byte-order mark, or what `--offsets` says. An
entity of several parts is read as one, from the first to the last part. Its parts, and all lines that are not T lines,
are stored in meta and written back, except for lines whose entity no longer exists. As in brat, an entity over several
lines is written in parts without the line breaks, so it cannot begin or end with one. If two entities have the same id,
the second gets a new one. A line that refers to such an id is an error, because it may mean either entity.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from spantune.core import DataError, Document, Entity, encodable, replacing_path
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
    unwritten_meta,
    with_rows,
)
from spantune.data.raw.text_files import CRLF_NOTE, cannot_be_read, read_text
from spantune.data.raw.units import Unit, code_point
from spantune.data.rules import Rule

NAME = "brat"
PARTS_NOTE = "entity of several parts: read from the first to the last"
REPEATED_ID = Defect(
    Rule.AMBIGUOUS_ID, "an id given twice, to which no line refers: the second entity gets another", tolerated=True
)
SPACES = Defect(Rule.LINE_BREAK_AS_SPACE, "entity text has spaces for line breaks", tolerated=True)

_SPAN = re.compile("(\\S+) ([0-9]{1,18} [0-9]{1,18}(?:;[0-9]{1,18} [0-9]{1,18})*)")
_PART = re.compile("\\[[0-9]+, [0-9]+\\]$")
_KIND = re.compile("[TAMNRE][0-9]|#|\\*")
_OTHER = re.compile("([AMNRE][0-9]|#|\\*)[^\t\n]*\t[^\n]*")
_BREAK = "[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"  # the characters at which Python, and so brat, ends a line
_BREAKS = re.compile(_BREAK + "+")
# Characters that some system does not allow in a file name, or that hide the file, and `%`, which replaces them.
_UNSAFE = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]|^\.|[. ]$')
_REPLACED = re.compile("%([0-7][0-9A-F])")
_NAME_BYTES = 251  # a file system allows 255; the suffix takes 4


Parts = list[list[int]]


def claims(sample: Sample) -> bool:
    """Whether `sample` is a folder with `.ann` files, or one of a pair of `.txt` and `.ann` files."""
    if sample.path.suffix in (".txt", ".ann") and not sample.path.is_dir():
        return all(sample.path.with_suffix(suffix).is_file() for suffix in (".txt", ".ann"))
    return sample.path.is_dir() and any(sample.path.rglob("*.ann"))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of a folder, with their paths in it without suffix as ids, or the document of one file.

    Raises:
        DataError: there is nothing at `path`, or a file with another suffix.
    """
    if path.is_dir():
        files, unreadable = _files(path, notes)
        yield from unreadable
        stems: dict[Path, None] = {}
        for file in files:
            if file.suffix in (".txt", ".ann") and not _hidden(file, path):
                stems[file.with_suffix("")] = None
            else:
                notes["file that is no .txt or .ann not read"] += 1
    elif path.suffix in (".txt", ".ann"):
        stems = {path.with_suffix(""): None}
    else:
        stated = "a file of another name" if path.exists() else "nothing"
        raise DataError(f"found {stated}; expected a folder, or a .txt or .ann file: mend the path", path=path)
    for stem in stems:
        id = (stem.relative_to(path) if path.is_dir() else PurePosixPath(stem.name)).as_posix()
        try:
            yield _document(_REPLACED.sub(lambda match: chr(int(match[1], 16)), id), stem, notes, options)
        except DataError as error:
            yield error


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` into the new folder `path`, two files each; `notes` counts what brat cannot hold.

    A character of an id that a file name cannot hold is written as `%` and its number, which reading undoes.

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
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise  # the disk is the reason, not the id
                raise DataError(
                    f"document {document.id!r}: {name}.txt cannot be made: {error.strerror}; give it another id",
                    path=path,
                    field="id",
                ) from None


def _files(folder: Path, notes: Counter[str]) -> tuple[list[Path], list[DataError]]:
    """Return the sorted files in a folder and its subfolders, and an error for each folder or link that is unreadable.

    A link to a file is read as the file. A link to a folder is not followed, and named in `notes`.
    """
    failures: list[OSError] = []
    files: list[Path] = []
    errors: list[DataError] = []
    for root, folders, names in os.walk(folder, onerror=failures.append):
        for name in folders:
            if (link := Path(root, name)).is_symlink():
                notes[f"link to a folder not followed: {encodable(str(link.relative_to(folder)))}"] += 1
        for file in (Path(root, name) for name in names):
            try:
                is_file, is_link = file.is_file(), file.is_symlink()
            except OSError as error:  # the folder may be listed, but its files may not be accessed
                errors.append(cannot_be_read(file, error))
                continue
            if is_file:
                files.append(file)
                notes["link to a file, read as the file"] += is_link
            elif is_link:
                errors.append(DataError("this link leads to no file; mend or remove it", path=file))
            else:
                notes["neither file nor folder, not read"] += 1
    errors += [cannot_be_read(Path(error.filename), error) for error in failures]
    return sorted(files), errors


def _document(id: str, stem: Path, notes: Counter[str], options: Options) -> RawDocument:
    texts, annotation = stem.with_name(stem.name + ".txt"), stem.with_name(stem.name + ".ann")
    if not texts.is_file():
        raise DataError(f"there is no {texts.name} beside it, so no text; add it, or remove this file", path=annotation)
    encoding, unit = options.encoding, options.offsets or "codepoints"
    text = read_text(texts, notes, encoding)
    notes["byte-order mark kept: offsets count it"] += text.startswith("\ufeff")
    if not annotation.is_file():
        notes["text without .ann file: no entities"] += 1
        return RawDocument(id, text, (), texts)
    entities: list[RawEntity] = []
    rows: list[Row] = []
    others: list[str] = []
    for number, line in _numbered(annotation, notes, encoding):
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
    entities, others = _with_own_ids(entities, rows, others)
    notes[PARTS_NOTE] += sum("parts" in row for row in rows)
    is_plain = not others and all(
        "parts" not in row and row["id"] == e.field for row, e in zip(rows, entities, strict=True)
    )
    meta = {} if is_plain else {NAME: {"entities": rows, "lines": others}}
    return RawDocument(id, text, tuple(entities), annotation, meta=meta, is_counted=True)


def _with_own_ids(entities: list[RawEntity], rows: list[Row], lines: list[str]) -> tuple[list[RawEntity], list[str]]:
    """Give a new id, in `rows`, to each entity whose id an earlier entity has; return the entities and the kept lines.

    Lines that refer to such an id are not kept, unless the two entities are equal. The defect of the entity names these
    lines.
    """
    first_rows: dict[str, Row] = {}
    fresh = _fresh_ids(rows)
    judged: list[RawEntity] = []
    for row, entity in zip(rows, entities, strict=True):
        id = str(row["id"])
        first = first_rows.setdefault(id, row)
        if row is first:
            judged.append(entity)
            continue
        dangling = [] if row == first else _dependent(lines, {id})
        row["id"] = next(fresh)
        lines = [line for line in lines if line not in dangling]
        left_out = "; ".join(line.replace("\t", " ") for line in dangling)
        defect = REPEATED_ID
        if dangling:
            message = (
                f"the id {id} is given to two entities, so that what refers to it, which `--fix` leaves out, may mean "
                f"either: {left_out}"
            )
            defect = Defect(Rule.AMBIGUOUS_ID, message, tolerated=False)
        judged.append(replace(entity, defect=defect))
    return judged, lines


def _fresh_ids(rows: Iterable[Row]) -> Iterator[str]:
    """Yield ids that no row of `rows` has."""
    numbers = [re.fullmatch("T([0-9]{1,18})", str(row["id"])) for row in rows]
    first = max((int(number[1]) for number in numbers if number), default=0) + 1
    return (f"T{number}" for number in count(first))


def _numbered(path: Path, notes: Counter[str], encoding: str | None) -> Iterator[tuple[int, str]]:
    """Yield (number, line) for the lines of an `.ann` file that are not blank."""
    for number, line in enumerate(read_text(path, notes, encoding).removeprefix("\ufeff").split("\n"), start=1):
        notes[CRLF_NOTE] += line.endswith("\r")
        if line.strip():
            yield number, line.removesuffix("\r")


class _Line(NamedTuple):
    """A line of an `.ann` file, with its number and its file."""

    text: str
    number: int
    path: Path

    def error(self, message: str) -> DataError:
        """Return a DataError with the place of this line."""
        return DataError(message, path=self.path, line=self.number, field=self.text.partition("\t")[0])


def _text_bound(line: _Line, text: str, unit: Unit) -> tuple[Row, RawEntity]:
    """Return the row to store for a T line, and its entity.

    The row has the id, and the parts if they do not follow from the span. Offsets in the line count in `unit`; those of
    the row and the entity are code points.
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
    elif len(parts) > 1 and stated in (" ".join(pieces), "".join(pieces)):  # brat before 1.3 joins them by ""
        surface = text[start:end]
    elif stated != text[start:end] and stated == re.sub(_BREAK, " ", " ".join(pieces)):
        surface, defect = text[start:end], SPACES
    return row, RawEntity(start, end, match[1], surface, field=id, line=line.number, defect=defect)


def _place(line: _Line, text: str, offset: int, unit: Unit) -> int:
    """Return `offset` in code points. One that is in code points may lie outside the text; that is judged later."""
    place = offset if unit == "codepoints" else code_point(text, offset, unit)
    if place is None:
        raise line.error(
            f"{offset} is inside a character or outside the text, counted as --offsets {unit} says; check what the "
            "offsets count"
        )
    return place


def _parts(text: str, start: int, end: int) -> Parts:
    """Return the parts of a span between its line breaks, which is how brat stores a span over several lines."""
    places = [start]
    for match in _BREAKS.finditer(text, start, end):
        places += match.span()
    places.append(end)
    return [list(part) for part in zip(places[::2], places[1::2], strict=True)]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _file_name(id: str) -> str:
    """Return the path of the files of the document `id`, relative to the folder and without suffix.

    Raises:
        DataError: a part of the id is empty or too long for a file name.
    """
    names = [_UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name) for name in id.split("/")]
    if not all(names) or any(len(name.encode()) > _NAME_BYTES for name in names):
        raise DataError(
            f"document {id!r}: an id names the file, and a part of this one is empty or over {_NAME_BYTES} bytes; "
            "give it another id",
            field="id",
        )
    return "/".join(names)


def _lines(document: Document, notes: Counter[str]) -> list[str]:
    """Return the lines of the `.ann` file of `document`."""
    pairs, gone = with_rows(document, NAME)
    fresh = _fresh_ids([*(row for _, row in pairs if row), *gone])
    lines = [_text_bound_line(document, entity, row or {"id": next(fresh)}) for entity, row in pairs]
    notes["meta left out"] += bool(set(document.meta) - {NAME}) or unwritten_meta(document, NAME, ("entities", "lines"))
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
    """Return the stored lines, except those that refer, directly or through other lines, to an entity in `gone`."""
    lines = stored_meta(document, NAME).get("lines", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) and _OTHER.fullmatch(line) for line in lines):
        raise meta_error(document, NAME, f"found {lines!r:.60} for lines; expected a list of brat's lines")
    dangling = _dependent(lines, gone)
    kept = [line for line in lines if line not in dangling]
    notes["line left out: its entity is gone"] += len(lines) - len(kept)
    return kept


def _dependent(lines: Sequence[str], ids: set[str]) -> list[str]:
    """Return the lines that refer to one of `ids`, or to another line that does."""
    dependent: dict[str, None] = {}
    while more := [line for line in lines if line not in dependent and _named(line) & ids]:
        dependent.update(dict.fromkeys(more))
        ids = ids | {line.partition("\t")[0] for line in more}
    return list(dependent)


def _named(line: str) -> set[str]:
    """Return the ids to which a line refers."""
    words = line.split("\t")[1].split(" ")
    if line[0] in "AMN#":  # the words are a type, the id, and a value
        return set(words[1:2])
    return {word.rpartition(":")[2] for word in words}
