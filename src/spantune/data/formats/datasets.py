"""A folder that Hugging Face `datasets` saved (`save_to_disk`): text and entities, or tokens and tags.

The first layout is that of `tabular`, with the entities as a list of structs or as JSON; this layout is written. In the
second layout, the text is joined from the column `tokens` by the rule of the module `tokens`. The column `ner_tags` has
class labels or strings, which are decoded by the rule of `tags`; invalid tags are refused unless they are repaired. A
folder of several splits is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from spantune.core import DataError, Document, need, replacing_path
from spantune.data.raw import tabular
from spantune.data.raw.document import Item, Options, RawDocument, Sample, each
from spantune.data.raw.json_records import Record
from spantune.data.raw.tagged import Tagged, class_names

_SPLITS = "dataset_dict.json"
_FILES = {"dataset_info.json", "state.json"}
_TOKENS, _TAGS = "tokens", "ner_tags"


def claims(sample: Sample) -> bool:
    """Whether the folder can only be this format."""
    return set(sample.files) >= _FILES or _SPLITS in sample.files


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of the folder `path`; one without an id is called `<name>-<row>`, with rows from 1.

    Raises:
        DataError: the folder holds splits or no such table, or the rest of it cannot be read.
        ConfigError: `datasets` is not installed.
    """
    datasets = need("datasets", "datasets")
    _check(path)
    try:
        with _no_bars(datasets):
            table = datasets.load_from_disk(str(path))
    except (need("pyarrow", "datasets").ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    return read_table(table, path, notes, options)


def read_table(table: Any, path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of an open `Dataset`; errors and ids name it `path`.

    Raises:
        DataError: the table has no such columns, or the rest of it cannot be read.
    """
    return each(_records(table, path, notes), _parser(table, path, notes, options))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to the new folder `path`; `options.column` may name the column of entities.

    Raises:
        DataError: a meta key is one of the layout's own columns, or the folder is not empty or cannot be written.
        ConfigError: `datasets` is not installed.
    """
    pyarrow, datasets = need("pyarrow", "datasets"), need("datasets", "datasets")
    column = options.column if isinstance(options.column, str) else tabular.ENTITIES
    string, offset = pyarrow.string(), pyarrow.int64()
    struct = {"start": offset, "end": offset, "label": string, "text": string, "score": pyarrow.float64()}
    with replacing_path(path) as partial, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with Path(folder, "rows").open("w+", encoding="utf-8") as rest:
            types = tabular.spool(documents, rest, column, notes)
            schema = tabular.schema(column, pyarrow.list_(pyarrow.struct(struct)), types)
            with pyarrow.ipc.new_stream(f"{folder}/arrow", schema) as stream:
                for batch in tabular.batches(tabular.spooled(rest, types, notes), schema):
                    stream.write_batch(batch)
        with _no_bars(datasets):
            datasets.Dataset.from_file(f"{folder}/arrow").save_to_disk(str(partial))


def _check(path: Path) -> None:
    """Check that `path` is the folder of one saved dataset.

    Raises:
        DataError: it holds splits, or is no such folder.
    """
    if (path / _SPLITS).is_file():
        try:
            splits = json.loads((path / _SPLITS).read_text("utf-8"))["splits"]
        except (ValueError, KeyError, TypeError):
            splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        named = ", ".join(map(str, splits)) or "none"
        first = splits[0] if splits else "SPLIT"
        raise DataError(f"the folder holds splits: {named}; expected one of them: name {path / str(first)}", path=path)
    if missing := sorted(name for name in _FILES if not (path / name).is_file()):
        raise DataError(
            f"no folder that `datasets` saved: there is no {missing[0]}; expected what save_to_disk makes: check the "
            "path",
            path=path,
        )


def _parser(table: Any, path: Path, notes: Counter[str], options: Options) -> Callable[[Record], RawDocument]:
    """Return the function that parses a row of `table`, which has text and entities or tokens and tags.

    Raises:
        DataError: the table has no such columns.
    """
    features = table.features.to_dict()
    names = list(features)
    column = options.column if options.column is not None else _TAGS
    tag_column = names[column] if isinstance(column, int) and -len(names) <= column < len(names) else column
    is_tagged = _TOKENS in names and tag_column in names and _holds_tags(features[tag_column])
    if is_tagged and (options.column is not None or not {"text", tabular.ENTITIES} <= set(names)):
        assert isinstance(tag_column, str)
        names_of_tags = class_names(features[tag_column])
        tagged = Tagged(_TOKENS, tag_column, names_of_tags, notes, options.joiner, label=options.label)
        columns = table.select_columns([_TOKENS, tag_column])
        return tagged.after(_records(columns, path, Counter())).parse
    if _TOKENS in names and "text" not in names:
        raise DataError(
            f"there is no column of tags {tag_column!r} beside {_TOKENS}; columns found: "
            f"{', '.join(map(repr, names))}; name the column of tags (--column NAME)",
            path=path,
        )
    entities_column = tabular.entities_column(names, options, path)
    if entities_column is None:
        return lambda record: tabular.parse(record, None, notes)
    labels = class_names(features[entities_column])
    return lambda record: tabular.parse(_labelled(record, entities_column, labels), entities_column, notes)


def _records(table: Any, path: Path, notes: Counter[str]) -> Iterator[Record]:
    before = 0
    try:
        for batch in table.with_format("arrow").iter(batch_size=tabular.BATCH_ROWS):
            yield from tabular.records(batch, before, path, notes)
            before += batch.num_rows
    except (need("pyarrow", "datasets").ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _holds_tags(feature: dict[str, Any]) -> bool:
    """Return whether a column holds lists of strings, of numbers or of class labels."""
    return feature.get("feature", {}).get("_type") in ("Value", "ClassLabel")


def _labelled(record: Record, column: str, names: tuple[str, ...]) -> Record:
    """Return `record` with the names of class labels in place of numbers. Other values are kept, and refused later."""
    stated = record.values[column]
    if not names or not isinstance(stated, list):
        return record

    def named(row: object) -> object:
        if not isinstance(row, dict):
            return row
        label = row.get("label")
        return row | {"label": names[label]} if isinstance(label, int) and 0 <= label < len(names) else row

    return replace(record, values=record.values | {column: [named(row) for row in stated]})


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"not readable as a saved dataset: {error}; was the folder copied whole?", path=path)


@contextmanager
def _no_bars(datasets: ModuleType) -> Iterator[None]:
    """Hide the progress bars of the library `datasets`."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
