"""Atomic checkpoints, each with a manifest of hashes, and the adapter of the best evaluation.

A checkpoint is written under a hidden name. Its manifest, with the size and SHA-256 of every file, is written last, and
everything is synced to the disk before the folder gets its final name. When a run is resumed, all hashes are compared,
and a damaged checkpoint is skipped in favour of the one before it. The cost is that every file is read again for its
hash.

If a checkpoint cannot be written, for example on a full disk, the run goes on: a warning is logged, earlier checkpoints
stay, and writing is tried again after 1, 2, 4, … steps.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spantune.core import RunError, first_line, fsync_path, to_json
from spantune.runs.folder import MetricsRecord, RunFolder
from spantune.runs.manifest import MANIFEST, first_difference, seal, trained_files

PART = ".part"
REMOVED = ".gone"
LONGEST_WAIT = 64  # the maximum number of steps between two attempts to write a checkpoint
GIB = 2**30

log = logging.getLogger(__name__)

WRITING_FAILED = (OSError, RuntimeError, SafetensorError)
"""The errors that Python, torch and safetensors raise when they write to a disk that is full or read-only."""


class Checkpoints:
    """The checkpoints of a run. Old ones are removed, except the newest ones and that of the best evaluation.

    Set the attribute `best` to the step of the best evaluation, so that its checkpoint is kept.

    Args:
        folder: the folder of the checkpoints.
        keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self.best: int | None = None
        self._failures = 0
        self._next_attempt = 0

    def write(self, step: int, fill: Callable[[Path], None]) -> bool:
        """Write the checkpoint `checkpoint-<step>`, and remove old ones.

        Args:
            step: the number of steps that are done.
            fill: writes the files of the checkpoint into the folder that it is given.

        Returns:
            whether the checkpoint was written. If not, a warning was logged.
        """
        part = self.folder / PART
        try:
            shutil.rmtree(part, ignore_errors=True)
            new, final = part / f"checkpoint-{step}", self.folder / f"checkpoint-{step}"
            new.mkdir(parents=True)
            fill(new)
            seal(new, step=step)
            if final.exists():  # from an earlier attempt at this step, which failed after the rename
                self._remove(final)
            new.rename(final)
            fsync_path(self.folder)
        except WRITING_FAILED as error:
            self._failed(step, error)
            return False
        finally:
            shutil.rmtree(part, ignore_errors=True)
        if self._failures:
            log.warning("step %d: the checkpoint could be written again", step)
        self._failures = 0
        self._prune()
        return True

    def is_owed(self, step: int) -> bool:
        """Whether the last checkpoint could not be written and the next attempt is due after `step`."""
        return self._failures > 0 and step >= self._next_attempt

    def newest(self) -> Path | None:
        """Return the newest undamaged checkpoint; None if there is none. Damaged ones are skipped with a warning."""
        for path in reversed(self._all()):
            problem = torn(path)
            if problem is None:
                return path
            log.warning("%s is torn and passed over: %s", path, problem)
        return None

    def at(self, step: int) -> Path | None:
        """Return the checkpoint of `step`; None if there is none or it is damaged."""
        path = self.folder / f"checkpoint-{step}"
        return path if path.is_dir() and torn(path) is None else None

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after `step`, which a run resumed at `step` writes again, and unfinished folders."""
        for name in (PART, REMOVED):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self._all():
            if step_of(path) > step:
                self._remove(path)

    def _all(self) -> list[Path]:
        named = (path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal())
        return sorted(named, key=step_of)

    def _prune(self) -> None:
        for path in self._all()[: -self.keep]:
            if step_of(path) != self.best:
                with suppress(OSError):
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint. It is renamed first, so that a folder that is only partly removed is no checkpoint."""
        removed = self.folder / REMOVED
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _failed(self, step: int, error: Exception) -> None:
        wait = min(LONGEST_WAIT, 2**self._failures)
        self._failures += 1
        self._next_attempt = step + wait
        checkpoints = self._all()
        log.warning(
            "step %d: the checkpoint could not be written (%s; %.2f GiB free); training goes on, the last checkpoint "
            "is %s, and the next attempt is after step %d",
            step,
            first_line(error),
            _free(self.folder) / GIB,
            checkpoints[-1].name if checkpoints else "none",
            self._next_attempt,
        )


def step_of(checkpoint: Path) -> int:
    """Return the step after which `checkpoint` was saved, from the name of its folder."""
    return int(checkpoint.name.rpartition("-")[2])


def torn(checkpoint: Path) -> str | None:
    """Return how a checkpoint differs from its manifest, in words; None if it is undamaged."""
    return first_difference(checkpoint, step=step_of(checkpoint))


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


_FIGURES = ("f1", "f1_low", "f1_high")


