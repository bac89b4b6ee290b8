"""Exclusive use of a run folder by one process, with a lock file that tells whether its last process was killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from spantune.core import Config, Locked, RunError, TaskSpec, file_lock, masked_values, to_json
from spantune.runs.folder import RunFolder
from spantune.runs.manifest import seal, trained_files

PATIENCE = 1.0  # seconds; a process that checks whether a run is running holds the lock for a moment


class Claim:
    """A context manager inside which only this process works on a run folder.

    A new run folder has the hidden name `.<name>.part` until `create` has written its files and gives it its own name.
    If `create` is not called, nothing is left behind.

    Args:
        folder: the run folder.
        resume: True for an existing run, False for a new one.

    Raises:
        RunError: on entering: a new folder exists already, a resumed run is finished, another process works on the
            folder, or it cannot be written.
    """

    def __init__(self, folder: Path, *, resume: bool = False):
        self.folder = folder
        self._part = None if resume else folder.with_name(f".{folder.name}.part")
        self._new_folders: list[Path] = []
        self._lock = ExitStack()

    def __enter__(self) -> Claim:
        if self._part is None:
            self._acquire(self.folder)
            run = RunFolder(self.folder)
            if run.is_finished:  # another process has finished it after the caller checked
                self._release()
                raise RunError(f"{run.path} is finished; its report is {run.report_html}")
            return self
        self._new_folders = [path for path in (self._part, *self._part.parents) if not path.exists()]
        try:
            self._part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder.parent}: no run folder can be made here ({error.strerror}); set run.folder to a place "
                "that can be written"
            ) from None
        exists = RunError(f"{self.folder} exists since a moment ago; give another run.name")
        try:
            self._acquire(self._part)
        except RunError as error:
            raise exists if self.folder.exists() else error from None
        if self.folder.exists():  # another process has created it meanwhile
            self.__exit__()
            raise exists
        return self

    def create(self, recipe: Config, task: TaskSpec, environment: Mapping[str, str], start: Path | None = None) -> Path:
        """Write the first files of a new run, with credentials masked, give its folder its name, and return it.

        Args:
            recipe: the resolved recipe.
            task: the task of the run.
            environment: the versions of packages, the device and hashes, by name.
            start: the adapter folder of a warm start, which is copied into the run; None without a warm start.

        Raises:
            RunError: the folder cannot be renamed to its own name.
            OSError: a file cannot be written.
        """
        assert self._part is not None
        if start is not None:
            copy = RunFolder(self._part).start
            copy.mkdir()
            for path in trained_files(start):
                shutil.copyfile(path, copy / path.name)
            TaskSpec.load(start).save(copy)
            seal(copy)
        recipe.save(self._part)
        task.save(self._part)
        text = to_json(masked_values(environment), indent=2, ascii_only=True) + "\n"
        RunFolder(self._part).environment_file.write_text(text, encoding="utf-8")
        try:
            self._part.rename(self.folder)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be made ({error.strerror}); give another run.name") from None
        self._part = None
        return self.folder

    def __exit__(self, *_: object) -> None:
        self._release()
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            for path in self._new_folders[1:]:
                with suppress(OSError):  # the folder is not empty, since another process uses it
                    path.rmdir()

    def _acquire(self, folder: Path) -> None:
        """Lock the run whose files are in `folder`, and write the id of this process into the lock file.

        Raises:
            RunError: another process works on the run, or the folder cannot be written.
        """
        path = RunFolder(folder).lock_file
        try:
            self._lock.enter_context(file_lock(path, PATIENCE))
            path.write_text(f"{os.getpid()}\n", encoding="utf-8")
        except Locked:
            raise RunError(
                f"{self.folder}: {_holder(path)} is working on this run; wait for it, stop it, or give another run.name"
            ) from None
        except OSError as error:
            self._lock.close()
            raise RunError(
                f"{self.folder}: cannot be written ({error.strerror}); make it writable, or copy the run elsewhere"
            ) from None

    def _release(self) -> None:
        """Empty the lock file, which tells that this process was not killed, and unlock the run."""
        with suppress(OSError):
            RunFolder(self._part or self.folder).lock_file.write_text("", encoding="utf-8")
        self._lock.close()


def _holder(lock_file: Path) -> str:
    """Return the process that holds a lock, in words, such as `process 4711`."""
    try:
        number = lock_file.read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"
