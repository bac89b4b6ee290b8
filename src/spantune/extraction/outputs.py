"""The outputs of an extraction: a file or stdout, a page, and the counts over all documents.

Documents are extracted and written one after another. None is kept in memory, except for a page, which holds them all.
Results are written to a journal in native JSONL until all documents are done, whatever the format of the file is. So
nothing is lost if the process is killed, or if the format cannot represent a document. Native JSONL holds every
document with its problems. Other formats cannot tell a failed document from one without entities, so failed documents
are not written to them; they are counted and named instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Extraction,
    Label,
    Prediction,
    ProblemKind,
    encodable,
    from_document,
    json_text,
    nearest,
    overwriting,
    replacing,
    require_folder,
    require_new,
    to_document,
    to_record,
)
from spantune.data import Nested, Options, formats, labelling_interface
from spantune.extraction import resumable
from spantune.extraction.resumable import Done
from spantune.extraction.uncertainty import LeastSure
from spantune.report import ExtractionView, write_extractions

SHOWN = 10
"""The most failed documents that are named."""
_COUNTS = ("documents", "with_problem", "extracted", "entities", "failed", "below_threshold", "contradicted")
"""The fields of Tally that are added up over documents, besides `notes` and `problems`."""


@dataclass
class Tally:
    """The counts over the documents of an extraction.

    Args:
        documents: all documents; the caller adds those that an interrupted run had done.
        with_problem: documents whose answer had a problem, or that have no answer.
        extracted: documents of this call only, without those of an interrupted run.
        entities: entities of the extracted documents.
        failed: extracted documents without a whole answer.
        chosen: documents that were kept as the least sure; None if all documents are kept.
        not_representable: failed documents that were not written, since the format cannot represent them; those of an
            interrupted run are included.
        below_threshold: entities that were dropped because of their score.
        contradicted: entities that were dropped because another chunk of their text contradicts them.
        left_out: the entities that were dropped because of their score, by id and text of their document; kept only
            for a page.
        failures: id and reason of the first failed documents, at most SHOWN.
        notes: how often reading repaired something, or writing could not keep something, by a description of it.
        problems: the number of problems of each kind.
    """

    documents: int = 0
    with_problem: int = 0
    extracted: int = 0
    entities: int = 0
    failed: int = 0
    chosen: int | None = None
    not_representable: int = 0
    below_threshold: int = 0
    contradicted: int = 0
    left_out: dict[tuple[str, str], tuple[Entity, ...]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, extraction: Extraction) -> None:
        """Count one document."""
        self.documents += 1
        self.extracted += 1
        self.entities += len(extraction.document.entities)
        self.problems.update(problem.kind.value for problem in extraction.problems)
        self.with_problem += extraction.has_problem
        self.below_threshold += len(extraction.below_threshold)
        self.contradicted += len(extraction.contradicted)
        if any(problem.kind is ProblemKind.UNCONSTRAINED for problem in extraction.problems):
            self.notes["document that the server answered without its grammar, which it refused"] += 1
        if extraction.status.is_failure:
            self.failed += 1
            if len(self.failures) < SHOWN:
                self.failures.append(f"{extraction.document.id}: {extraction.problems[-1].found}")

    def add_counts(self, other: Tally) -> None:
        """Add the counts over other documents."""
        for name in (*_COUNTS, "notes", "problems"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures += other.failures[: SHOWN - len(self.failures)]

    def counted(self, extractions: Iterable[Extraction]) -> Iterator[Extraction]:
        """Count each of `extractions` and yield it."""
        for extraction in extractions:
            self.add(extraction)
            yield extraction


@dataclass(frozen=True)
class Target:
    """Where results are written: to stdout or a file, and to a page.

    Args:
        out: the file; None for stdout.
        format: the format of the file.
        html: the file of the page; None for no page.
        resume: whether to continue an interrupted run.
        nested: what to keep of overlapping entities in a format of flat tags.
        force: whether existing files are replaced. With `resume`, `out` is continued and not replaced.
        uncertain: the number of documents to keep, the least sure first; None keeps all, in their order.
        labels: the labels of the task, for the labelling interface beside a file for Label Studio.
        view: what the page says about the run and its task, without its title; None says nothing.
    """

    out: Path | None = None
    format: str = "native"
    html: Path | None = None
    resume: bool = False
    nested: Nested = "error"
    force: bool = False
    uncertain: int | None = None
    labels: tuple[Label, ...] = ()
    view: ExtractionView | None = None

    @property
    def interface(self) -> Path | None:
        """The file of the labelling interface beside a file for Label Studio; None where there is none."""
        return self.out.with_suffix(".xml") if self.out and self.labels and self.format == "label_studio" else None

    @property
    def is_journal(self) -> bool:
        """Whether the complete journal becomes `out` unchanged."""
        return self.format == "native" and self.uncertain is None

    def check(self, inputs: Sequence[str | Path]) -> None:
        """Check, before anything is extracted, that the results can be written and replace only what they may.

        `inputs` are the files to extract from, which are never replaced.

        Raises:
            ConfigError: options contradict each other, or the format is unknown.
            DataError: a file cannot be written, exists already, or is an input; or the format can only be read.
        """
        if self.format != "native" and self.out is None:
            raise ConfigError(f"--to {self.format} needs --out FILE; only native JSONL is written to stdout")
        if not formats.is_known(self.format):
            raise ConfigError(f"unknown format {self.format!r}; {nearest(self.format, formats.names())}")
        writes_folder = formats.of_name(self.format, writing=True).folder
        if self.resume and self.out is None:
            raise ConfigError("--resume goes on with a file; give --out FILE")
        if self.interface is not None and self.interface == self.out:
            raise ConfigError(f"--out {self.out} is the name of the labelling interface; name the tasks FILE.json")
        if self.interface is not None:
            labelling_interface(self.labels)
        for path in (self.out, self.html, self.interface):
            if path:
                is_file = path != self.out or not writes_folder
                _require_writable(path, is_file=is_file, force=self.force)
                require_new(path, inputs, force=self.force or self._goes_on(path))
        if self.out:
            require_new(resumable.partial(self.out), inputs, force=True)
        if self.out and self.html and self.out.resolve() == self.html.resolve():
            raise ConfigError(f"--out and --html are both {self.out}; name another for one of them")

    def _goes_on(self, path: Path) -> bool:
        """Whether `path` is the output of an interrupted run that this run continues."""
        return self.resume and path == self.out and self.is_journal

    def held(self) -> AbstractContextManager[None]:
        """Return a context that locks the output file against other processes.

        Raises:
            DataError: on entry, another process has locked the file.
        """
        return resumable.held(self.out) if self.out else nullcontext()

    def begin(self, items: Iterator[Prediction]) -> Done:
        """Take from `items` the documents that an interrupted run has done, and return their counts.

        Raises:
            DataError: there is a journal and `resume` is False, or the journal holds other documents than `items`.
        """
        if self.out is None:
            return Done()
        if not self.resume:
            resumable.require_free(self.out)
            return Done()
        is_begun = self.is_journal or resumable.partial(self.out).exists()
        return resumable.resume(self.out, items) if is_begun else Done()

    def write(self, extractions: Iterable[Extraction], tally: Tally) -> None:
        """Write results as they arrive, and count them in `tally`.

        Raises:
            DataError: a file cannot be written, or the format cannot represent a document; the journal is then kept.
        """
        extractions = self._remembering(tally.counted(extractions), tally)
        if self.out is None:
            self._print(extractions, tally)
            return
        resumable.append(self.out, extractions)
        chosen = self._chosen(self._done(), tally)
        if self.html:
            self._show(list(self._done()) if chosen is None else chosen, tally)
        if self.is_journal:
            resumable.finish(self.out)
            return
        failed_ids: list[str] = []
        documents = self._representable(failed_ids) if chosen is None else map(self._as_format, chosen)
        keys: Counter[str] = Counter()
        options = Options(nested=self.nested, predicted=True)
        with overwriting(self.out, force=self.force) as place:
            tally.notes.update(formats.write(place, _with_key(documents, keys), self.format, options))
        tally.not_representable = len(failed_ids)
        self._write_interface(keys, tally)
        resumable.partial(self.out).unlink()

    def _chosen(self, documents: Iterable[Document], tally: Tally) -> list[Document] | None:
        """Return the least sure documents; None if all documents are kept."""
        if self.uncertain is None:
            return None
        least_sure = LeastSure(self.uncertain)
        chosen = least_sure.choose(documents)
        tally.chosen = len(chosen)
        tally.notes["document passed over: its text is that of an earlier one"] += least_sure.repeated
        tally.notes["document with entities that have no score, which counts as sure"] += least_sure.unscored
        tally.notes = +tally.notes
        return chosen

    def _as_format(self, document: Document) -> Document:
        """Return a chosen document for the output's format; formats other than native have no status and problems."""
        return document if self.format == "native" else from_document(document).document

    def _write_interface(self, keys: Counter[str], tally: Tally) -> None:
        if self.interface is None:
            return
        key = max(keys, key=keys.__getitem__, default="text")
        tally.notes["document whose text is not in the field that the labelling interface shows"] += (
            keys.total() - keys[key]
        )
        tally.notes = +tally.notes
        with replacing(self.interface) as file:
            file.write(labelling_interface(self.labels, key))

    def _done(self) -> Iterator[Document]:
        """Yield the documents of the journal."""
        assert self.out is not None
        journal = resumable.partial(self.out)
        return formats.stream(journal, "native", Counter()) if journal.stat().st_size else iter(())

    def _representable(self, failed_ids: list[str]) -> Iterator[Document]:
        """Yield the documents that did not fail, and add the ids of the failed ones to `failed_ids`."""
        for document in self._done():
            if from_document(document).status.is_failure:
                failed_ids.append(document.id)
            else:
                yield document

    def _print(self, extractions: Iterable[Extraction], tally: Tally) -> None:
        """Write to stdout, until its reader closes it."""
        if sys.stdout is None:
            raise DataError("is closed; give --out FILE", path="stdout")
        shown: list[Document] = []
        documents: Iterable[Document] = map(to_document, extractions)
        for document in documents if (chosen := self._chosen(documents, tally)) is None else chosen:
            if self.html:
                shown.append(document)
            try:
                sys.stdout.buffer.write(json_text(to_record(document)).encode() + b"\n")
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                _discard_stdout()
                break
            except OSError as error:
                _discard_stdout()
                raise DataError(f"cannot be written: {error.strerror}; give --out FILE", path="stdout") from None
        if self.html:
            self._show(shown, tally)

    def _remembering(self, extractions: Iterable[Extraction], tally: Tally) -> Iterator[Extraction]:
        """Yield `extractions`; for a page, keep in `tally` the entities below a threshold, which files do not hold."""
        for extraction in extractions:
            if self.html and extraction.below_threshold:
                tally.left_out[extraction.document.id, extraction.document.text] = extraction.below_threshold
            yield extraction

    def _show(self, documents: Sequence[Document], tally: Tally) -> None:
        assert self.html is not None
        if not documents:
            tally.notes["page that was not written: there are no documents"] += 1
            return
        name = encodable(self.out.name) if self.out else "extract"
        title = f"{name}: {len(documents)} documents"
        extractions = [
            replace(from_document(document), below_threshold=tally.left_out.get((document.id, document.text), ()))
            for document in documents
        ]
        write_extractions(self.html, extractions, replace(self.view or ExtractionView(""), title=title))


def _with_key(documents: Iterable[Document], keys: Counter[str]) -> Iterator[Document]:
    """Yield `documents`, and count in `keys` the names of the fields that hold the texts of Label Studio's tasks."""
    for document in documents:
        kept = document.meta.get("label_studio")
        keys[str(kept.get("key", "text")) if isinstance(kept, dict) else "text"] += 1
        yield document


def _require_writable(path: Path, *, is_file: bool, force: bool) -> None:
    if not path.name:
        raise DataError("is no name for what is to be written; give one", path=path)
    require_folder(path)
    if path.is_file() and not is_file and not force:
        raise DataError("is a file, where the format writes a folder; name another, or remove it", path=path)
    if path.is_dir() and is_file:
        raise DataError("is a folder; name a file inside it", path=path)
    with resumable.writing(path):
        tempfile.TemporaryFile(dir=path.parent).close()


def _discard_stdout() -> None:
    """Redirect stdout to the null device; otherwise Python reports an error when it flushes stdout at exit."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, sys.stdout.fileno())
    os.close(null_device)
