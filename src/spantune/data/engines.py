"""Where the work on a corpus is done: in this process, in several on this machine, or on a Ray cluster.

The work is written as functions of two arguments: what all tasks share, and one task, which is a part of a corpus or a
group of documents. An engine applies such a function to all tasks and yields the results in the order of the tasks, so
that the outcome does not depend on the engine. At most twice as many tasks as workers are started ahead, so that
finished results do not fill the memory.
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
"""A corpus of this many bytes or more is read in parts, by several processes."""
PART = 16 << 20
"""The most bytes of a part."""
RETRIES = 5
"""How often Ray starts a task again after its process died."""


class Engine(Protocol):
    """Applies functions to tasks; `workers` is the number of tasks that run at the same time."""

    workers: int

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Yield `function(shared, task)` for each of the tasks, in their order.

        Args:
            function: what is applied; it must be importable in another process.
            shared: its first argument, which is the same for all tasks.
            tasks: its second arguments.
            what: the name of the work, shown with the progress.

        Raises:
            SpantuneError: the error of the first task that raised one.
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
    """The engine of several processes on this machine; `processes` starts them."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int, folder: Path):
        self.workers = workers
        self._pool, self._folder, self._calls = pool, folder, 0

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Apply `function`; see Engine.

        Raises:
            RunError: a worker process was ended from outside, for example because memory ran out.
        """
        self._calls += 1
        path = self._folder / f"{self._calls}.pickle"  # each process reads it once; it is not sent with each task
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
    """The engine of a Ray cluster; `on_ray` connects to it."""

    def __init__(self, ray: Any, workers: int):
        self.workers = workers
        self._ray = ray

    def map(
        self, function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], what: str
    ) -> Iterator[Result]:
        """Apply `function`; see Engine.

        Raises:
            RunError: worker processes died more than `RETRIES` times over the same task.
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
"""The engine of this process; it needs no start."""


@contextmanager
def engine_for(size: int, cluster: Cluster | None = None, workers: int | None = None) -> Iterator[Engine]:
    """Yield the engine for `size` bytes: a Ray cluster if one is named, otherwise processes on this machine.

    Args:
        size: bytes of all files together.
        cluster: the address of the Ray cluster, and the number of workers.
        workers: the number of processes where there is no cluster; if None, it follows from the size and the cores.

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
    """Start `workers` processes on this machine, which end with the block. For one worker, none is started.

    Raises:
        RunError: as `Processes.map` raises it.
    """
    if workers == 1:
        yield HERE
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads, but not the threads
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
        workers: how many tasks run at the same time; if None, one for each CPU core of the cluster.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """
    need("ray", "ray", "--engine ray")
    with connected(address) as ray:
        yield OnRay(ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1))))


def workers_for(size: int, workers: int | None) -> int:
    """Return how many processes read `size` bytes: `workers` if given, else one per core from `LARGE` bytes on."""
    if workers is not None:
        return workers
    return usable_cores() if size >= LARGE else 1


def _windowed(
    begin: Callable[[Task], Any], end: Callable[[Any], Result | SpantuneError], tasks: Iterable[Task], size: int
) -> Iterator[Result]:
    """Start tasks, at most `size` ahead of the results, and yield the results in order."""
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
    """Return the result of the function, or the SpantuneError that it raised.

    The error is returned, because an error that is raised in another process may arrive here as another one.
    """
    try:
        return function(shared, task)
    except SpantuneError as error:
        return error


def _in_folder(
    folder: str, function: Callable[[Shared, Task], Result], shared: Shared, task: Task
) -> Result | SpantuneError:
    """Do as `_caught`, in the folder to which relative paths refer, if this machine has that folder."""
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
    """Prepare a worker process: it ignores Ctrl-C, which the parent process handles, and ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
