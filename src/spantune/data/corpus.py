"""Corpus: the documents of a file, of rows in memory or of a Hugging Face dataset; and documents as rows again."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    data_frame,
    draw_entities,
    expect,
    expect_each,
    framed_html,
    label_order,
    need,
    number,
    prefer_label_order,
    table_html,
    to_json,
    to_record,
)
from spantune.data.raw.document import Options
from spantune.data.raw.json_files import write_json_lines

if TYPE_CHECKING:
    import pandas

SHOWN = 5
"""How many documents of a corpus a notebook shows."""
DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents that were read from a file, from rows in memory or from a dataset.

    Iterating over a Corpus yields its Documents, so it can be passed wherever a list of Documents is expected.

    Args:
        documents: the documents, in the order of the file.
        format: the name of the format as which the file was read.
        path: the file; a name such as `records` where the corpus was made in memory.
        notes: what reading repaired or missed, with counts.
    """

    documents: tuple[Document, ...]
    format: str
    path: Path
    notes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dicts(
        cls, records: Iterable[Mapping[str, object]], format: str | None = None, options: Options = DEFAULTS
    ) -> Corpus:
        """Make a corpus from JSON objects in memory. They are read as the lines of a JSON Lines file are.

            corpus = Corpus.from_dicts([{"text": "肺炎", "entities": [{"start": 0, "end": 2, "label": "dis"}]}])

        Args:
            records: objects of any JSON format, such as native, doccano's, or tokens with `ner_tags`.
            format: a name of `FORMATS`; recognised from the content when absent.
            options: as in `read`.

        Raises:
            ConfigError: `records` is no list of mappings.
            DataError: the records are of no known format, or one cannot be read. `line` is the number of the record,
                from 1.
        """
        from spantune.data import formats

        name = "records"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.jsonl")
            write_json_lines(path, _plain(records, name))
            if not path.stat().st_size:
                raise DataError("there are no records; expected at least one", path=name)
            try:
                corpus = formats.read(path, format, options)
            except DataError as error:
                raise DataError(error.message, path=name, line=error.line, field=error.field) from None
        return replace(corpus, path=Path(name))

    @classmethod
    def from_datasets(cls, dataset: object, options: Options = DEFAULTS) -> Corpus:
        """Make a corpus from a `Dataset` of Hugging Face's library `datasets`.

            corpus = Corpus.from_datasets(datasets.load_dataset("…", split="train"))

        Args:
            dataset: one split, with columns `tokens` and `ner_tags`, or `text` and `entities`.
            options: `column` names another column of tags or entities; the others are as in `read`.

        Raises:
            ConfigError: `dataset` is no Dataset, or `datasets` is not installed.
            DataError: there are no such columns, or a row cannot be read. `line` is the number of the row.
        """
        from spantune.data import formats

        expect(options, Options, "options", "Options(…)")
        return formats.read_dataset(_one_split(dataset), options)

    @property
    def name(self) -> str:
        """The name by which `read` finds the corpus: its path, or `bundled:NAME`."""
        from spantune.data import formats

        name = f"{formats.BUNDLED_PREFIX}{self.path.stem}"
        return name if self.path.stem in formats.BUNDLED and formats.resolve(name) == self.path else str(self.path)

    @property
    def labels(self) -> dict[str, int]:
        """The number of entities of each label, the most frequent label first."""
        return dict(Counter(entity.label for document in self.documents for entity in document.entities).most_common())

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        labels = ", ".join(f"{label} {count}" for label, count in self.labels.items()) or "none"
        return f"Corpus({self.name!r}, {self.format}, {number(len(self), 'document')}, labels: {labels})"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{count:,} × {escape(note)}</li>" for note, count in self.notes.items())
        labels = [(label, f"{count:,}") for label, count in self.labels.items()]
        annotated = [document for document in self.documents if document.entities] or self.documents
        prefer_label_order(self.labels, is_task=False)
        order = label_order(self.labels)
        shown = "".join(draw_entities(document, order) for document in annotated[:SHOWN])
        head = f"{self.name}: {number(len(self), 'document')}, format {self.format}"
        return framed_html(
            f"<p><b>{escape(head)}</b></p>{f'<ul>{notes}</ul>' if notes else ''}"
            f"{table_html(('label', 'entities'), labels)}{shown}"
        )

    def to_dicts(self) -> list[dict[str, object]]:
        """Return the documents as native JSON objects, which `from_dicts` can read; see `spantune.to_dicts`."""
        return to_dicts(self.documents)

    def to_pandas(self, rows: Literal["entities", "documents"] = "entities") -> pandas.DataFrame:
        """Return the entities or the documents as a DataFrame; see `spantune.to_pandas`."""
        return to_pandas(self.documents, rows)


def to_dicts(documents: Iterable[Document]) -> list[dict[str, object]]:
    """Return `documents` as native JSON objects: id, text, entities with their surface, and meta if it is not empty.

    Raises:
        ConfigError: `documents` is no list of Documents.
    """
    return [to_record(document) for document in _checked(documents)]


def to_pandas(documents: Iterable[Document], rows: Literal["entities", "documents"] = "entities") -> pandas.DataFrame:
    """Return `documents` as a DataFrame.

    Args:
        documents: a list of Documents, or a Corpus.
        rows: with `entities`, each entity is a row with the id of its document, start, end, label, text and score; a
            document without entities has no row. With `documents`, each document is a row, as in `to_dicts`.

    Raises:
        ConfigError: `documents` is no list of Documents, `rows` is another word, or pandas is not installed.
    """
    if rows == "documents":
        return data_frame(to_dicts(documents), ["id", "text", "entities"])
    if rows != "entities":
        raise ConfigError(f"rows: found {rows!r}; expected 'entities' or 'documents'")
    entities = (
        {
            "id": document.id,
            "start": entity.start,
            "end": entity.end,
            "label": entity.label,
            "text": document.surface(entity),
            "score": entity.score,
        }
        for document in _checked(documents)
        for entity in document.entities
    )
    return data_frame(entities, ["id", "start", "end", "label", "text", "score"])


def _checked(documents: Iterable[Document]) -> Iterator[Document]:
    return expect_each(documents, Document, "documents", "a list of Documents, such as corpus.documents")


def _plain(records: Iterable[Mapping[str, object]], name: str) -> Iterator[Mapping[str, object]]:
    """Yield `records`, and check that each can be written as JSON."""
    if isinstance(records, Mapping):
        expect(records, (), name, "a list of mappings such as [{'text': …, 'entities': […]}]")
    for count, record in enumerate(expect_each(records, (dict, Mapping), name, "a list of mappings"), start=1):
        try:
            to_json(record)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"not plain values: {error}; expected texts, numbers, lists and mappings: convert them", path=name,
                line=count,
            ) from None  # fmt: skip
        yield record


def _one_split(dataset: object) -> object:
    """Return `dataset` after checking that it is a table of one split."""
    datasets = need("datasets", "datasets", "Corpus.from_datasets")
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = [*dataset]
        raise ConfigError(
            f"dataset: found the splits {', '.join(map(str, splits))}; give one of them, such as dataset[{splits[0]!r}]"
            if splits
            else "dataset: found no split in it; expected a datasets.Dataset"
        )
    expected = "a datasets.Dataset; of a stream make one with Dataset.from_generator, or give its rows to from_dicts"
    return expect(dataset, datasets.Dataset, "dataset", expected)
