"""Start commands in new processes quickly: they are forked from a server that has imported the slow libraries."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from helpers import warmed

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["spantune.training.job", "spantune.cli", "swanlab", "helpers.forked"])


@functools.cache
def spantune() -> str:
    """Return the shell words that run `spantune` in a process forked from a server (see `helpers.warmed`)."""
    path = str(Path(tempfile.mkdtemp()) / "socket")
    SERVER.Process(target=warmed.serve, args=(path,), daemon=True).start()
    while not os.path.exists(path):
        time.sleep(0.01)
    return shlex.join([sys.executable, "-IS", warmed.__file__, path])


class Command:
    """A running `spantune ARGUMENTS`; its output goes to files in `folder`."""

    def __init__(self, folder: Path, *arguments: object):
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        texts = [str(argument) for argument in arguments]
        self.process = SERVER.Process(target=_run, args=(texts, str(self._out), str(self._err)))
        self.process.start()

    @property
    def has_begun(self) -> bool:
        """Whether the output of the command goes to its files yet."""
        return self._err.exists()

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until `ready` returns True; fail if the process ends or `seconds` pass before that."""
        end = time.monotonic() + seconds
        while not ready():
            if not self.process.is_alive() or time.monotonic() > end:
                self.process.kill()
                raise AssertionError(self.err)
            time.sleep(0.002)

    def end(self, seconds: float = 60) -> int:
        """Wait for the process to end; return its exit code, or minus the number of the signal that killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.err}")
        return self.process.exitcode


class Conversion:
    """A running conversion of a bundled model; `folder` gets its output and its memory peak."""

    def __init__(self, name: str, cache: Path, folder: Path):
        folder.mkdir()
        self._folder = folder
        self.process = SERVER.Process(target=_convert, args=(name, cache, folder))
        self.process.start()

    def read(self, file: str) -> str:
        """Return the text of `stdout`, `stderr` or `kilobytes` (the memory peak)."""
        return (self._folder / file).read_text(encoding="utf-8")


def _convert(name: str, cache: Path, folder: Path) -> None:
    from helpers.quick_gguf import read_quickly
    from spantune.models.bundled import bundled_folder

    read_quickly(setattr)
    _write_to(folder / "stdout", folder / "stderr")
    print(bundled_folder(name, cache), flush=True)
    (folder / "kilobytes").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), encoding="utf-8")


def _write_to(out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)


def _run(arguments: list[str], out: str, err: str) -> None:
    _write_to(Path(out), Path(err))
    os.chdir(Path(out).parent)  # else the folder in which the server was started
    sys.argv = ["spantune", *arguments]
    from spantune.cli import main

    main()
