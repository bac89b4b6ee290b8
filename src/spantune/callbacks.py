"""Between two steps: heed a request to stop, try again what the disk refused, and end the line of a saved step.

The Trainer asks its callbacks after every step, which is where a run can end without losing anything. Training lines
are written before a checkpoint is, so that a line never covers steps of both sides of a resume.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spantune.best import BestAdapter
from spantune.checkpoints import Checkpoints
from spantune.signals import StopRequest


class SafetyCallback(TrainerCallback):
    """Ends a run in order and saves what is owed; the last of a Trainer's callbacks."""

    def __init__(self, stop: StopRequest, checkpoints: Checkpoints, best: BestAdapter):
        self.stop, self.checkpoints, self.best = stop, checkpoints, best

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop once a signal asked for it; an evaluation that is due waits for the resume."""
        if self.stop:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        elif self.checkpoints.is_owed(state.global_step):
            control.should_save = True
        if control.should_save or control.should_evaluate:
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a checkpoint there may be room for the best adapter too."""
        self.best.retry()
