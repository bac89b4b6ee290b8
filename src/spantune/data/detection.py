"""Which format a file has, judged by its content; and if no format claims it, what can be done about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

from spantune.core import DataError, to_json
from spantune.data.raw import plugins
from spantune.data.raw.document import Options, Sample
from spantune.data.raw.json_files import read_json_array, read_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.plugins import Format
from spantune.data.raw.text_files import read_bytes, read_chunks

SAMPLE_LINES = 200
SAMPLE_BYTES = 1 << 16
BLANK = b"\xef\xbb\xbf \t\r\n"


@dataclass(frozen=True)
class Detector:
    """Finds the format of a file.

    Args:
        own: spantune's formats by name, in the order in which they are asked. Those of other packages are asked if none
            of these claims a file.
    """

    own: Mapping[str, Format]

    def name_of(self, file: Path, options: Options) -> str:
        """Return the name of the format of a file or folder; `options` are those with which it will be read.

        Raises:
            DataError: no format claims the content.
            ConfigError: the encoding is unknown.
        """
        try:
            return self._own_name(file, options)
        except DataError:
            if file.exists() and (name := self._added_claimant(file, options)):
                return name
            raise

    def _own_name(self, file: Path, options: Options) -> str:
        if file.is_dir():
            sample = _folder_sample(file, options)
            content = f"a folder with {', '.join(sample.files[:5]) or 'nothing in it'}"
            return self._claimant(sample) or self._unclaimed(sample, content)
        head = read_bytes(file, SAMPLE_BYTES)
        if name := self._claimant(Sample(file, head, options=options)):  # a binary file
            return name
        try:
            chunks = read_chunks(file, Counter(), options.encoding)
            text = next(chunk for chunk in chunks if chunk.strip()).lstrip("\r\n")
        except DataError:
            if not head.lstrip(BLANK).startswith(b"{"):
                raise
            text = _start_of(head, "replace")  # JSONL of which a single line may be unreadable
        lines = [line.removesuffix("\r") for line in text.split("\n", SAMPLE_LINES)[:SAMPLE_LINES]]
        first = next(line for line in lines if line.strip())
        sample = Sample(file, head, "\n".join(lines), options=options)
        if first.lstrip()[0] in "[{" and (name := self._of_records(sample, first.lstrip())):
            return name
        return self._claimant(sample) or self._unclaimed(sample, f"text beginning {first[:40]!r}")

    def _claimant(self, sample: Sample) -> str | None:
        return next((name for name, format in self.own.items() if format.claims(sample)), None)

    def _added_claimant(self, file: Path, options: Options) -> str | None:
        """Return the name of a format of another package that claims `file`; None if there is none."""
        if not (added_names := plugins.added_names(self.own)):
            return None
        if file.is_dir():
            samples = [_folder_sample(file, options)]
        else:
            head = read_bytes(file, SAMPLE_BYTES)
            text = _start_of(head, "ignore")
            first = next((r.values for r in _some_records(file, text, options) if isinstance(r, Record)), None)
            samples = [
                Sample(file, head, options=options),
                Sample(file, head, text, options=options),
                Sample(file, head, text, first, options=options),
            ]
        formats = [(name, plugins.added(name)) for name in added_names]
        return next((name for sample in samples for name, format in formats if format.claims(sample)), None)

    def _of_records(self, sample: Sample, first: str) -> str | None:
        """Return the format that claims an object of a JSON file; None if the file is not JSON.

        If all texts have an empty list of entities, or none, several formats are possible. An array without ids is then
        taken for CMeEE, and anything else for the native format.

        Raises:
            DataError: no format claims the objects, or none could be read.
        """
        is_array, encoding = first.startswith("["), sample.options.encoding
        broken: DataError | None = None
        read_any = has_id = False
        try:
            for record in (read_json_array if is_array else read_json_lines)(sample.path, Counter(), encoding):
                if isinstance(record, DataError):  # reading will report this line; a later one may show the format
                    broken = broken or record
                    if record.line is not None and record.line > SAMPLE_LINES:
                        break
                    continue
                read_any = True
                sample = replace(sample, text="", record=record.values)  # the text is not searched twice
                if name := self._claimant(sample):
                    return name
                names = set(record.values)
                has_id = has_id or "id" in names
                if "text" in names and (
                    names <= {"id", "text", "meta"} or _is_bare_text(record.values, sample.options)
                ):
                    break  # texts to extract from
                stated = [record.values[name] for name in ("entities", "label", "labels") if name in names]
                if "text" not in names or not stated or any(value not in ([], {}, None) for value in stated):
                    fields = ", ".join(record.values)[:80]
                    self._unclaimed(sample, f"an object with {fields}" if fields else "an empty object")
        except DataError as error:
            broken = broken or error
        if not read_any and self._claimant(sample):  # not JSON, such as marked text that begins with a bracket
            return None
        if broken is not None:
            raise broken
        return "cmeee" if is_array and not has_id else "native"

    def _unclaimed(self, sample: Sample, content: str) -> NoReturn:
        """Raise the error for a file that no format claims; `content` says what was found."""
        if sample.text and sample.options.column is not None:
            content += f", and whose column {sample.options.column!r} holds no tags or entities"
        known = ", ".join([*self.own, *plugins.added_names(self.own)])
        remedy = self._remedy(sample)
        raise DataError(f"found {content}, which is of no known format; known: {known}. {remedy}", path=sample.path)

    def _remedy(self, sample: Sample) -> str:
        """Return what can be done about a file that no format claims."""
        if sample.head.count(0) * 4 > len(sample.head) and "\0" in sample.text:
            return "It looks like UTF-16 or UTF-32: name its encoding (data.encoding, --encoding utf-16-le, say)"
        if sample.record is None and (sign := self._sign_between(sample)):
            return (
                f"It seems to have a token a line, with {sign!r} between the columns; put tabs there: "
                f"{_with_tabs(sign, sample.text)}"
            )
        each = ".[] | " if sample.head.lstrip(BLANK).startswith(b"[") else ""
        if inner := self._fields_of_documents(sample):
            return (
                f"The documents seem to be in its field {' and '.join(map(repr, inner))}; take them out: "
                f"jq -c '{each}{_jq(inner[0])}[]' FILE > NEW.jsonl"
            )
        if encoded := _fields_of_json(sample.record or {}):
            paths = " | ".join(f"{_jq(name)} |= fromjson" for name in encoded)
            return (
                f"Its field {' and '.join(map(repr, encoded))} is JSON inside a string; take it out of there: "
                f"jq -c '{each}{paths}' FILE > NEW.jsonl"
            )
        if sample.options.unannotated and any(name.endswith(".txt") for name in sample.files):
            return f"To read its text files, name them: {sample.path}/*.txt, with --whole-file if each is one document"
        column = ""
        if sample.record is None and sample.text and sample.options.column is None:
            column = (
                "Name the column of tags or entities (data.column, --column NAME or NUMBER) if it is a table or has a "
                "token a line; else n"
            )
        return f"{column or 'N'}ame the one it is (data.format=NAME, --format or --from NAME), or convert it"

    def _fields_of_documents(self, sample: Sample) -> list[str]:
        """Return the fields of an object that hold lists of documents of a known format, or of plain texts."""
        fields = []
        for name, rows in (sample.record or {}).items():
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                is_text = all("text" in row and row.keys() <= {"id", "text", "meta", "entities"} for row in rows)
                if is_text or self._claimant(replace(sample, text="", record=rows[0])):
                    fields.append(name)
        return fields

    def _sign_between(self, sample: Sample) -> str | None:
        """Return the sign that separates the columns of token lines where tabs should; None if there is none."""
        claims = self.own["conll"].claims
        signs = (sign for sign in ",;|" if sign in sample.text)
        return next((sign for sign in signs if claims(replace(sample, text=sample.text.replace(sign, "\t")))), None)


def _folder_sample(folder: Path, options: Options) -> Sample:
    return Sample(folder, files=tuple(sorted(entry.name for entry in folder.iterdir())), options=options)


def _start_of(head: bytes, errors: str) -> str:
    """Return the first bytes of a file as text without a byte order mark and blank lines at its beginning."""
    return head.decode("utf-8", errors).lstrip("\ufeff \t\r\n")


def _some_records(file: Path, text: str, options: Options) -> Iterator[Record | DataError]:
    """Yield some JSON objects of a file, until it turns out not to be JSON."""
    if text[:1] not in ("[", "{"):
        return
    try:
        read_records = read_json_array if text[0] == "[" else read_json_lines
        yield from islice(read_records(file, Counter(), options.encoding), SAMPLE_LINES)
    except DataError:
        return


def _is_bare_text(values: Mapping[str, object], options: Options) -> bool:
    """Return whether an object is a text without entities, if such texts may be read; it may have other fields."""
    return options.unannotated and isinstance(values.get("text"), str) and "entities" not in values


def _fields_of_json(record: Mapping[str, object]) -> list[str]:
    """Return the fields that hold a string with a list or an object as JSON."""
    fields = []
    for name, value in record.items():
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                json.loads(value)
            except (ValueError, RecursionError):
                continue
            fields.append(name)
    return fields


def _jq(name: str) -> str:
    """Return the path of a field for jq."""
    return f".{name}" if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f".[{to_json(name)}]"


def _with_tabs(sign: str, text: str) -> str:
    """Return a command that replaces `sign` by tabs; it respects quoted cells if `text` has them, as CSV does."""
    if '"' in text and all(line.count('"') % 2 == 0 for line in text.split("\n")):
        code = f"import csv, sys; [print(*row, sep='\\t') for row in csv.reader(sys.stdin, delimiter='{sign}')]"
        return f'python3 -c "{code}" < FILE > NEW.tsv'
    return f"tr '{sign}' '\\t' < FILE > NEW.tsv"
