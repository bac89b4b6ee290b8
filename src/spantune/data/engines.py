"""Where the work on a corpus is done: in this process, in several on this machine, or on a Ray cluster.

Work is written as functions of what all tasks share and of one task, which is a part of a corpus or a group of
documents. An engine applies one to all tasks and yields the results in their order, so that what is made of them does
not depend on the engine. Only so many tasks are under way that results do not pile up.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from spantune.core import Cluster, RunError, SpantuneError, connected, need, track, usable_cores, worker_errors

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
LARGE = 32 << 20
"""From so many bytes on a corpus is read in parts, and by several processes."""
PART = 16 << 20
"""Bytes of a part at the most."""
RETRIES = 5
"""How often Ray begins a task again whose process died."""


class Engine(Protocol):
    """Applies functions to tasks; `workers` is how many at a time."""

    workers: int

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Yield `function(shared, task)` for each of the tasks, in their order; `what` is said of it meanwhile.

        Raises:
            SpantuneError: what the function raised for the first task for which it raised something.
        """


class Here:
    """The engine that does everything in this process."""

    workers = 1

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Apply `function`; see Engine."""
        results = (function(shared, task) for task in tasks)
        return iter(track(results, what, len(tasks), "parts") if len(tasks) > 3 else results)


class Processes:
    """The engine of several processes on this machine; they are started by `processes`."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int, folder: Path):
        self.workers = workers
        self._pool, self._folder, self._calls = pool, folder, 0

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Apply `function`; see Engine.

        Raises:
            RunError: a process died.
        """
        self._calls += 1
        path = self._folder / f"{self._calls}.pickle"  # read once by each process, not sent with each task
        path.write_bytes(pickle.dumps((function, shared), pickle.HIGHEST_PROTOCOL))

        def begin(task: Task) -> Future[Result | SpantuneError]:
            return self._pool.submit(_from_file, str(path), task)

        def end(future: Future[Result | SpantuneError]) -> Result | SpantuneError:
            try:
                return future.result()
            except BrokenProcessPool:
                raise RunError(
                    "a process that read the corpus was ended from outside, perhaps since memory ran out; give "
                    "--workers 1, or free memory"
                ) from None

        return iter(track(_windowed(begin, end, tasks, 2 * self.workers), what, len(tasks), "parts"))


class OnRay:
    """The engine of the processes of a Ray cluster; `on_ray` connects to it."""

    def __init__(self, ray: Any, workers: int):
        self.workers = workers
        self._ray = ray

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Apply `function`; see Engine.

        Raises:
            RunError: a worker died more than `RETRIES` times over the same task.
        """
        ray = self._ray
        reference = ray.put(shared)
        remote = ray.remote(_in_folder).options(num_cpus=1, max_retries=RETRIES)

        def end(result: Any) -> Result | SpantuneError:
            with worker_errors(ray):
                value: Result | SpantuneError = ray.get(result)
            return value

        begun = _windowed(
            lambda task: remote.remote(os.getcwd(), function, reference, task), end, tasks, 2 * self.workers
        )
        return iter(track(begun, what, len(tasks), "parts"))


HERE = Here()
"""The one engine that needs no start."""


@contextmanager
def engine_for(size: int, cluster: Cluster | None = None, workers: int | None = None) -> Iterator[Engine]:
    """Start what reads `size` bytes: Ray if a cluster is named, else so many processes as suit the size.

    Args:
        size: bytes of all files.
        cluster: where Ray runs, and how many workers there are.
        workers: processes on this machine, where there is no cluster; by the size and the cores if None.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """
    if cluster is not None:
        with on_ray(cluster.address, cluster.workers) as engine:
            yield engine
        return
    with processes(workers_for(size, workers)) as engine:
        yield engine


@contextmanager
def processes(workers: int) -> Iterator[Engine]:
    """Start `workers` processes on this machine, which end with the block; none if it is one.

    Raises:
        RunError: as `Processes.map`.
    """
    if workers == 1:
        yield HERE
        return
    context = multiprocessing.get_context("spawn")  # a copy of this process would have its locks, but not its threads
    with tempfile.TemporaryDirectory(prefix="spantune-") as folder:
        pool = ProcessPoolExecutor(workers, context, _begin_worker)
        try:
            yield Processes(pool, workers, Path(folder))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def on_ray(address: str | None, workers: int | None = None) -> Iterator[Engine]:
    """Connect to the cluster at `address`, or start Ray on this machine if it is None.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT` or `auto`.
        workers: how many tasks at a time; one for each CPU core if None.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """
    need("ray", "ray", "--engine ray")
    with connected(address) as ray:
        yield OnRay(ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1))))


def workers_for(size: int, workers: int | None) -> int:
    """Return how many processes read `size` bytes: `workers` if given, else one for each core if they are many."""
    if workers is not None:
        return workers
    return usable_cores() if size >= LARGE else 1


def _windowed(
    begin: Callable[[Task], Any], end: Callable[[Any], Result | SpantuneError], tasks: Iterable[Task], size: int
) -> Iterator[Result]:
    """Begin tasks, `size` at a time, and yield their results in order."""
    under_way: deque[Any] = deque()
    for task in tasks:
        under_way.append(begin(task))
        if len(under_way) >= size:
            yield _result(end(under_way.popleft()))
    while under_way:
        yield _result(end(under_way.popleft()))


def _result(result: Result | SpantuneError) -> Result:
    if isinstance(result, SpantuneError):
        raise result
    return result


def _caught(function: Callable[[Shared, Task], Result], shared: Shared, task: Task) -> Result | SpantuneError:
    """Return what the function returns, or the error that it raised for the user, which not every error survives."""
    try:
        return function(shared, task)
    except SpantuneError as error:
        return error


def _in_folder(
    folder: str, function: Callable[[Shared, Task], Result], shared: Shared, task: Task
) -> Result | SpantuneError:
    """As `_caught`, in the folder from which relative paths are meant, if this machine has it."""
    with suppress(OSError):
        os.chdir(folder)
    return _caught(function, shared, task)


def _from_file(path: str, task: Task) -> Any:
    function, shared = _loaded(path)
    return _caught(function, shared, task)


@lru_cache(maxsize=1)
def _loaded(path: str) -> tuple[Callable[[Any, Any], Any], Any]:
    function, shared = pickle.loads(Path(path).read_bytes())
    return function, shared


def _begin_worker() -> None:
    """Leave it to the first process to end this one, and end with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
