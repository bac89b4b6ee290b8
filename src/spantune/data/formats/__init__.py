"""Read and write annotated files: the table of formats, detection by content, and `bundled:` corpora.

A format is a module with `claims`, `read` and `write` that uses no other format; a new one is a module and a line here.
Repairs made in reading and losses in writing are counted in notes; a file that cannot be read faithfully is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from spantune.core import DataError, Document, Extraction, from_prediction_record, nearest
from spantune.data.formats import (
    brat,
    chip,
    cmeee,
    conll,
    datasets,
    doccano,
    few_shot,
    label_studio,
    marked,
    native,
    spacy,
    table,
)
from spantune.data.offsets import settled
from spantune.data.raw.document import Item, Nested, Options, Sample, unique, verified
from spantune.data.raw.json_records import Record, read_json_array, read_json_lines
from spantune.data.raw.text_files import is_stream, read_bytes, read_chunks

__all__ = [
    "BUNDLED", "FORMATS", "Corpus", "Format", "Item", "Nested", "Options",
    "detect", "items", "read", "read_extractions", "resolve", "stream", "write"
]  # fmt: skip

BUNDLED = ("biomedical-en-test", "biomedical-en-train", "clinical-zh-test", "clinical-zh-train")

FOLDERS = ("brat", "datasets")
"""Formats that write a folder."""

_IN_CODE_POINTS = ("conll", "marked", "brat")  # no offsets are stated, or, in brat, the reader converts its parts
_BUNDLED_PREFIX = "bundled:"
_SAMPLE_LINES = 200
_SAMPLE_BYTES = 1 << 16
_BLANK = b"\xef\xbb\xbf \t\r\n"
DEFAULTS = Options()


class Format(NamedTuple):
    """The functions of a format module."""

    read: Callable[[Path, Counter[str], Options], Iterator[Item]]
    write: Callable[[Path, Iterable[Document], Counter[str], Options], None]
    claims: Callable[[Sample], bool]


FORMATS = {
    "native": Format(native.read, native.write, native.claims),
    "few_shot": Format(few_shot.read, few_shot.write, few_shot.claims),
    "cmeee": Format(cmeee.read, cmeee.write, cmeee.claims),
    "chip": Format(chip.read, chip.write, chip.claims),
    "conll": Format(conll.read, conll.write, conll.claims),
    "brat": Format(brat.read, brat.write, brat.claims),
    "label_studio": Format(label_studio.read, label_studio.write, label_studio.claims),
    "doccano": Format(doccano.read, doccano.write, doccano.claims),
    "spacy": Format(spacy.read, spacy.write, spacy.claims),
    "table": Format(table.read, table.write, table.claims),
    "datasets": Format(datasets.read, datasets.write, datasets.claims),
    "marked": Format(marked.read, marked.write, marked.claims),
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a file, the format it was read as, and `notes`: what was repaired or missing, with counts."""

    documents: tuple[Document, ...]
    format: str
    path: Path
    notes: Mapping[str, int] = field(default_factory=dict)


def read(path: str | Path, format: str | None = None, options: Options = DEFAULTS) -> Corpus:
    """Read a whole corpus and verify every offset.

        corpus = spantune.read("cmeee.jsonl")
        print(corpus.format, len(corpus.documents), dict(corpus.notes))

    Args:
        path: a file, a folder or `bundled:NAME`.
        format: a name of `FORMATS`; recognised from the content when absent.
        options: what some formats need to know, such as the column of the tags.

    Raises:
        DataError: the file cannot be read as what it claims to be.
    """
    file = resolve(path)
    name = format or detect(file)
    notes: Counter[str] = Counter()
    documents = tuple(verified(unique(_settled(name, file, notes, options)), notes))
    if not documents:
        raise DataError(f"no document was found, read as {name}; expected at least one: check the path", path=file)
    return Corpus(documents, name, file, dict(+notes))