class BestAdapter:
    """The folder `adapter/` of a run, with the adapter of the best evaluation so far.

    The attributes `step` and `f1` are those of the best evaluation; `step` is None before the first one.

    Args:
        folder: the run folder.
        model: the model that is trained.
        complete: writes the other files of an adapter folder into the folder that it is given: tokenizer, task and
            model card.
        save: writes the trained weights of a model into a folder (`models.save_trained`). If its third argument is not
            None, these weights are written instead of the present ones.
        copy: returns copies of the trained weights of a model, as the third argument of `save` (`models.copy_trained`).
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        complete: Callable[[Path], None],
        save: Callable[[Any, Path, Mapping[str, Any] | None], None],
        copy: Callable[[Any], Mapping[str, Any]],
    ):
        self.run, self.model, self.complete = RunFolder(folder), model, complete
        self.save, self.copy = save, copy
        self.step: int | None = None
        self.f1 = -math.inf
        self._unsaved: tuple[Mapping[str, Any], dict[str, object]] | None = None  # (weights, evaluation.json)

    def offer(self, step: int, values: Mapping[str, float]) -> bool:
        """Keep the present adapter of the model if its evaluation is the best so far, or as good as the best.

        If the adapter cannot be written, its weights are kept in memory and a warning is logged.

        Args:
            step: the step of the evaluation.
            values: the figures of the evaluation: `f1` and, if known, `f1_low` and `f1_high`, in [0, 1].

        Returns:
            whether the adapter is the best one now.
        """
        if values["f1"] < self.f1:
            return False
        self.step, self.f1 = step, values["f1"]
        evaluation = _evaluation(step, values)
        self._unsaved = None
        try:
            self._swap(lambda new: self.save(self.model, new, None), evaluation)
        except WRITING_FAILED as error:
            log.warning(
                "step %d: the best adapter could not be written (%s); it is kept in memory", step, first_line(error)
            )
            self._unsaved = self.copy(self.model), evaluation
        return True

    def retry(self) -> None:
        """Try again to write the best adapter, if it could not be written before."""
        if self._unsaved is None:
            return
        weights, evaluation = self._unsaved
        try:
            self._swap(lambda new: self.save(self.model, new, weights), evaluation)
        except WRITING_FAILED:
            return
        self._unsaved = None
        log.warning("the best adapter, of step %d, could be written now", evaluation["step"])

    def require(self) -> Path:
        """Return the folder of the best adapter, after a last attempt to write it if it is only in memory.

        Raises:
            RunError: the adapter still cannot be written.
        """
        self.retry()
        if self._unsaved is not None:
            raise RunError(
                f"{self.run.path}: the best adapter could not be written; free some space, and go on with "
                f"spantune train --resume {self.run.path}"
            )
        return self.run.adapter

    def settle(self, records: Sequence[MetricsRecord], checkpoints: Checkpoints) -> None:
        """Set `adapter/` to the best evaluation of a resumed run whose adapter still exists.

        The adapter is the one in `adapter/` or is copied from the checkpoint of the evaluation. If no adapter exists,
        `adapter/` is removed.

        Args:
            records: the evaluations before the step at which the run is resumed.
            checkpoints: the checkpoints of the run.
        """
        final, old = self.run.adapter, self.run.adapter.with_suffix(".old")
        if old.exists() and not final.exists():  # the process was killed between the two renames of `_swap`
            old.rename(final)
        for record in sorted(records, key=lambda record: (record["f1"], record["step"]), reverse=True):
            source = None if record["step"] == self._saved_step() else checkpoints.at(record["step"])
            if source is not None:
                log.info("adapter/ is put back to that of step %d", record["step"])
                self._restore(source, record)
            if self._saved_step() == record["step"]:
                self.step, self.f1 = record["step"], record["f1"]
                return
            log.warning("the adapter of step %d, F1 %.4f, is lost: its checkpoint is", record["step"], record["f1"])
        shutil.rmtree(final, ignore_errors=True)

    def _saved_step(self) -> int | None:
        """Return the step of the adapter in `adapter/`; None if there is none, or if its files were changed."""
        if (self.run.adapter / MANIFEST).exists() and (problem := first_difference(self.run.adapter)):
            log.warning("%s was changed after it was written: %s", self.run.adapter, problem)
            return None
        try:
            evaluation = json.loads(self.run.evaluation_file.read_text(encoding="utf-8"))
            return int(evaluation["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _restore(self, checkpoint: Path, record: MetricsRecord) -> None:
        def fill(new: Path) -> None:
            for path in trained_files(checkpoint):
                shutil.copyfile(path, new / path.name)

        self._swap(fill, _evaluation(record["step"], record))

    def _swap(self, fill: Callable[[Path], None], evaluation: Mapping[str, object]) -> None:
        """Replace `adapter/` by a new folder, which is filled and synced under a temporary name beside it.

        Args:
            fill: writes the trained weights into the new folder.
            evaluation: the content of its `evaluation.json`.
        """
        final = self.run.adapter
        new, old = final.with_suffix(".tmp"), final.with_suffix(".old")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            fill(new)
            evaluation_file = new / self.run.evaluation_file.name
            evaluation_file.write_text(to_json(evaluation) + "\n", encoding="utf-8")
            self.complete(new)
            seal(new)
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _evaluation(step: int, values: Mapping[str, float]) -> dict[str, object]:
    return {"step": step, **{key: values[key] for key in _FIGURES if key in values}}
