"""A folder that Hugging Face `datasets` saved (`save_to_disk`): text and entities, or tokens and tags.

The first shape is that of `rows`, with the entities as a list of structs or as JSON; it is the one written. In the
second, the text is made of `tokens` by the rule of the module of that name, and `ner_tags`, class labels or strings,
are decoded by that of `tags`; broken ones are refused unless mended. It refuses a folder of several splits.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from spantune.core import DataError, Document, need, replacing_path
from spantune.data.raw import tabular, tags, tokens
from spantune.data.raw.document import Defect, Item, Options, RawDocument, RawEntity, Sample, each
from spantune.data.raw.json_records import Record
from spantune.data.rules import Rule

_SPLITS = "dataset_dict.json"
_FILES = {"dataset_info.json", "state.json"}
_TOKENS, _TAGS = "tokens", "ner_tags"


def claims(sample: Sample) -> bool:
    """Whether the folder can only be this format."""
    return set(sample.files) >= _FILES or _SPLITS in sample.files


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of the folder `path`, called `<name>-<row>` where no id is given; rows are counted from 1.

    Raises:
        DataError: the folder holds splits or no such table, or cannot be read any further.
        ConfigError: `datasets` is not installed.
    """
    datasets = need("datasets", "datasets")
    _check(path)
    try:
        with _no_bars(datasets):
            table = datasets.load_from_disk(str(path))
    except (need("pyarrow", "datasets").ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    return each(_records(table, path, notes), _parser(table, path, notes, options))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to the new folder `path`; `options.column` may name the entities' column.

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


@dataclass(frozen=True, slots=True)
class _Tagged:
    """The column of tags, the names where they are numbers, and what all rows together tell of scheme and joiner."""

    column: str
    names: tuple[str, ...]
    notes: Counter[str]
    joiner: str | None = None
    scheme: tags.Scheme = "IOB2"

    def after(self, records: Iterable[Record | DataError]) -> _Tagged:
        """The same with the scheme and joiner that `records` show; rows that cannot be read are passed over."""
        written, schemes = tokens.TokenCensus(), tags.SchemeCensus()
        for record in records:
            try:
                words, found = self._row(record) if isinstance(record, Record) else ([], [])
            except DataError:
                continue
            for word in words:
                written.add(word, False)
            for before, tag in pairwise([tags.OUTSIDE, *found, tags.OUTSIDE]):
                schemes.add(tag, before)
        characters = written.cjk and written.characters and self.joiner is None
        return replace(self, joiner="" if characters else self.joiner, scheme=schemes.scheme)

    def parse(self, record: Record) -> RawDocument:
        words, found = self._row(record)
        text, spans = tokens.join(words, self.joiner)
        self.notes["text joined from its tokens"] += 1
        entities = []
        for chunk in tags.decode(found, self.scheme):
            start, end = spans[chunk.start][0], spans[chunk.end - 1][1]
            defect = Defect(Rule.BROKEN_TRANSITION, chunk.fault, tolerated=False) if chunk.fault else None
            field = f"{self.column}[{chunk.place if chunk.fault else chunk.start}]"
            entities.append(RawEntity(start, end, chunk.label, text[start:end], field=field, defect=defect))
        return tabular.document(record, text, tuple(entities), self.notes, (_TOKENS, self.column))

    def _row(self, record: Record) -> tuple[list[str], list[tags.Tag]]:
        words, stated = record.values[_TOKENS], record.values[self.column]
        if not isinstance(words, list) or not isinstance(stated, list) or len(words) != len(stated):
            raise record.error(
                f"expected a list of tokens and one of as many tags; found {_size(words)} and {_size(stated)}: mend "
                "the row",
                self.column,
            )
        for index, word in enumerate(words):
            replace(record, values={_TOKENS: word}, inside=f"token {index} of ").text(_TOKENS)
        return words, [self._tag(record, value, index) for index, value in enumerate(stated)]

    def _tag(self, record: Record, value: Any, index: int) -> tags.Tag:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        name = self.names[value] if is_number and 0 <= value < len(self.names) else value
        if isinstance(name, str) and (tag := tags.parse_tag(name)):
            return tag
        valid = f"a number below {len(self.names)}" if self.names else "a string"
        raise record.error(
            f"found {name!r}; expected {valid} for a tag such as O, B-dis, I-dis: map the tags of the column, or name "
            "another (--column NAME)",
            f"{self.column}[{index}]",
        )


def _check(path: Path) -> None:
    """Refuse what is no folder of one saved dataset."""
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
    """How to read a row of `table`: as text and entities, or as tokens and tags."""
    features = table.features.to_dict()
    names = list(features)
    wanted = options.column if options.column is not None else _TAGS
    tag_column = names[wanted] if isinstance(wanted, int) and -len(names) <= wanted < len(names) else wanted
    is_tagged = _TOKENS in names and tag_column in names and _holds_tags(features[tag_column])
    if is_tagged and (options.column is not None or not {"text", tabular.ENTITIES} <= set(names)):
        assert isinstance(tag_column, str)
        tagged = _Tagged(tag_column, _class_names(features[tag_column]), notes, options.joiner)
        columns = table.select_columns([_TOKENS, tag_column])
        return tagged.after(_records(columns, path, Counter())).parse
    if _TOKENS in names and "text" not in names:
        raise DataError(
            f"there is no column of tags {tag_column!r} beside {_TOKENS}; columns found: "
            f"{', '.join(map(repr, names))}; name the column of tags (--column NAME)",
            path=path,
        )
    column = tabular.entities_column(names, options, path)
    labels = _class_names(features[column])
    return lambda record: tabular.parse(_labelled(record, column, labels), column, notes)


def _records(table: Any, path: Path, notes: Counter[str]) -> Iterator[Record]:
    before = 0
    try:
        for batch in table.with_format("arrow").iter(batch_size=tabular.BATCH_ROWS):
            yield from tabular.records(batch, before, path, notes)
            before += batch.num_rows
    except (need("pyarrow", "datasets").ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _holds_tags(feature: dict[str, Any]) -> bool:
    """Whether a column is one of lists of strings, numbers or class labels."""
    return feature.get("feature", {}).get("_type") in ("Value", "ClassLabel")


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """The names of the class labels in a column of lists, of labels or of structs with a `label`; none elsewhere."""
    inner = feature.get("feature", feature)
    label = inner.get("label", inner)
    return tuple(label.get("feature", label).get("names") or ())


def _labelled(record: Record, column: str, names: tuple[str, ...]) -> Record:
    """`record` with the numbers of class labels replaced by their names; what is none is left for its error."""
    stated = record.values[column]
    if not names or not isinstance(stated, list):
        return record

    def named(row: Any) -> Any:
        label = row.get("label") if isinstance(row, dict) else None
        return row | {"label": names[label]} if isinstance(label, int) and 0 <= label < len(names) else row

    return replace(record, values=record.values | {column: [named(row) for row in stated]})


def _size(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else repr(value)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"not readable as a saved dataset: {error}; was the folder copied whole?", path=path)


@contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Keep the library's progress bars off the terminal."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
