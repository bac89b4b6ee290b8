"""The tokens that the grammar allows at each choice of the gold answers, which `train.loss_on=choices` trains on.

Each gold answer is followed through its grammar token by token ("walked"), which takes about 15 ms for a sentence. Many
answers are walked in parallel processes. The result is cached on disk, so that `plan`, `train` and `train --resume`
walk the answers once. The name of a cache file is the hash of everything that the result depends on. A damaged cache
file is made again.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spantune.core import DataError, Document, replacing_path, to_json, track, usable_cores
from spantune.encoding import Encoder, Example
from spantune.extraction.grammar import Constraint, Guide, constraint_of
from spantune.extraction.vocabulary import without_special_names

WALK_VERSION = 2
"""Raise this when the walk finds other choices than before: every cached result is then made again."""
SERIAL_UNDER = 500
"""Below this number of answers they are walked in this process, since a worker process takes seconds to start."""
CACHED_FROM = 100
"""Below this number of answers the result is not cached, since walking takes little time."""
CHUNK = 32
"""The number of answers that a worker walks at a time."""
WORKER_GIB = 1
"""The memory of a worker in GiB; 0.7 GiB were measured with a vocabulary of 262,144."""
CACHE_FILES = 8
"""The most files in the cache; the least recently used ones are removed."""

log = logging.getLogger(__name__)

Answer: TypeAlias = tuple[str, tuple[int, ...]]
"""A text, and the token ids of its gold answer with the stop token."""
Choices: TypeAlias = dict[int, tuple[int, ...]]
"""The allowed token ids at each index of an answer where the grammar leaves a choice."""


def mark_choices(
    examples: Sequence[Example], documents: Sequence[Document], encoder: Encoder, vocabulary: int, cache: Path
) -> tuple[Example, ...]:
    """Add to each example the ids that the grammar allows at the answer tokens that it does not force.

    Args:
        examples: one example for each document.
        documents: the gold documents.
        encoder: the Encoder that made the examples.
        vocabulary: the size of the model's logits.
        cache: the folder of cached results.

    Returns:
        The examples with `choices`, whose indices count from the start of the example.

    Raises:
        DataError: an entity begins or ends with white space, which no grammar writes.
        ModelError: the grammar cannot be followed with this tokenizer, or does not allow a gold answer.
    """
    for document in documents:
        for entity in document.entities:
            if (surface := document.surface(entity)) != surface.strip():
                raise DataError(
                    f"document {document.id!r}: {surface!r} at [{entity.start}, {entity.end}) begins or ends with "
                    "white space, which no grammar writes; trim it (`spantune data check FILE --fix OUT`), or set "
                    "train.loss_on=answer",
                    field="entities",
                )
    answers = [(d.text, e.ids[e.answer_start :]) for e, d in zip(examples, documents, strict=True)]
    cached = len(answers) >= CACHED_FROM
    path = cache / f"{_key(documents, answers, encoder, vocabulary)}.npz"
    table = _read(path, len(answers)) if cached else None
    if table is None:
        processes = _processes() if len(answers) >= SERIAL_UNDER else 1
        walked = walk(answers, encoder, vocabulary, processes)
        table = _Table.of(track(walked, "preparing gold answers", len(answers), "answers"))
        if cached:
            _write(path, table)
    return tuple(
        replace(example, choices={example.answer_start + index: ids for index, ids in choices.items()})
        for example, choices in zip(examples, table.choices(), strict=True)
    )


def walk(answers: Sequence[Answer], encoder: Encoder, vocabulary: int, processes: int = 1) -> Iterator[Choices]:
    """Yield the choices of each answer, in order; they are computed in this process, or in several `processes`."""
    if processes > 1:
        batches = [answers[start : start + CHUNK] for start in range(0, len(answers), CHUNK)]
        yield from _walk_in_parallel(batches, encoder, vocabulary, min(processes, len(batches)))
    else:
        constraint = constraint_of(encoder.tokenizer, vocabulary, encoder.stop_id)
        for text, ids in answers:
            yield Guide(constraint, encoder, text).choices(ids)


# -- processes -------------------------------------------------------------------------------------------------------


def _walk_in_parallel(
    batches: Sequence[Sequence[Answer]], encoder: Encoder, vocabulary: int, processes: int
) -> Iterator[Choices]:
    others = set(multiprocessing.active_children())
    arguments = (pickle.dumps((encoder, without_special_names(encoder.tokenizer))), vocabulary)
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, arguments)
    done = 0
    try:
        with _spawning():
            results = executor.map(_walk_batch, batches)
        for choices in results:
            done += 1
            yield from choices
    except BrokenProcessPool:
        log.warning("a worker process was killed (out of memory?); the gold answers are walked in this process")
        yield from walk(list(chain(*batches[done:])), encoder, vocabulary)
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _spawning() -> Iterator[None]:
    """Start processes that do not import the caller's main script, which may start a training, and ignore Ctrl-C."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_given: tuple[bytes, int]  # in a worker: the pickled encoder and tokenizer's JSON, and the size of the logits


