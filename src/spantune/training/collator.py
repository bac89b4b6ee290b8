"""transformers' Trainer over packs: one batch is one optimizer step of `batch_examples` examples.

The step's examples are packed (or, for comparison, padded), each pack is run forward and backward, and
the loss is normalised over all answer tokens, or examples, of the step. A step that does not fit into memory
is split and repeated. Evaluation is extraction: `evaluate` calls back into the job. The Trainer keeps what it is
good at: loop, optimizer, checkpoints, resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spantune.core import config
from spantune.encoding import NO_TARGET, Example, pack_examples
from spantune.training.loss import tensors


class Collator:
    """Turns the examples of a step into packs of `budget` tokens that share `prefix`, or into padded batches."""

    def __init__(self, settings: config.Train, prefix: Sequence[int], budget: int, padding: int):
        self.settings, self.prefix, self.budget, self.padding = settings, prefix, budget, padding
        self.micro_batch = settings.micro_batch
        self.lowered = 0  # how often the limits were

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """`{"packs" | "rows": [tensors, …], "weight": n, "examples": […], "lowered": m}`; n divides the loss.

        `tokens` and `padding` are counts of positions.
        """
        return {**self._parts(examples), "examples": examples, "lowered": self.lowered}

    def limits(self) -> dict[str, int]:
        """What bounds a part, by the setting's name."""
        return {"pack_tokens": self.budget} if self.settings.pack == "shared" else {"micro_batch": self.micro_batch}

    def restore(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take the limits that a run was lowered to before it was resumed."""
        for record in records:
            self.budget = record.get("pack_tokens", self.budget)
            self.micro_batch = record.get("micro_batch", self.micro_batch)

    def lower(self, part: Mapping[str, Any]) -> bool:
        """Halve what bounds a part, so that `part` is split; False where it is one example."""
        self.lowered += 1
        if "ids" not in part:
            self.micro_batch = len(part["input_ids"]) // 2
            return self.micro_batch > 0
        shared, *rest = torch.bincount(part["owner"], minlength=2).tolist()
        self.budget = max(len(part["ids"]) // 2, shared + max(rest))
        return len(rest) > 1

    def _parts(self, examples: list[Example]) -> dict[str, Any]:
        if self.settings.pack == "shared":
            packs = pack_examples(examples, self.prefix, self.budget)
            parts = [tensors(pack, self.settings.normalize) for pack in packs]
            by_example = self.settings.normalize == "examples"
            weight = sum(pack.answers if by_example else pack.answer_tokens for pack in packs)
            return {"packs": parts, "weight": weight, "tokens": sum(len(pack.ids) for pack in packs), "padding": 0}
        size = self.micro_batch
        rows = [self._padded(examples[i : i + size]) for i in range(0, len(examples), size)]
        weight = sum(int((row["labels"] != NO_TARGET).sum()) for row in rows)
        tokens = sum(len(example.ids) for example in examples)
        padding = sum(row["input_ids"].numel() for row in rows) - tokens
        return {"rows": rows, "weight": weight, "tokens": tokens, "padding": padding}

    def _padded(self, examples: list[Example]) -> dict[str, Tensor]:
        width = max(len(example.ids) for example in examples)

        def fill(row: Sequence[int], value: int) -> list[int]:
            return [*row, *[value] * (width - len(row))]

        labels = [[NO_TARGET] * min(e.answer_start, len(e.ids)) + list(e.ids[e.answer_start :]) for e in examples]
        return {
            "input_ids": torch.tensor([fill(example.ids, self.padding) for example in examples]),
            "attention_mask": torch.tensor([fill([1] * len(example.ids), 0) for example in examples]),
            "labels": torch.tensor([fill(row, NO_TARGET) for row in labels]),
        }
