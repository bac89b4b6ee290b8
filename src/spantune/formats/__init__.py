"""Annotated files in and out: the table of formats, recognising one by its content, and `bundled:` corpora.

A format is a module with `claims`, `read` and `write` that knows no other format; adding one is a module and a line
here. What a reader mends and a writer leaves out is counted in notes; what it cannot read faithfully it refuses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from spantune.document import Document
from spantune.errors import DataError, nearest
from spantune.formats import cmeee, few_shot, marked, native
from spantune.formats.files import read_lines
from spantune.formats.record import read_json_array, read_json_lines

BUNDLED = ("biomedical-en-test", "biomedical-en-train", "clinical-zh-test", "clinical-zh-train")

_BUNDLED_PREFIX = "bundled:"
_SAMPLE_LINES = 200


class Format(NamedTuple):
    """What a format module offers."""

    read: Callable[[Path, Counter[str]], Iterator[Document]]
    write: Callable[[Path, Iterable[Document], Counter[str]], None]
    claims: Callable[[dict[str, Any] | str], bool]


FORMATS = {
    "native": Format(native.read, native.write, native.claims),
    "few_shot": Format(few_shot.read, few_shot.write, few_shot.claims),
    "cmeee": Format(cmeee.read, cmeee.write, cmeee.claims),
    "marked": Format(marked.read, marked.write, marked.claims),
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a file, the format it was read as, and `notes`: what was found or mended, how often."""

    documents: tuple[Document, ...]
    format: str
    path: Path
    notes: Mapping[str, int] = field(default_factory=dict)


def read(path: str | Path, format: str | None = None) -> Corpus:
    """Read the corpus `path`, a file or `bundled:NAME`, recognising its format when none is given.

    Raises:
        DataError: the file cannot be read as what it claims to be.
    """
    file = resolve(path)
    name = format or detect(file)
    notes: Counter[str] = Counter()
    documents = tuple(_format(name).read(file, notes))
    if not documents:
        raise DataError(f"no document was found, read as {name}; expected at least one: check the path", path=file)
    return Corpus(documents, name, file, dict(notes))


def stream(path: str | Path, format: str | None, notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `path` as they are read; `notes` is complete when the last one is out.

    Raises:
        DataError: as `read`, when the place is reached.
    """
    file = resolve(path)
    return _format(format or detect(file)).read(file, notes)


def write(path: str | Path, documents: Iterable[Document], format: str = "native") -> dict[str, int]:
    """Write `documents` to `path` and return what the format had no place for, how often.

    Raises:
        DataError: the format cannot hold a document, or the file cannot be written.
    """
    notes: Counter[str] = Counter()
    _format(format).write(Path(path), documents, notes)
    return dict(+notes)


def detect(path: str | Path) -> str:
    """The name of the format of `path`, from its content.

    Raises:
        DataError: no format claims the content.
    """
    file = resolve(path)
    lines = [line for _, line in islice(read_lines(file, Counter()), _SAMPLE_LINES)]
    if re.match(r"\s*\[\s*(\{\s*[\"}]|\]|$)", lines[0]):
        return _claimed(file, (record.values for record in read_json_array(file, Counter())), "cmeee")
    if re.match(r"\s*\{\s*([\"}]|$)", lines[0]):
        return _claimed(file, (record.values for record in read_json_lines(file, Counter())), "native")
    return _claimed(file, ["\n".join(lines)], None)


def resolve(path: str | Path) -> Path:
    """The file that `path` names; `bundled:NAME` is a corpus that comes with the package.

    Raises:
        DataError: there is no bundled corpus of that name.
    """
    if not str(path).startswith(_BUNDLED_PREFIX):
        return Path(path)
    name = str(path).removeprefix(_BUNDLED_PREFIX)
    if name not in BUNDLED:
        raise DataError(f"no corpus {name!r} comes with spantune; {nearest(name, BUNDLED)}", path=path)
    return Path(str(resources.files("spantune").joinpath("data").joinpath(f"{name}.txt")))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
    return FORMATS[name]


def _claimed(path: Path, samples: Iterable[dict[str, Any] | str], unannotated: str | None) -> str:
    """The format that claims the first telling sample; `unannotated` when every text has an empty entity list."""
    sample: dict[str, Any] | str = ""
    for sample in samples:
        for name, format in FORMATS.items():
            if format.claims(sample):
                return name
        if unannotated is None or isinstance(sample, str) or sample.get("entities") != [] or "text" not in sample:
            break
    else:
        assert unannotated is not None
        return unannotated
    found = f"text beginning {sample[:40]!r}" if isinstance(sample, str) else f"an object with {', '.join(sample)[:80]}"
    raise DataError(
        f"found {found}, which is of no known format; known: {', '.join(FORMATS)}. Name the one it is "
        "(data.format=NAME, or --from NAME), or convert it",
        path=path,
    )
