"""Read and write annotated files: the table of formats, and `bundled:` corpora.

A format is a module with `claims`, `read` and `write`, and it uses no other format. A new format is a module and an
entry of `FORMATS`, or a `Format` that another package names as an entry point of the group `spantune.formats`. Repairs
made in reading and losses in writing are counted in notes. A file that cannot be read faithfully is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

from spantune.core import DataError, Document, Extraction, expect, expect_each, from_prediction_record, nearest
from spantune.data.corpus import Corpus
from spantune.data.detection import Detector
from spantune.data.formats import (
    bioc,
    brat,
    ccks,
    chat,
    chip,
    cluener,
    cmeee,
    conll,
    datasets,
    dataturks,
    doccano,
    few_shot,
    gliner,
    label_studio,
    marked,
    native,
    pubtator,
    spacy,
    surfaces,
    table,
    token_tags,
    uie,
    webanno,
)
from spantune.data.offsets import settled
from spantune.data.raw import plugins
from spantune.data.raw.document import Item, Nested, Options, RawDocument, RawEntity, Sample, unique, verified
from spantune.data.raw.faithful import faithful
from spantune.data.raw.json_files import read_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.plugins import Format
from spantune.data.raw.stored import StoredFile, refuse_url, stored_file
from spantune.data.raw.text_files import is_stream

__all__ = [
    "BUNDLED", "BUNDLED_PREFIX", "FORMATS", "Corpus", "Format", "Item", "Nested", "Options", "RawDocument", "RawEntity",
    "Sample", "detect", "is_known", "items", "names", "of_name", "read", "read_dataset", "read_extractions", "resolve",
    "stream", "write"
]  # fmt: skip

BUNDLED = ("biomedical-en-test", "biomedical-en-train", "clinical-zh-test", "clinical-zh-train")
BUNDLED_PREFIX = "bundled:"
DEFAULTS = Options()


FORMATS = {
    "webanno": Format(webanno.read, None, webanno.claims),
    "native": Format(native.read, native.write, native.claims, divisible=True),
    "surfaces": Format(surfaces.read, surfaces.write, surfaces.claims),
    "few_shot": Format(few_shot.read, few_shot.write, few_shot.claims, divisible=True),
    "cmeee": Format(cmeee.read, cmeee.write, cmeee.claims),
    "ccks": Format(ccks.read, ccks.write, ccks.claims),
    "chip": Format(chip.read, chip.write, chip.claims),
    "conll": Format(conll.read, conll.write, conll.claims),
    "brat": Format(brat.read, brat.write, brat.claims, folder=True),
    "label_studio": Format(label_studio.read, label_studio.write, label_studio.claims),
    "doccano": Format(doccano.read, doccano.write, doccano.claims),
    "spacy": Format(spacy.read, spacy.write, spacy.claims),
    "token_tags": Format(token_tags.read, token_tags.write, token_tags.claims),
    "table": Format(table.read, table.write, table.claims),
    "datasets": Format(datasets.read, datasets.write, datasets.claims, folder=True),
    "cluener": Format(cluener.read, cluener.write, cluener.claims),
    "uie": Format(uie.read, uie.write, uie.claims),
    "gliner": Format(gliner.read, gliner.write, gliner.claims),
    "dataturks": Format(dataturks.read, None, dataturks.claims),
    "bioc": Format(bioc.read, bioc.write, bioc.claims),
    "chat": Format(chat.read, chat.write, chat.claims),
    "pubtator": Format(pubtator.read, pubtator.write, pubtator.claims),
    "marked": Format(marked.read, marked.write, marked.claims),
}
"""The formats that come with spantune, in the order in which they are asked whether they claim a file."""


def read(path: str | Path, format: str | None = None, options: Options = DEFAULTS) -> Corpus:
    """Read a whole corpus and verify every offset.

        corpus = spantune.read("cmeee.jsonl")
        print(corpus.format, len(corpus.documents), dict(corpus.notes))

    Args:
        path: a file, a folder or `bundled:NAME`.
        format: a name of `FORMATS`; recognised from the content when absent.
        options: what the file does not say itself, such as the column of the tags.

    Raises:
        DataError: the file is of no known format, or cannot be read as its format.
    """
    expect(path, (str, Path), "read", "the path of a corpus, or bundled:NAME")
    expect(format, (str, type(None)), "format", f"a name such as {', '.join(list(FORMATS)[:3])}, or None")
    expect(options, Options, "options", "Options(…)")
    file = resolve(path)
    name = format or detect(file, options)
    notes: Counter[str] = Counter()
    documents = tuple(verified(unique(_items(name, file, notes, options)), notes))
    if not documents:
        raise no_document(name, file, notes)
    return Corpus(documents, name, file, dict(+notes))


def no_document(format: str, path: Path, notes: Mapping[str, int]) -> DataError:
    """Return the error for a file without a document; `notes` say what was passed over in reading it."""
    passed = "; ".join(f"{count} × {note}" for note, count in notes.items() if count)
    counted = f" (counted: {passed})" if passed else ""
    return DataError(
        f"no document was found, read as {format}{counted}; expected at least one: check the path", path=path
    )


def read_dataset(table: object, options: Options = DEFAULTS) -> Corpus:
    """Read an open `datasets.Dataset` as `read` reads a saved one; see `Corpus.from_datasets`.

    Raises:
        DataError: there are no rows or no such columns, or a row cannot be read.
    """
    notes: Counter[str] = Counter()
    path = Path("dataset")
    items = faithful(settled(datasets.read_table(table, path, notes, options), options.offsets, notes), notes)
    documents = tuple(verified(unique(items), notes))
    if not documents:
        raise DataError("the dataset has no rows; expected at least one", path=path)
    return Corpus(documents, "datasets", path, dict(+notes))


def read_extractions(path: Path) -> list[Extraction]:
    """Read a predictions file of a run: native JSONL with the raw answers, and in `meta` what was wrong with them.

    Raises:
        DataError: the file cannot be read.
    """
    documents = read(path, "native").documents
    records = [record for record in read_json_lines(path, Counter()) if isinstance(record, Record)]
    answers = {record.values.get("id"): str(record.values.get("answer", "")) for record in records}
    return [from_prediction_record(document, answers.get(document.id, "")) for document in documents]


def stream(
    path: str | Path, format: str | None, notes: Counter[str], options: Options = DEFAULTS
) -> Iterator[Document]:
    """Yield the documents of `path` as they are read; `notes` is complete after the last document.

    Raises:
        DataError: as `read` raises it, when the wrong document is reached. Repeated ids are not detected, because no id
            is kept.
    """
    return verified(items(path, format, notes, options), notes)


def items(path: str | Path, format: str | None, notes: Counter[str], options: Options = DEFAULTS) -> Iterator[Item]:
    """Yield the unverified content of `path`: a RawDocument, or a DataError for a document that cannot be read.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    file = resolve(path)
    return _items(format or detect(file, options), file, notes, options)


