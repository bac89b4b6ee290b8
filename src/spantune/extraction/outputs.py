"""Extraction of any number of documents: where the results go, what is counted on the way, and how it goes on.

Documents are taken, extracted and written one after another, and none is kept, but for a page, which holds them all.
Whatever the format of a file, results are native JSONL until all are there, so that nothing is lost by a kill or by a
document that the format cannot hold. Native JSONL takes every document, with its failure where it has one; a corpus of
another format would tell a failure from a document without entities by nothing, so it leaves failures out, and they are
counted and named.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, encodable, nearest, require_folder, to_record
from spantune.data import Nested, Options, formats
from spantune.extraction import resumable
from spantune.extraction.result import FAILED, Extraction, annotated, is_wanting
from spantune.extraction.resumable import Done
from spantune.report import write_page

SHOWN = 10
"""Most failures that are named."""


@dataclass
class Tally:
    """What came of the documents; `failures` are the first of the `failed` ones, in words.

    `absent` are those, of an interrupted run too, that a format has no place for.
    """

    documents: int = 0
    wanting: int = 0
    failed: int = 0
    absent: int = 0
    left_out: int = 0
    overruled: int = 0
    failures: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def take(self, extraction: Extraction, document: Document) -> None:
        """Count one, which is written as `document`."""
        self.documents += 1
        self.wanting += is_wanting(document.meta)
        self.left_out += len(extraction.left_out)
        self.overruled += len(extraction.overruled)
        if extraction.status in FAILED:
            self.failed += 1
            if len(self.failures) < SHOWN:
                self.failures.append(f"{extraction.document.id}: {extraction.problems[-1].found}")


@dataclass(frozen=True)
class Target:
    """Where results go: to stdout, or to a file of a format; with `html` to a page too.

    `nested` is what a format of flat tags keeps of entities that overlap.
    """

    out: Path | None = None
    format: str = "native"
    html: Path | None = None
    resume: bool = False
    nested: Nested = "error"

    def check(self, inputs: Sequence[str]) -> None:
        """Refuse what cannot be written, before anything is extracted.

        Raises:
            ConfigError: options do not go together.
            DataError: a place cannot be written to.
        """
        if self.format != "native" and self.out is None:
            raise ConfigError(f"--to {self.format} needs --out FILE; only native JSONL is written to stdout")
        if self.format not in formats.FORMATS:
            raise ConfigError(f"unknown format {self.format!r}; {nearest(self.format, formats.FORMATS)}")
        if self.resume and self.out is None:
            raise ConfigError("--resume goes on with a file; give --out FILE")
        for path in (self.out, self.html):
            if path and any(Path(name).exists() and path.exists() and path.samefile(name) for name in inputs):
                raise ConfigError(f"{path} is read from, and would be written over; name another")
            if path:
                _require_writable(path, is_file=path == self.html or self.format not in formats.FOLDERS)
        if self.out and self.html and self.out.resolve() == self.html.resolve():
            raise ConfigError(f"--out and --html are both {self.out}; name another for one of them")

    def held(self) -> AbstractContextManager[None]:
        """Keep other processes from the file.

        Raises:
            DataError: one has it already.
        """
        return resumable.held(self.out) if self.out else nullcontext()

    def begin(self, items: Iterator[Document | Extraction]) -> Done:
        """Take from `items` what an interrupted run has done already.

        Raises:
            DataError: there is such a run, and it is not to be resumed, or it was of other documents.
        """
        if self.out is None:
            return Done()
        if not self.resume:
            resumable.require_free(self.out)
            return Done()
        is_begun = self.format == "native" or resumable.partial(self.out).exists()
        return resumable.resume(self.out, items) if is_begun else Done()

    def write(self, extractions: Iterable[Extraction], tally: Tally) -> None:
        """Write results as they come, and count them in `tally`.

        Raises:
            DataError: a file cannot be written, or the format cannot hold a document; what is done is kept.
        """
        if self.out is None:
            self._print(extractions, tally)
            return
        resumable.append(self.out, _results(extractions, tally))
        if self.html:
            self._show(list(self._done()), tally)
        if self.format == "native":
            resumable.finish(self.out)
            return
        options = Options(nested=self.nested)
        absent: list[str] = []
        tally.notes.update(formats.write(self.out, self._kept(absent), self.format, options))
        tally.absent = len(absent)
        resumable.partial(self.out).unlink()

    def _done(self) -> Iterator[Document]:
        """The documents of the journal, which may be none."""
        assert self.out is not None
        journal = resumable.partial(self.out)
        return formats.stream(journal, "native", Counter()) if journal.stat().st_size else iter(())

    def _kept(self, absent: list[str]) -> Iterator[Document]:
        """What a format that is not native takes; the ids of the others go to `absent`."""
        for document in self._done():
            if is_wanting(document.meta) and document.meta["status"] in FAILED:
                absent.append(document.id)
            else:
                yield document

    def _print(self, extractions: Iterable[Extraction], tally: Tally) -> None:
        """Write to stdout, until who reads it leaves."""
        if sys.stdout is None:
            raise DataError("is closed; give --out FILE", path="stdout")
        shown: list[Document] = []
        for document in _results(extractions, tally):
            if self.html:
                shown.append(document)
            try:  # bytes, since JSONL is UTF-8 whatever the terminal is
                sys.stdout.buffer.write(json.dumps(to_record(document), ensure_ascii=False).encode() + b"\n")
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                _give_up_stdout()
                break
            except OSError as error:
                _give_up_stdout()
                raise DataError(f"cannot be written: {error.strerror}; give --out FILE", path="stdout") from None
        if self.html:
            self._show(shown, tally)

    def _show(self, documents: Sequence[Document], tally: Tally) -> None:
        assert self.html is not None
        if documents:
            name = encodable(self.out.name) if self.out else "extract"
            write_page(self.html, documents, f"{name}: {len(documents)} documents")
        else:
            tally.notes["page that was not written: there are no documents"] += 1


def _results(extractions: Iterable[Extraction], tally: Tally) -> Iterator[Document]:
    for extraction in extractions:
        document = annotated(extraction)
        tally.take(extraction, document)
        yield document


def _require_writable(path: Path, *, is_file: bool) -> None:
    if not path.name:
        raise DataError("is no name for what is to be written; give one", path=path)
    require_folder(path)
    if path.is_file() and not is_file:
        raise DataError("is a file, where the format writes a folder; name another, or remove it", path=path)
    if path.is_dir() and is_file:
        raise DataError("is a folder; name a file inside it", path=path)
    if path.is_dir() and any(path.iterdir()):
        raise DataError("the folder exists and is not empty; name another, or remove it", path=path)
    with resumable.writing(path):
        tempfile.TemporaryFile(dir=path.parent).close()


def _give_up_stdout() -> None:
    """Let what is still to be flushed go nowhere, or Python complains of it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