def _start_worker(pickled: bytes, vocabulary: int) -> None:
    """Store what a worker needs, and start a thread that ends the worker when its parent process ends."""
    global _given
    _given = pickled, vocabulary
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _worker() -> tuple[Encoder, Constraint]:
    """Return the encoder and the constraint of this worker, which are made once."""
    pickled, vocabulary = _given
    encoder: Encoder
    encoder, source = pickle.loads(pickled)
    return encoder, Constraint(encoder.tokenizer, vocabulary, encoder.stop_id, threads=1, source=source)


def _walk_batch(answers: Sequence[Answer]) -> list[Choices]:
    encoder, constraint = _worker()
    return [Guide(constraint, encoder, text).choices(ids) for text, ids in answers]


def _processes() -> int:
    """Return the number of worker processes: one for each usable core, in at most half the machine's memory."""
    if not hasattr(os, "sysconf"):
        return usable_cores()
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(usable_cores(), int(gib / 2 / WORKER_GIB)))


# -- cache -----------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """The choices of all answers as int32 arrays; equal sets of allowed ids are stored once."""

    counts: NDArray[np.int32]
    """The number of choices of each answer [answers]."""
    indexes: NDArray[np.int32]
    """The index of each choice in its answer [choices]."""
    sets: NDArray[np.int32]
    """The number of the set of allowed ids of each choice [choices]."""
    sizes: NDArray[np.int32]
    """The number of ids of each set [sets]."""
    ids: NDArray[np.int32]
    """The ids of all sets, one set after another [sum of sizes]."""

    @classmethod
    def of(cls, walked: Iterable[Mapping[int, tuple[int, ...]]]) -> _Table:
        """Make the table from the choices of all answers."""
        numbers: dict[tuple[int, ...], int] = {}
        counts: list[int] = []
        indexes: list[int] = []
        sets: list[int] = []
        for choices in walked:
            counts.append(len(choices))
            indexes += choices
            sets += [numbers.setdefault(ids, len(numbers)) for ids in choices.values()]
        columns = (counts, indexes, sets, [len(ids) for ids in numbers], list(chain(*numbers)))
        return cls(*(np.array(column, np.int32) for column in columns))

    def choices(self) -> Iterator[Choices]:
        """Yield the choices of each answer; to save memory, equal sets are one tuple, and equal ids one int."""
        shared = np.array(range(self.ids.max(initial=-1) + 1), dtype=object)
        ids = shared[self.ids].tolist()
        ends = np.cumsum(self.sizes).tolist()
        sets = [tuple(ids[end - size : end]) for size, end in zip(self.sizes.tolist(), ends, strict=True)]
        pairs = zip(self.indexes.tolist(), (sets[number] for number in self.sets.tolist()), strict=True)
        for count in self.counts.tolist():
            yield dict(islice(pairs, count))

    def is_whole(self, answers: int) -> bool:
        """Whether the arrays fit each other and the number of answers."""
        choices = len(self.indexes) == len(self.sets) == self.counts.sum()
        return choices and len(self.counts) == answers and self.sizes.sum() == len(self.ids)


def _key(documents: Sequence[Document], answers: Sequence[Answer], encoder: Encoder, vocabulary: int) -> str:
    """Return the SHA-256 of everything that the choices depend on."""
    tokenizer = encoder.tokenizer
    parts: list[object] = [WALK_VERSION, metadata.version("llguidance"), vocabulary, encoder.stop_id]
    parts += [encoder.task.model_dump_json(), tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template]
    digest = hashlib.sha256(to_json(parts, ascii_only=True).encode())
    for document, (_, ids) in zip(documents, answers, strict=True):
        entities = [[entity.start, entity.end, entity.label] for entity in document.entities]
        digest.update(to_json([document.id, document.text, entities, ids], ascii_only=True).encode())
    return digest.hexdigest()


def _read(path: Path, answers: int) -> _Table | None:
    """Return the table in a cache file; None if there is none or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            table = _Table(**{name: arrays[name] for name in _Table._fields})
        if not table.is_whole(answers):
            raise ValueError("its arrays do not fit each other")
        path.touch()  # the cache keeps the most recently used files
        return table
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: damaged cache (%s); the gold answers are walked again", path, error)
        return None


def _write(path: Path, table: _Table) -> None:
    """Write a table into the cache, and remove the least recently used files beyond CACHE_FILES."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_path(path) as partial, partial.open("wb") as file:
            np.savez(file, **table._asdict())
        cached = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns)
        for old in cached[:-CACHE_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, DataError) as error:
        log.warning("the choices in the gold answers cannot be cached (%s); the next run walks them again", error)
