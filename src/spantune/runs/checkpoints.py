"""Checkpoints that are complete or absent, sealed by a manifest of hashes, and the adapter of the best evaluation.

A checkpoint is filled under a hidden name. The manifest, with the size and SHA-256 of every file, is written last;
everything is synced to the disk before the folder gets its name. When a run is resumed, every hash is compared, and a
torn checkpoint is skipped for the one before it. A checkpoint that cannot be written, as on a full disk, does not end
the run: a warning is logged, no earlier one is touched, and it is tried again after 1, 2, 4, … steps. The cost is that
everything written is read once more.
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
LONGEST_WAIT = 64  # steps between two attempts
GIB = 2**30

log = logging.getLogger(__name__)

WRITING_FAILED = (OSError, RuntimeError, SafetensorError)
"""What writers raise when the disk is full or read-only: Python, torch and safetensors."""


class Checkpoints:
    """The checkpoints of a run in `folder`: the newest `keep` are kept, and that of the step `best`."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self.best: int | None = None
        self._failures = 0
        self._next_attempt = 0

    def write(self, step: int, fill: Callable[[Path], None]) -> bool:
        """Write `checkpoint-<step>`, which `fill` fills, and prune; False where the disk refuses it."""
        part = self.folder / PART
        try:
            shutil.rmtree(part, ignore_errors=True)
            new, final = part / f"checkpoint-{step}", self.folder / f"checkpoint-{step}"
            new.mkdir(parents=True)
            fill(new)
            seal(new, step=step)
            if final.exists():  # of an earlier attempt that was given up
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
        """Whether a checkpoint that could not be written is to be tried again after `step`."""
        return self._failures > 0 and step >= self._next_attempt

    def newest(self) -> Path | None:
        """The newest checkpoint whose every file is as it was written; torn ones are skipped with a warning."""
        for path in reversed(self._all()):
            problem = torn(path)
            if problem is None:
                return path
            log.warning("%s is torn and passed over: %s", path, problem)
        return None

    def at(self, step: int) -> Path | None:
        """The checkpoint of a step, where there is one that is whole."""
        path = self.folder / f"checkpoint-{step}"
        return path if path.is_dir() and torn(path) is None else None

    def discard_after(self, step: int) -> None:
        """Remove what a run that goes on after `step` will write again, torn checkpoints and leftovers included."""
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
        """Rename the folder first, so that a half-removed one is no checkpoint."""
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
    """The step after which `checkpoint` was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def torn(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, compared with its manifest; None where it is whole."""
    return first_difference(checkpoint, step=step_of(checkpoint))


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


_FIGURES = ("f1", "f1_low", "f1_high")


class BestAdapter:
    """`adapter/` of a run folder: the adapter of the best evaluation so far.

    Args:
        folder: the run folder.
        model: the model that is trained.
        complete: writes what else belongs into the folder that it is given: tokenizer, task and model card.
        save: writes what is trained of a model into a folder, with the third argument those weights instead of its own
            (`models.save_trained`).
        copy: returns copies of what is trained of a model, the third argument of `save` (`models.copy_trained`).
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
        self._unsaved: tuple[Mapping[str, Any], dict[str, object]] | None = None  # weights and evaluation

    def offer(self, step: int, values: Mapping[str, float]) -> bool:
        """Keep the model's adapter if `values`, its evaluation, are the best so far (the later of equals)."""
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
        """Write what could not be written before, if there is room now."""
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
        """The folder of the best adapter.

        Raises:
            RunError: it cannot be written still.
        """
        self.retry()
        if self._unsaved is not None:
            raise RunError(
                f"{self.run.path}: the best adapter could not be written; free some space, and go on with "
                f"spantune train --resume {self.run.path}"
            )
        return self.run.adapter

    def settle(self, records: Sequence[MetricsRecord], checkpoints: Checkpoints) -> None:
        """Restore the adapter of the best of `records`, the evaluations that a resumed run goes on from."""
        final, old = self.run.adapter, self.run.adapter.with_suffix(".old")
        if old.exists() and not final.exists():  # killed between two renames
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
        """The step of the adapter in the folder; None where there is none, or it was changed since it was written."""
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
        """Write the adapter beside its place, sync it, and swap it in."""
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
