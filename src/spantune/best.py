"""The best adapter of a run, `adapter/`: swapped in whole, with the step and the F1 that it had.

It is written when an evaluation is the best so far, before the checkpoint of that step. Where the disk is full, its
weights are kept in memory and written as soon as there is room. A run that goes on from an earlier step puts back the
adapter that was the best then, from its checkpoint, so that no F1 is promised that is not on record.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spantune.checkpoints import WRITING_FAILED, Checkpoints, first_line, sync
from spantune.errors import RunError

EVALUATION = "evaluation.json"
_FIGURES = ("f1", "f1_low", "f1_high")
_OF_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")

log = logging.getLogger(__name__)


class BestAdapter:
    """`adapter/` of a run folder.

    Args:
        folder: the run folder.
        model: the PEFT model that is trained.
        complete: writes what else belongs into the folder that it is given: tokenizer and task.
    """

    def __init__(self, folder: Path, model: Any, complete: Callable[[Path], None]):
        self.folder, self.model, self.complete = folder, model, complete
        self.step: int | None = None
        self.f1 = -math.inf
        self._unsaved: tuple[dict[str, Any], dict[str, Any]] | None = None  # weights and evaluation

    def offer(self, step: int, values: Mapping[str, float]) -> bool:
        """Keep the model's adapter if `values`, its evaluation, are the best so far (the later of equals)."""
        if values["f1"] < self.f1:
            return False
        self.step, self.f1 = step, values["f1"]
        evaluation = _evaluation(step, values)
        self._unsaved = None
        try:
            self._swap(lambda fresh: self.model.save_pretrained(str(fresh)), evaluation)
        except WRITING_FAILED as error:
            log.warning(
                "step %d: the best adapter could not be written (%s); it is kept in memory", step, first_line(error)
            )
            weights = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
            copies = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            self._unsaved = copies, evaluation
        return True

    def retry(self) -> None:
        """Write what could not be written before, if there is room now."""
        if self._unsaved is None:
            return
        weights, evaluation = self._unsaved
        try:
            self._swap(lambda fresh: self.model.save_pretrained(str(fresh), state_dict=weights), evaluation)
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
                f"{self.folder}: the best adapter could not be written; free some space, and go on with "
                f"spantune train --resume {self.folder}"
            )
        return self.folder / "adapter"

    def settle(self, records: Sequence[Mapping[str, Any]], checkpoints: Checkpoints) -> None:
        """Put back the adapter of the best of `records`, the evaluations that a resumed run goes on from."""
        final, old = self.folder / "adapter", self.folder / "adapter.old"
        if old.exists() and not final.exists():  # killed between two renames
            old.rename(final)
        for record in sorted(records, key=lambda record: (record["f1"], record["step"]), reverse=True):
            source = None if record["step"] == self._kept() else checkpoints.at(record["step"])
            if source is not None:
                log.info("adapter/ is put back to that of step %d", record["step"])
                self._put_back(source, record)
            if self._kept() == record["step"]:
                self.step, self.f1 = record["step"], record["f1"]
                return
            log.warning("the adapter of step %d, F1 %.4f, is lost: its checkpoint is", record["step"], record["f1"])
        shutil.rmtree(final, ignore_errors=True)

    def _kept(self) -> int | None:
        """The step of the adapter in the folder, where it is whole and says so."""
        try:
            evaluation = json.loads((self.folder / "adapter" / EVALUATION).read_text(encoding="utf-8"))
            return int(evaluation["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _put_back(self, checkpoint: Path, record: Mapping[str, Any]) -> None:
        def fill(fresh: Path) -> None:
            for name in _OF_ADAPTER:
                shutil.copyfile(checkpoint / name, fresh / name)

        self._swap(fill, _evaluation(record["step"], record))

    def _swap(self, fill: Callable[[Path], None], evaluation: Mapping[str, Any]) -> None:
        """Write the adapter beside its place, sync it, and swap it in."""
        final, fresh, old = (self.folder / name for name in ("adapter", "adapter.tmp", "adapter.old"))
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir()
            fill(fresh)
            self.complete(fresh)
            (fresh / EVALUATION).write_text(json.dumps(evaluation) + "\n", encoding="utf-8")
            for path in (*fresh.iterdir(), fresh):
                sync(path)
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            fresh.rename(final)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _evaluation(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": step, **{key: values[key] for key in _FIGURES if key in values}}
