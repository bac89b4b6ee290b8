"""Extraction of any number of documents: where the results go, what is counted on the way, and how it goes on.

Documents are taken, extracted and written one after another, and none is kept, but for a page, which holds them all.
Native JSONL takes every document, with its failure where it has one; a corpus of another format would tell a failure
from a document without entities by nothing, so it leaves failures out, and they are counted and named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spantune import formats, partials
from spantune.browse import write_page
from spantune.document import Document, to_record
from spantune.errors import ConfigError, DataError, nearest
from spantune.extraction import FAILED, Extraction, annotated
from spantune.partials import Done

SHOWN = 10
"""Most failures that are named."""


@dataclass
class Tally:
    """What came of the documents; `failures` are the first of the `failed` ones, in words."""

    documents: int = 0
    wanting: int = 0
    failed: int = 0
    left_out: int = 0
    overruled: int = 0
    failures: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def take(self, extraction: Extraction) -> None:
        """Count one."""
        self.documents += 1
        self.wanting += extraction.wanting
        self.left_out += len(extraction.left_out)
        self.overruled += len(extraction.overruled)
        if extraction.status in FAILED:
            self.failed += 1
            if len(self.failures) < SHOWN:
                self.failures.append(f"{extraction.document.id}: {extraction.problems[-1].found}")


@dataclass(frozen=True)
class Target:
    """Where results go: to stdout, or to a file of a format; with `html` to a page too."""

    out: Path | None = None
    format: str = "native"
    html: Path | None = None
    resume: bool = False

    def check(self, inputs: Sequence[str]) -> None:
        """Refuse what cannot be written, before anything is extracted.

        Raises:
            ConfigError: options do not go together.
            DataError: a folder is missing, or an interrupted run has left its results.
        """
        native = self.format == "native"
        if not native and self.out is None:
            raise ConfigError(f"--to {self.format} needs --out FILE; only native JSONL is written to stdout")
        if self.format not in formats.FORMATS:
            raise ConfigError(f"unknown format {self.format!r}; {nearest(self.format, formats.FORMATS)}")
        if self.resume and (self.out is None or not native):
            raise ConfigError("--resume goes on with a native JSONL file; give --out FILE, without --to")
        for path in (self.out, self.html):
            if path and any(Path(name).exists() and path.exists() and path.samefile(name) for name in inputs):
                raise ConfigError(f"{path} is read from, and would be written over; name another")
            if path and not path.parent.is_dir():
                raise DataError(f"cannot be written: there is no folder {path.parent}; make it first", path=path)
        if self.out and self.out == self.html:
            raise ConfigError(f"--out and --html are both {self.out}; name another for one of them")
        if self.out and native and not self.resume:
            partials.require_free(self.out)

    def begin(self, items: Iterator[Document | Extraction]) -> Done:
        """Take from `items` what an interrupted run has done already."""
        return partials.resume(self.out, items) if self.resume and self.out else Done()

    def write(self, extractions: Iterable[Extraction], tally: Tally) -> None:
        """Write results as they come, and count them in `tally`.

        Raises:
            DataError: a file cannot be written, or the format cannot hold a document.
        """
        kept: list[Document] = []
        journalled = self.out is not None and self.format == "native"

        def results() -> Iterator[Document]:
            for extraction in extractions:
                tally.take(extraction)
                document = annotated(extraction)
                if self.html and not journalled:
                    kept.append(document)
                if self.format == "native" or extraction.status not in FAILED:
                    yield document

        if self.out is None:
            for document in results():
                print(json.dumps(to_record(document), ensure_ascii=False), flush=True)
        elif journalled:
            partials.append(self.out, results())
        else:
            tally.notes.update(formats.write(self.out, results(), self.format))
        if self.html:
            title = f"{self.out.name if self.out else 'extract'}: {tally.documents} documents"
            if self.out and journalled:
                kept = list(formats.stream(self.out, "native", Counter()))
            write_page(self.html, kept, title)