def read_extractions(path: Path) -> list[Extraction]:
    """Read a predictions file of a run: native JSONL with raw answers, and with what was wrong with them in `meta`.

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
    """Yield the documents of `path` as they are read; `notes` is complete after the last one.

    Raises:
        DataError: as `read`, when its place is reached; repeated ids are not detected, because no id is stored.
    """
    return verified(items(path, format, notes, options), notes)


def items(path: str | Path, format: str | None, notes: Counter[str], options: Options = DEFAULTS) -> Iterator[Item]:
    """Yield the unverified content of `path`: a RawDocument, or a DataError for a document that cannot be read.

    Raises:
        DataError: the file cannot be read any further.
    """
    file = resolve(path)
    return _settled(format or detect(file), file, notes, options)


def write(
    path: str | Path, documents: Iterable[Document], format: str = "native", options: Options = DEFAULTS
) -> dict[str, int]:
    """Write `documents` to `path`, and return what the format could not hold, with counts.

        spantune.write("corpus.json", corpus.documents, "label_studio")

    An existing file is replaced only when all documents are written.

    Raises:
        DataError: the format cannot hold a document, or the file cannot be written.
    """
    notes: Counter[str] = Counter()
    _format(format).write(Path(path), documents, notes, options)
    return dict(+notes)


def detect(path: str | Path) -> str:
    """Return the name of the format of `path`, from its content.

    Raises:
        DataError: no format claims the content.
    """
    file = resolve(path)
    if file.is_dir():
        sample = Sample(file, files=tuple(sorted(entry.name for entry in file.iterdir())))
        return _claimant(sample) or _unclaimed(file, f"a folder with {', '.join(sample.files[:5]) or 'nothing in it'}")
    head = read_bytes(file, _SAMPLE_BYTES)
    if name := _claimant(Sample(file, head)):  # a binary file
        return name
    try:
        text = next(chunk for chunk in read_chunks(file, Counter()) if chunk.strip()).lstrip("\r\n")
    except DataError:
        if not head.lstrip(_BLANK).startswith(b"{"):
            raise
        text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")  # JSONL, of which one line may be unreadable
    lines = [line.removesuffix("\r") for line in text.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES]]
    first = next(line for line in lines if line.strip())
    sample = Sample(file, head, "\n".join(lines))
    if first.lstrip()[0] in "[{" and (name := _of_records(sample, first.lstrip())):
        return name
    return _claimant(sample) or _unclaimed(file, f"text beginning {first[:40]!r}")


def resolve(path: str | Path) -> Path:
    """Return the file that `path` names; `bundled:NAME` is a corpus that comes with the package.

    Raises:
        DataError: there is no bundled corpus of that name, or the file is a pipe: a corpus is read more than once.
    """
    if not str(path).startswith(_BUNDLED_PREFIX):
        if is_stream(Path(path)):
            raise DataError("this can be read once only, as a pipe; write it to a file first", path=path)
        return Path(path)
    name = str(path).removeprefix(_BUNDLED_PREFIX)
    if name not in BUNDLED:
        raise DataError(f"no corpus {name!r} comes with spantune; {nearest(name, BUNDLED)}", path=path)
    return Path(str(resources.files("spantune").joinpath("data", "bundled", f"{name}.txt")))


def _settled(name: str, file: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield what the format reads, with offsets in code points."""
    unit = "codepoints" if name in _IN_CODE_POINTS else options.offsets
    return settled(_format(name).read(file, notes, options), unit, notes)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
    return FORMATS[name]


def _claimant(sample: Sample) -> str | None:
    return next((name for name, format in FORMATS.items() if format.claims(sample)), None)


def _of_records(sample: Sample, first: str) -> str | None:
    """Return the format that claims an object of a JSON file; None if the file is not JSON.

    If all texts have an empty entity list, or none, several formats are possible: an array is taken for CMeEE, JSONL
    for the native format.
    """
    is_array = first.startswith("[")
    broken: DataError | None = None
    read_any = False
    try:
        for record in (read_json_array if is_array else read_json_lines)(sample.path, Counter()):
            if isinstance(record, DataError):  # reading will report it; a later line may show the format
                broken = broken or record
                if record.line is not None and record.line > _SAMPLE_LINES:
                    break
                continue
            read_any = True
            if name := _claimant(replace(sample, record=record.values)):
                return name
            names = set(record.values)
            if "text" in names and names <= {"id", "text", "meta"}:
                break  # texts to extract from
            if "text" not in names or record.values.get("entities") != []:
                return _unclaimed(sample.path, f"an object with {', '.join(record.values)[:80]}")
    except DataError as error:
        broken = broken or error
    if not read_any and _claimant(sample):  # marked text, say, that begins with a bracket
        return None
    if broken is not None:
        raise broken
    return "cmeee" if is_array else "native"


def _unclaimed(path: Path, content: str) -> str:
    raise DataError(
        f"found {content}, which is of no known format; known: {', '.join(FORMATS)}. Name the one it is "
        "(data.format=NAME, --format or --from NAME), or convert it",
        path=path,
    )
