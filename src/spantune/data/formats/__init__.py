"""Read and write annotated files: the table of formats, detection by content, and `bundled:` corpora.

A format is a module with `claims`, `read` and `write`, and it uses no other format. A new format is a module and an
entry of `FORMATS`, or a `Format` that another package names as an entry point of the group `spantune.formats`. Repairs
made in reading and losses in writing are counted in notes. A file that cannot be read faithfully is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from itertools import islice
from pathlib import Path

from spantune.core import (
    DataError,
    Document,
    Extraction,
    expect,
    expect_each,
    from_prediction_record,
    nearest,
    to_json,
)
from spantune.data.corpus import Corpus
from spantune.data.formats import (
    bioc,
    brat,
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
from spantune.data.raw.json_files import read_json_array, read_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.plugins import Format
from spantune.data.raw.stored import StoredFile, refuse_url, stored_file
from spantune.data.raw.text_files import is_stream, read_bytes, read_chunks

__all__ = [
    "BUNDLED", "BUNDLED_PREFIX", "FORMATS", "Corpus", "Format", "Item", "Nested", "Options", "RawDocument", "RawEntity",
    "Sample", "detect", "is_known", "items", "names", "of_name", "read", "read_dataset", "read_extractions", "resolve",
    "stream", "write"
]  # fmt: skip

BUNDLED = ("biomedical-en-test", "biomedical-en-train", "clinical-zh-test", "clinical-zh-train")

BUNDLED_PREFIX = "bundled:"
_SAMPLE_LINES = 200
_SAMPLE_BYTES = 1 << 16
_BLANK = b"\xef\xbb\xbf \t\r\n"
DEFAULTS = Options()


FORMATS = {
    "webanno": Format(webanno.read, None, webanno.claims),
    "native": Format(native.read, native.write, native.claims, divisible=True),
    "surfaces": Format(surfaces.read, surfaces.write, surfaces.claims),
    "few_shot": Format(few_shot.read, few_shot.write, few_shot.claims, divisible=True),
    "cmeee": Format(cmeee.read, cmeee.write, cmeee.claims),
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
    file = resolve(path)
    try:
        return _detect(file, options)
    except DataError:
        if file.exists() and (name := _added_claimant(file, options)):
            return name
        raise


def _added_claimant(file: Path, options: Options) -> str | None:
    """Return the name of a format of another package that claims `file`; None if there is none."""
    if not (added_names := plugins.added_names(FORMATS)):
        return None
    if file.is_dir():
        samples = [_folder_sample(file, options)]
    else:
        head = read_bytes(file, _SAMPLE_BYTES)
        text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
        first = next((r.values for r in _some_records(file, text, options) if isinstance(r, Record)), None)
        samples = [
            Sample(file, head, options=options),
            Sample(file, head, text, options=options),
            Sample(file, head, text, first, options=options),
        ]
    formats = [(name, of_name(name)) for name in added_names]
    return next((name for sample in samples for name, format in formats if format.claims(sample)), None)


def _some_records(file: Path, text: str, options: Options) -> Iterator[Record | DataError]:
    """Yield some JSON objects of a file, until it turns out not to be JSON."""
    if text[:1] not in ("[", "{"):
        return
    try:
        read_records = read_json_array if text[0] == "[" else read_json_lines
        yield from islice(read_records(file, Counter(), options.encoding), _SAMPLE_LINES)
    except DataError:
        return


def _folder_sample(folder: Path, options: Options) -> Sample:
    return Sample(folder, files=tuple(sorted(entry.name for entry in folder.iterdir())), options=options)


def _detect(file: Path, options: Options) -> str:
    if file.is_dir():
        sample = _folder_sample(file, options)
        content = f"a folder with {', '.join(sample.files[:5]) or 'nothing in it'}"
        return _claimant(sample) or _unclaimed(sample, content)
    head = read_bytes(file, _SAMPLE_BYTES)
    if name := _claimant(Sample(file, head, options=options)):  # a binary file
        return name
    try:
        chunks = read_chunks(file, Counter(), options.encoding)
        text = next(chunk for chunk in chunks if chunk.strip()).lstrip("\r\n")
    except DataError:
        if not head.lstrip(_BLANK).startswith(b"{"):
            raise
        text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")  # JSONL of which a single line may be unreadable
    lines = [line.removesuffix("\r") for line in text.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES]]
    first = next(line for line in lines if line.strip())
    sample = Sample(file, head, "\n".join(lines), options=options)
    if first.lstrip()[0] in "[{" and (name := _of_records(sample, first.lstrip())):
        return name
    return _claimant(sample) or _unclaimed(sample, f"text beginning {first[:40]!r}")


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


def _claimant(sample: Sample) -> str | None:
    return next((name for name, format in FORMATS.items() if format.claims(sample)), None)


def _of_records(sample: Sample, first: str) -> str | None:
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
                if record.line is not None and record.line > _SAMPLE_LINES:
                    break
                continue
            read_any = True
            if name := _claimant(replace(sample, text="", record=record.values)):  # the text is not searched twice
                return name
            names = set(record.values)
            has_id = has_id or "id" in names
            if "text" in names and (names <= {"id", "text", "meta"} or _is_bare_text(record.values, sample.options)):
                break  # texts to extract from
            stated = [record.values[name] for name in ("entities", "label", "labels") if name in names]
            if "text" not in names or not stated or any(value not in ([], {}, None) for value in stated):
                sample = replace(sample, text="", record=record.values)
                return _unclaimed(sample, f"an object with {', '.join(record.values)[:80]}")
    except DataError as error:
        broken = broken or error
    if not read_any and _claimant(sample):  # the file is not JSON, such as marked text that begins with a bracket
        return None
    if broken is not None:
        raise broken
    return "cmeee" if is_array and not has_id else "native"


def _is_bare_text(values: Mapping[str, object], options: Options) -> bool:
    """Return whether an object is a text without entities, if such texts may be read; it may have other fields."""
    return options.unannotated and isinstance(values.get("text"), str) and "entities" not in values


def _fields_of_documents(sample: Sample) -> list[str]:
    """Return the fields of an object that hold lists of documents of a known format, or of plain texts."""
    fields = []
    for name, rows in (sample.record or {}).items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            is_text = all("text" in row and row.keys() <= {"id", "text", "meta", "entities"} for row in rows)
            if is_text or _claimant(replace(sample, text="", record=rows[0])):
                fields.append(name)
    return fields


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


def _sign_between(sample: Sample) -> str | None:
    """Return the sign that separates the columns of token lines where tabs should; None if there is none."""
    signs = (sign for sign in ",;|" if sign in sample.text)
    return next((sign for sign in signs if conll.claims(replace(sample, text=sample.text.replace(sign, "\t")))), None)


def _with_tabs(sign: str, text: str) -> str:
    """Return a command that replaces `sign` by tabs; it respects quoted cells if `text` has them, as CSV does."""
    if '"' in text and all(line.count('"') % 2 == 0 for line in text.split("\n")):
        code = f"import csv, sys; [print(*row, sep='\\t') for row in csv.reader(sys.stdin, delimiter='{sign}')]"
        return f'python3 -c "{code}" < FILE > NEW.tsv'
    return f"tr '{sign}' '\\t' < FILE > NEW.tsv"


def _unclaimed(sample: Sample, content: str) -> str:
    remedies = "Name the one it is (data.format=NAME, --format or --from NAME), or convert it"
    if sample.record is None and sample.text and sample.options.column is None:
        remedies = (
            "Name the column of tags or entities (data.column, --column NAME or NUMBER) if it is a table or has a "
            f"token a line; else n{remedies[1:]}"
        )
    if sample.text and sample.options.column is not None:
        content += f", and whose column {sample.options.column!r} holds no tags or entities"
    if sample.options.unannotated and any(name.endswith(".txt") for name in sample.files):
        remedies = f"To read its text files, name them: {sample.path}/*.txt, with --whole-file if each is one document"
    each = ".[] | " if sample.head.lstrip(_BLANK).startswith(b"[") else ""
    if encoded := _fields_of_json(sample.record or {}):
        paths = " | ".join(f"{_jq(name)} |= fromjson" for name in encoded)
        remedies = (
            f"Its field {' and '.join(map(repr, encoded))} is JSON inside a string; take it out of there: "
            f"jq -c '{each}{paths}' FILE > NEW.jsonl"
        )
    if inner := _fields_of_documents(sample):
        remedies = (
            f"The documents seem to be in its field {' and '.join(map(repr, inner))}; take them out: "
            f"jq -c '{each}{_jq(inner[0])}[]' FILE > NEW.jsonl"
        )
    if sample.record is None and (sign := _sign_between(sample)):
        remedies = (
            f"It seems to have a token a line, with {sign!r} between the columns; put tabs there: "
            f"{_with_tabs(sign, sample.text)}"
        )
    if sample.head.count(0) * 4 > len(sample.head) and "\0" in sample.text:
        remedies = "It looks like UTF-16 or UTF-32: name its encoding (data.encoding, --encoding utf-16-le, say)"
    raise DataError(
        f"found {content}, which is of no known format; known: {', '.join(names())}. {remedies}", path=sample.path
    )
