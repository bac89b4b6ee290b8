"""Ray itself: started on this machine or connected to, kept quiet, and what its workers get of it."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from spantune.core.errors import ConfigError, RunError
from spantune.core.extras import need
from spantune.core.files import first_line
from spantune.core.frames import number
from spantune.core.terminal import is_verbose, say

CONNECT_SECONDS = 10.0
"""How long an address may take to accept a connection."""
HEALTH_SECONDS = 20.0
"""How long the head of a cluster may take to say that it is well."""
CORES = 4
"""Threads of a worker without a GPU, on this machine alone: they share a model, which each worker has to load."""
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^\s/:]+|\[[^\]]+\]):(?P<port>\d{1,5})")
_OBJECT_STORE = 256 << 20


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and how many workers there are.

    Args:
        address: `HOST:PORT` of a cluster's head, `ray://HOST:PORT` of its client server, or `auto`; None for this
            machine alone.
        workers: processes that hold the model. If not given, one for each GPU; without GPUs one for each CPU core of a
            cluster, and on this machine alone one for every `CORES`, which are its threads.
        gpus_per_worker: GPUs of each, which may be a fraction; 1 if not given and there are GPUs.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Resources:
    """What a worker gets, and how many there are."""

    workers: int
    cpus: int
    gpus: float


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Start Ray on this machine, or connect to a cluster; an open connection of the program is used as it is.

    Raises:
        ConfigError: the address does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it sends statistics to its makers otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not is_verbose():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = need("ray", "ray", "--engine ray")
    if ray.is_initialized():
        _quiet(ray)
        yield ray
        return
    options: dict[str, object] = {"log_to_driver": is_verbose(), "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _require_answer(address)
        options |= {"address": address}
    say("starting Ray on this machine …" if address is None else f"connecting to Ray at {address} …")
    try:
        with nullcontext() if is_verbose() else _silenced():
            ray.init(**options)
    except Exception as error:  # Ray raises a dozen types
        if address is None:
            remedy = "see /tmp/ray/session_latest/logs"
            raise RunError(f"Ray cannot be started here: {first_line(error)}; {remedy}") from None
        raise _no_answer(address, first_line(error)) from None
    try:
        _quiet(ray)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def worker_errors(ray: Any, then: str = "") -> Iterator[None]:
    """Say in one sentence that a worker ended inside the block; `then` ends the sentence.

    An error of a task itself is a bug of ours, and keeps its traceback.

    Raises:
        RunError: a worker died too often.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RunError(
            f"a worker of Ray ended ({type(error).__name__}: {first_line(error)}); if it had too little memory, start "
            f"fewer by --workers{then}"
        ) from None


@contextmanager
def _silenced() -> Iterator[None]:
    """Drop what Ray's C++ parts write to stderr inside the block; its errors are raised too."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _quiet(ray: Any) -> None:
    """Hide Ray Data's bars and messages; our own replace them."""
    import ray.data as data

    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    if not is_verbose():
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def _require_answer(address: str) -> None:
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"--address {address}: expected HOST:PORT, such as 10.0.0.1:6379, ray://HOST:10001, or auto for the "
            "cluster that this machine belongs to"
        )
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, first_line(error)) from None
    if not address.startswith("ray://"):  # the client of these has a limit of its own; ray.init waits for ever
        check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        try:
            subprocess.run(check, check=True, capture_output=True, timeout=HEALTH_SECONDS)
        except (subprocess.SubprocessError, OSError):
            raise _no_answer(address, f"what listens there is no Ray head within {HEALTH_SECONDS:g} s") from None


def _no_answer(address: str, problem: str) -> ConfigError:
    return ConfigError(
        f"--address {address}: no Ray cluster answers there ({problem}); check that `ray status` on its head is well, "
        "that this machine reaches it, and that Python and ray have the same versions on both"
    )


def resources_of(ray: Any, cluster: Cluster, device: str) -> Resources:
    """Return how many workers there are, and what each gets.

    Raises:
        ConfigError: the cluster has fewer GPUs or CPUs than asked for, with which Ray would wait for ever.
    """
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))
    each = cluster.gpus_per_worker
    if each is None:
        each = 1.0 if gpus and device != "cpu" else 0.0
    if device == "cuda" and not each:
        raise ConfigError("--device cuda: Ray sees no GPU; give --device cpu, or add machines with GPUs to the cluster")
    alone = cluster.address is None  # on several machines a worker must fit on the smallest
    workers = cluster.workers or max(1, int(gpus // each) if each else -(-cpus // CORES) if alone else cpus)
    if workers * each > gpus:
        raise ConfigError(
            f"{number(workers, 'worker')} with {each:g} GPUs each need {workers * each:g}, and Ray sees {gpus:g}; "
            "lower --workers or --gpus-per-worker"
        )
    if workers > cpus:
        raise ConfigError(f"{number(workers, 'worker')} need a CPU core each, and Ray sees {cpus}; lower --workers")
    return Resources(workers, max(1, cpus // workers) if alone and not each else 1, each)