def write(
    path: str | Path, documents: Iterable[Document], format: str = "native", options: Options = DEFAULTS
) -> dict[str, int]:
    """Write `documents` to `path`, and return what the format could not hold, with counts.

        spantune.write("corpus.json", corpus.documents, "label_studio")

    An existing file is replaced only after all documents have been written.

    Args:
        path: the file or folder to write.
        documents: a list of Documents, or a Corpus.
        format: a name of `FORMATS` that can be written.
        options: how to write, such as what to do with overlapping entities.

    Raises:
        DataError: the format cannot hold a document, or the file cannot be written.
    """
    expect(path, (str, Path), "write", "the path to write to")
    expect(format, str, "format", f"a name such as {', '.join(list(FORMATS)[:3])}")
    expect(options, Options, "options", "Options(…)")
    checked = expect_each(documents, Document, "documents", "a list of Documents, such as corpus.documents")
    notes: Counter[str] = Counter()
    writer = of_name(format, writing=True).write
    assert writer is not None
    writer(Path(path), checked, notes, options)
    return dict(+notes)


def detect(path: str | Path, options: Options = DEFAULTS) -> str:
    """Return the name of the format of `path`, judged by its content; `options` are those with which it will be read.

    Raises:
        DataError: no format claims the content.
        ConfigError: the encoding is unknown.
    """
    return Detector(FORMATS).name_of(resolve(path), options)


def resolve(path: str | Path) -> Path:
    """Return the file that `path` names; `bundled:NAME` is a corpus that comes with the package.

    Raises:
        ConfigError: the path is the URL of a file in object storage, which only workers of Ray read.
        DataError: there is no bundled corpus of that name, or the file is a pipe, which can be read only once.
    """
    if isinstance(path, StoredFile):
        return stored_file(path.url)
    refuse_url(str(path))
    if not str(path).startswith(BUNDLED_PREFIX):
        if str(path) == "-" or is_stream(Path(path)):
            raise DataError("this can be read once only, as a pipe; write it to a file first", path=path)
        return Path(path)
    name = str(path).removeprefix(BUNDLED_PREFIX)
    if name not in BUNDLED:
        raise DataError(f"no corpus {name!r} comes with spantune; {nearest(name, BUNDLED)}", path=path)
    return Path(str(resources.files("spantune").joinpath("data", "bundled", f"{name}.txt")))


def names() -> list[str]:
    """Return the names of all known formats: those of spantune, and those that installed packages add.

    Raises:
        ConfigError: a package adds a format with a name that is taken.
    """
    return [*FORMATS, *plugins.added_names(FORMATS)]


def is_known(name: str) -> bool:
    """Return whether there is a format of that name; other packages are searched only if spantune has none.

    Raises:
        ConfigError: a package adds a format with a name that is taken.
    """
    return name in FORMATS or name in names()


def of_name(name: str, *, writing: bool = False) -> Format:
    """Return the format `name`, and load it if it is of another package. With `writing`, it must have a writer.

    Raises:
        DataError: there is no format of that name, or it can only be read.
        ConfigError: a format of another package cannot be loaded.
    """
    if not is_known(name):
        raise DataError(f"unknown format {name!r}; {nearest(name, names())}")
    format = FORMATS[name] if name in FORMATS else plugins.added(name)
    if writing and format.write is None:
        writable = ", ".join(name for name in FORMATS if FORMATS[name].write)
        raise DataError(f"{name} can only be read; write one of {writable}")
    return format


def _items(name: str, file: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield what the format reads, with offsets in code points, and with meta that every output can hold."""
    return faithful(settled(of_name(name).read(file, notes, options), options.offsets, notes), notes)
