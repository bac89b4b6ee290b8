"""Tables, a document a row: `.csv` and `.tsv` (`.tab`) as Python's csv module reads them, and `.parquet`.

The columns are `text`, `entities` with JSON (see `tabular`), perhaps `id`, and meta. The delimiter is a comma, a tab or
a semicolon. CSV knows only strings: an empty cell of meta is no value, and numbers come back as strings. Tables are
read and written row by row or batch by batch. Rows with too few or too many cells are refused. Label Studio's exports
as CSV and TSV are read too.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TextIO

from spantune.core import DataError, Document, need, replacing, replacing_path, to_json
from spantune.data.raw import tabular
from spantune.data.raw.document import Item, Options, Sample, each
from spantune.data.raw.json_records import Record
from spantune.data.raw.text_files import CRLF_NOTE, LINE_LIMIT, read_bytes, read_lines

_PARQUET = b"PAR1"
_DELIMITERS = (",", "\t", ";")
_HEADER_LINES = 100
_EXPORT = {"annotator", "annotation_id", "lead_time"}  # columns of every table that Label Studio exports
_EXPORT_ROWS = 1000
_BY_SUFFIX = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    if sample.head.startswith(_PARQUET):
        return True
    lines = [line + "\n" for line in sample.text.split("\n")]
    return any(_is_header(_header(lines, delimiter), sample.options) for delimiter in _DELIMITERS)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<row>`, with rows from 1.

    Raises:
        DataError: a column is missing, or the rest of the file cannot be read.
        ConfigError: the file is Parquet, and pyarrow is not installed.
    """
    is_parquet = read_bytes(path, len(_PARQUET)) == _PARQUET
    return (_read_parquet if is_parquet else _read_csv)(path, notes, options)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as its suffix says; `options.column` may name the column of entities.

    Raises:
        DataError: the name has another suffix, a meta key is one of the layout's own columns, or the file cannot be
            written.
        ConfigError: the file is Parquet, and pyarrow is not installed.
    """
    column = options.column if isinstance(options.column, str) else tabular.ENTITIES
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        with replacing(path) as file:
            _write_csv(file, path, documents, notes, column)
    elif suffix == ".parquet":
        need("pyarrow.parquet", "table")
        with replacing_path(path) as partial:
            _write_parquet(partial, documents, notes, column)
    else:
        endings = ", ".join([*_BY_SUFFIX, ".parquet"])
        raise DataError(f"the name tells no kind of table; expected one that ends in {endings}: rename it", path=path)


def _read_csv(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    first = list(islice(_lines(path, Counter(), options), _HEADER_LINES))
    fitting = (delimiter for delimiter in _DELIMITERS if _is_header(_header(first, delimiter), options))
    delimiter = next(fitting, _BY_SUFFIX.get(path.suffix.lower(), ","))
    table = _rows(path, delimiter, notes, options)
    header = next(table)
    if isinstance(header, DataError):
        raise header
    names = header[1]

    def anew() -> Iterator[list[str]]:
        rows = islice(_rows(path, delimiter, Counter(), options), 1, None)
        return (row[1] for row in rows if not isinstance(row, DataError) and len(row[1]) == len(names))

    if is_export := options.column is None and set(names) >= _EXPORT:
        options = replace(options, column=_column_of_regions(names, anew()))
    column = tabular.entities_column([name for name in names if name], options, path)
    records = _records(table, names, path, column, notes)
    cells = () if column is None else (row[names.index(column)] for row in anew())
    if column is not None and (is_export or set(names) >= _EXPORT or _holds_regions(cells)):
        records = (_exported(record, column, notes) if isinstance(record, Record) else record for record in records)
    return each(records, lambda record: tabular.parse(record, column, notes))


def _is_header(names: Iterable[str], options: Options) -> bool:
    """Return whether a table with the columns `names` has texts and entities, the latter where the user says."""
    names = list(names)
    column = tabular.ENTITIES if options.column is None else options.column
    if isinstance(column, int):
        return "text" in names and -len(names) <= column < len(names) and names[column] != "text"
    if options.column is None and "text" in names and (options.unannotated or set(names) >= _EXPORT):
        return True
    return {"text", column} <= set(names)


def _holds_regions(cells: Iterable[str]) -> bool:
    """Return whether the first cell that is not empty holds regions of Label Studio."""
    first = next((cell for cell in cells if cell not in ("", "[]")), "")
    try:
        regions = json.loads(first) if first.startswith("[") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(regions, list) and any(isinstance(row, dict) and "labels" in row for row in regions)


def _column_of_regions(names: list[str], rows: Iterable[list[str]]) -> str | None:
    """Return the only column of a Label Studio export that holds regions; None if there are none or several."""
    columns = list(zip(*islice(rows, _EXPORT_ROWS), strict=True))
    found = [name for name, cells in zip(names, columns, strict=False) if _holds_regions(cells)]
    return found[0] if len(found) == 1 else None


def _exported(record: Record, column: str, notes: Counter[str]) -> Record:
    """Return a row of a Label Studio export as a record; an empty cell means no regions, and a row is an annotation."""
    values = dict(record.values)
    if values[column] == "":
        values[column] = "[]"
        notes["empty cell of regions read as no entities"] += 1
    if values.get("id") and values.get("annotation_id"):
        values["group"] = values.get("group") or values["id"]
        values["id"] = f"{values['id']}-{values['annotation_id']}"
    return replace(record, values=values)


def _records(
    table: Iterable[tuple[int, list[str]] | DataError],
    names: list[str],
    path: Path,
    column: str | None,
    notes: Counter[str],
) -> Iterator[Record | DataError]:
    """Yield the rows below the header as records; empty cells of meta are null."""
    for number, row in enumerate(table, start=1):
        if isinstance(row, DataError):
            yield row
            continue
        line, cells = row
        if len(cells) != len(names):
            yield DataError(
                f"found {len(cells)} cells; expected {len(names)} ({', '.join(names)}): add what is missing, or quote "
                "the cell that holds a delimiter",
                path=path,
                line=line,
            )
            continue
        notes["column without a name not read"] += "" in names
        named = {name: cell for name, cell in zip(names, cells, strict=True) if name}
        yield Record(
            {n: cell if cell or n in ("text", column) else None for n, cell in named.items()}, path, line, number
        )


def _rows(
    path: Path, delimiter: str, notes: Counter[str], options: Options
) -> Iterator[tuple[int, list[str]] | DataError]:
    """Yield (number of its first line, cells) of each row, or a DataError for a row that is not valid CSV."""
    if csv.field_size_limit() < LINE_LIMIT:  # the default limit of the module is less than a long document
        csv.field_size_limit(LINE_LIMIT)
    reader = csv.reader(_lines(path, notes, options), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield DataError(
                f"not CSV: {error}; quote a cell that holds a delimiter, a quote or a line break, double the quotes in "
                "it and close it",
                path=path,
                line=line,
            )
            continue
        notes[CRLF_NOTE] -= sum(cell.count("\r\n") for cell in row)  # a CRLF in a cell is kept
        if row:
            yield line, row


def _lines(path: Path, notes: Counter[str], options: Options) -> Iterator[str]:
    """Yield the lines of `path` with their line ends."""
    before = notes[CRLF_NOTE]
    for _, line in read_lines(path, notes, blank=True, encoding=options.encoding):
        yield line + ("\n" if notes[CRLF_NOTE] == before else "\r\n")
        before = notes[CRLF_NOTE]


def _header(lines: Iterable[str], delimiter: str) -> list[str]:
    """Return the cells of the first row of `lines`; [] if the lines are not CSV."""
    try:
        return next(filter(None, csv.reader(lines, delimiter=delimiter, strict=True)), [])
    except csv.Error:
        return []


def _write_csv(file: TextIO, path: Path, documents: Iterable[Document], notes: Counter[str], column: str) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as rest:
        types = dict.fromkeys(tabular.spool(documents, rest, column, notes), str)
        # all cells are quoted, because the line ends that the module would quote depend on the version of Python
        writer = csv.writer(file, delimiter=_BY_SUFFIX[path.suffix.lower()], lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "text", column, *types])
        for row in tabular.spooled(rest, types, notes):
            entities = to_json(row[column])
            notes["empty meta value left out"] += sum(row.get(name) == "" for name in types)
            writer.writerow([row["id"], row["text"], entities, *(row.get(name, "") for name in types)])


def _read_parquet(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    pyarrow, parquet = need("pyarrow", "table"), need("pyarrow.parquet", "table")
    before = 0
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            column = tabular.entities_column(file.schema_arrow.names, options, path)
            for batch in file.iter_batches(batch_size=tabular.BATCH_ROWS):
                yield from each(
                    tabular.records(batch, before, path, notes), lambda record: tabular.parse(record, column, notes)
                )
                before += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"not readable as Parquet after row {before}: {error}; was it copied or downloaded whole?", path=path
        ) from None


def _write_parquet(partial: Path, documents: Iterable[Document], notes: Counter[str], column: str) -> None:
    parquet = need("pyarrow.parquet", "table")
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=partial.parent) as rest:
        types = tabular.spool(documents, rest, column, notes)
        schema = tabular.schema(column, need("pyarrow", "table").string(), types)
        written = (row | {column: to_json(row[column])} for row in tabular.spooled(rest, types, notes))
        with parquet.ParquetWriter(partial, schema) as writer:
            for batch in tabular.batches(written, schema):
                writer.write_batch(batch)
