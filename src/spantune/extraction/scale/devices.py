"""Extraction by one process for each GPU of this machine, without Ray; results keep the order of the documents."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Extraction,
    Prediction,
    Problem,
    ProblemKind,
    RunError,
    SpantuneError,
    Status,
    config,
    first_line,
    keep_for_good,
    usable_cores,
)
from spantune.extraction.chunked import as_documents
from spantune.extraction.result import failure
from spantune.metrics import Calibration
from spantune.runs import RunFolder

AHEAD = 8_192
"""The most documents that are read ahead of the first one whose result is missing."""
WINDOW_CPU, WINDOW_GPU = 128, 2_048
"""How many documents a process may have at a time: more than it computes together, so that it never has to wait."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceSettings:
    """What a process loads; the fields are arguments of `load_run`."""

    run: Path
    extract: config.Extract
    min_score: float | None = None
    accept_changes: bool = False


@dataclass(eq=False)
class _Process:
    """A process, this side's end of its pipe, and the documents that were sent to it, by their number."""

    device: str
    process: BaseProcess
    pipe: Connection
    documents: dict[int, Document] = field(default_factory=dict)

    @property
    def window(self) -> int:
        """The most documents that it may have."""
        return WINDOW_CPU if self.device == "cpu" else WINDOW_GPU

    def receive(self) -> tuple[int, Extraction] | None:
        """Return the number of a document and its result; None is the message that the model is loaded.

        Raises:
            SpantuneError: the error that the process raised.
            RunError: the process has ended.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended ({code})"
            raise RunError(
                f"the process on {self.device} {how}; if memory ran out, lower extract.batch_size; with --out, go on "
                "with --resume"
            ) from None
        if isinstance(message, Exception):
            raise message
        if message is None:
            return None
        number, extraction = message
        del self.documents[number]
        return number, extraction


class DeviceEngine:
    """An Engine that extracts with one process on each of `devices`.

        engine = DeviceEngine(DeviceSettings(Path("runs/demo"), recipe.extract), ("cuda:0", "cuda:1"))
        for extraction in engine.stream(documents, strict=False): ...

    Args:
        settings: the run, and what the processes load.
        devices: one name for each process: `cuda:N` or `cpu`.

    Raises:
        ConfigError: `min_score` is not a probability.
        RunError: the folder is not a run, has no adapter yet, its adapter was changed, or its calibration is damaged.
    """

    def __init__(self, settings: DeviceSettings, devices: tuple[str, ...]):
        RunFolder(settings.run).adapter_task(accept_changes=settings.accept_changes)
        self.calibration = Calibration.load(settings.run)
        if settings.min_score is not None:
            self.calibration = (self.calibration or Calibration()).with_min_score(settings.min_score)
        self._settings, self._devices = settings, devices

    def stream(self, documents: Iterable[Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; at most `AHEAD` documents are held in memory.

        Raises:
            ConfigError: `documents` has a member that is not a Document.
            DataError: a text is refused and `strict` is True.
            ModelError: the model cannot be loaded.
            RunError: a process has ended.
        """
        processes = [self._start(device) for device in self._devices]
        try:
            for process in processes:
                process.receive()
            for extraction in _in_order(as_documents(documents), processes):
                if strict and extraction.status is Status.REFUSED:
                    raise DataError(extraction.problems[-1].found)
                yield extraction
        finally:
            for process in processes:
                process.pipe.close()
                process.process.kill()
                process.process.join()

    def _start(self, device: str) -> _Process:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        ours, its = context.Pipe()
        threads = max(1, usable_cores() // len(self._devices))
        arguments = (its, device, self._settings, threads)
        process = context.Process(target=_serve, args=arguments, name=f"spantune {device}", daemon=True)
        process.start()
        its.close()
        return _Process(device, process, ours)


def parse_devices(devices: str, device: str) -> tuple[str, ...]:
    """Parse the option `--devices`: return the names of the devices, one for each process.

    Args:
        devices: `all`, or numbers of GPUs such as `0,1`. With `device` = `cpu`, the number of processes.
        device: the option `--device`.

    Raises:
        ConfigError: `devices` cannot be parsed, or names a GPU that does not exist or is named twice.
    """
    if device == "cpu":
        if not re.fullmatch(r"[1-9]\d{0,2}", devices):
            raise ConfigError(f"--devices {devices}: with --device cpu, expected the number of processes, such as 2")
        return ("cpu",) * int(devices)
    if not re.fullmatch(r"all|\d+(,\d+)*", devices):
        raise ConfigError(f"--devices {devices}: expected all, or numbers of GPUs with commas between, such as 0,1")
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise ConfigError(
            f"--devices {devices}: torch sees no GPU here; for processes on the CPU give --device cpu --devices 2"
        )
    numbers = list(range(count)) if devices == "all" else [int(number) for number in devices.split(",")]
    for place, number in enumerate(numbers):
        if number >= count:
            raise ConfigError(f"--devices {devices}: there is no GPU {number}; torch sees {count}, numbered from 0")
        if number in numbers[:place]:
            raise ConfigError(f"--devices {devices}: {number} stands twice; a GPU has one process")
    return tuple(f"cuda:{number}" for number in numbers)


def _in_order(documents: Iterator[Prediction], processes: list[_Process]) -> Iterator[Extraction]:
    """Send documents to the processes evenly, and yield the results in the order of the documents."""
    done: dict[int, Extraction] = {}
    read = first = 0
    is_more = True
    while is_more or first < read:
        while is_more and read - first < AHEAD:
            process = min(processes, key=lambda process: len(process.documents) / process.window)
            if len(process.documents) >= process.window:
                break
            document = next(documents, None)
            if document is None:
                is_more = False
                break
            if isinstance(document, Extraction):
                done[read] = document
            else:
                process.documents[read] = document
                _send(process, read, document)
            read += 1
        while first in done:
            yield done.pop(first)
            first += 1
        if first < read:
            by_pipe = {process.pipe: process for process in processes if process.documents}
            for pipe in wait(list(by_pipe)):
                assert isinstance(pipe, Connection)
                if (received := by_pipe[pipe].receive()) is not None:
                    done[received[0]] = received[1]


def _send(process: _Process, number: int, document: Document) -> None:
    try:
        process.pipe.send((number, document))
    except OSError:
        process.receive()  # raises the last error of the process, or that it has ended


def _serve(pipe: Connection, device: str, settings: DeviceSettings, threads: int) -> None:
    """Be a process: load the model, and extract from the documents of the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends its processes
    try:
        _extract(pipe, device, settings, threads)
    except SpantuneError as error:
        _answer(pipe, error if type(error) is not DataError else RunError(str(error)))
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        log.exception("the process on %s failed", device)
        _answer(pipe, RunError(f"the process on {device} failed: {type(error).__name__}: {first_line(error)}"))


def _answer(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError:
        return


def _extract(pipe: Connection, device: str, settings: DeviceSettings, threads: int) -> None:
    kind, _, number = device.partition(":")
    if number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number
    import torch

    from spantune.extraction.loading import load_run

    torch.set_num_threads(threads)
    arguments = (settings.run, kind, settings.extract, settings.min_score)
    session = load_run(*arguments, accept_changes=settings.accept_changes).session()
    keep_for_good()
    pipe.send(None)
    arrived: queue.SimpleQueue[tuple[int, Document] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, arrived), daemon=True).start()
    numbers: dict[int, int] = {}
    while True:
        while not session.pending or not arrived.empty():
            message = arrived.get()
            if message is None:
                return
            number_of_document, document = message
            try:
                numbers[session.submit(document)] = number_of_document
            except DataError as error:
                refused = failure(document, Status.REFUSED, Problem(ProblemKind.REFUSED, str(error)))
                pipe.send((number_of_document, refused))
        for ticket, extraction in session.step():
            pipe.send((numbers.pop(ticket), extraction))


def _receive(pipe: Connection, arrived: queue.SimpleQueue[tuple[int, Document] | None]) -> None:
    """Receive documents at once, so that the parent never waits for a pass of the model."""
    try:
        while True:
            arrived.put(pipe.recv())
    except (EOFError, OSError):
        arrived.put(None)
