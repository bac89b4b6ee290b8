"""The batch of an optimizer step: its examples as packs that share the instruction, or as padded rows.

One batch is one optimizer step, however many parts (packs or groups of rows) it has. With several processes, each makes
the parts of its own share of the examples; all shares have about the same number of tokens. When a part does not fit
into memory, the limit on the size of parts is lowered, for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from spantune.core import config
from spantune.encoding import NO_TARGET, Example, SpanExample, divide, pack_examples
from spantune.models import SpanPack, moved, pack_spans
from spantune.training.loss import PackTensors, tensors
from spantune.training.masked import MaskedExample, pack_masked


@dataclass(frozen=True)
class PaddedRows:
    """Examples as rows that are padded to the longest: three tensors [rows, width] of type long."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> PaddedRows:
        """Return the same rows on `device`."""
        return PaddedRows(**moved(vars(self), device))


Part = PackTensors | SpanPack | PaddedRows
AnyExample = Example | SpanExample | MaskedExample


@dataclass(frozen=True)
class Batch:
    """The examples of one optimizer step, as parts that are run one after another.

    With several processes, `examples` and `weight` are those of the whole step; all other fields are those of this
    process' share.

    Attributes:
        examples: the examples of the step.
        parts: packs or padded rows.
        weight: the number by which the summed loss of all parts is divided. With masked examples it is the number of
            masked tokens; otherwise it is the number of examples if spans are read or `train.normalize=examples`, and
            else the number of target tokens.
        tokens: positions without padding.
        padding: positions of padding.
        limits: the collator's limits with which the parts were made.
    """

    examples: tuple[AnyExample, ...]
    parts: tuple[Part, ...]
    weight: int
    tokens: int
    padding: int
    limits: Mapping[str, int]
    fillers: tuple[Part, ...] = ()
    """Parts without loss, which give all processes the same number of passes where that is needed (FSDP)."""


class Collator:
    """Makes the batch of a step.

    `rank` and `ranks` are the number of this process and the number of all processes; `StepRunner` sets them.

    Args:
        settings: the recipe's section `train`.
        prefix: token ids that every example begins with; packs hold them once.
        budget: the maximum number of tokens in a pack.
        padding: token id that fills padded rows.
        spans: the settings of the head where spans are read, with `longest` filled; None where answers are written.
    """

    def __init__(
        self,
        settings: config.Train,
        prefix: Sequence[int],
        budget: int,
        padding: int = 0,
        spans: config.Spans | None = None,
    ):
        self.settings, self.prefix, self.budget, self.padding = settings, prefix, budget, padding
        self.spans = spans
        self.micro_batch = settings.micro_batch
        self.rank, self.ranks = 0, 1

    def __call__(self, examples: Sequence[AnyExample]) -> Batch:
        """Return the batch of `examples`, the examples of one step over all processes, for this process."""
        if self.ranks == 1:
            return self._batch(examples)
        share = [examples[index] for index in self.shares(examples)[self.rank]]
        return replace(self._batch(share), examples=tuple(examples), weight=sum(map(self.weight, examples)))

    def shares(self, examples: Sequence[AnyExample]) -> list[list[int]]:
        """Return the indices of the examples of each process; all processes get about the same number of tokens."""
        shared = len(self.prefix) if self.settings.pack == "shared" else 0
        return divide([len(example.ids) - shared for example in examples], self.ranks)

    def weight(self, example: AnyExample) -> int:
        """Return what an example adds to the weight of its batch: 1, or its number of target tokens."""
        if isinstance(example, SpanExample):
            return 1
        if isinstance(example, MaskedExample):
            return len(example.targets)
        targets = max(0, len(example.ids) - example.answer_start)
        if example.choices is not None and self.settings.pack == "shared":
            targets = len(example.choices)
        return min(1, targets) if self.settings.normalize == "examples" else targets

    def single(self, example: AnyExample) -> Batch:
        """Return the batch of one example, also if it is in the share of another process."""
        return self._batch((example,))

    def _batch(self, examples: Sequence[AnyExample]) -> Batch:
        if examples and isinstance(examples[0], MaskedExample):
            return self._masked(tuple(cast("Sequence[MaskedExample]", examples)))
        if self.spans is not None:
            return self._read(tuple(cast("Sequence[SpanExample]", examples)), self.spans)
        examples = cast("Sequence[Example]", examples)
        if self.settings.pack == "shared":
            return self._packed(tuple(examples))
        return self._padded(tuple(examples))

    @property
    def limits(self) -> dict[str, int]:
        """The limit on the size of a part, by the name of its setting: `pack_tokens` or `micro_batch`."""
        return {"pack_tokens": self.budget} if self.settings.pack == "shared" else {"micro_batch": self.micro_batch}

    def restore(self, records: Sequence[Mapping[str, object]]) -> None:
        """Set the limits of a run that is resumed to the last values in `records`, the lines of its `metrics.jsonl`."""
        # A line of the split `plan` is skipped, since it has the values of the beginning.
        for record in (record for record in records if record.get("split") != "plan"):
            self.budget = int(str(record.get("pack_tokens", self.budget)))
            self.micro_batch = int(str(record.get("micro_batch", self.micro_batch)))

    def lower(self, part: Part) -> bool:
        """Lower the limit to half the size of `part`, so that `part` is split when its batch is made again.

        Returns:
            Whether `part` can be split; False if it is a single example.
        """
        if isinstance(part, PaddedRows):
            self.micro_batch = len(part.input_ids) // 2
            return self.micro_batch > 0
        lengths: list[int] = torch.bincount(part.owner, minlength=2).tolist()
        shared, *own_lengths = lengths
        self.budget = max(len(part.ids) // 2, shared + max(own_lengths))
        with_tokens = [length for length in own_lengths if length]  # the example of an empty text has no own token
        return len(with_tokens) > 1

    def _read(self, examples: tuple[SpanExample, ...], spans: config.Spans) -> Batch:
        packs = tuple(pack_spans(examples, self.prefix, self.budget, spans))
        tokens = sum(len(pack.ids) for pack in packs)
        return Batch(examples, packs, weight=len(examples), tokens=tokens, padding=0, limits=self.limits)

    def _masked(self, examples: tuple[MaskedExample, ...]) -> Batch:
        packs = tuple(pack_masked(examples, self.prefix, self.budget))
        targets = sum(len(example.targets) for example in examples)
        tokens = sum(len(pack.ids) for pack in packs)
        return Batch(examples, packs, weight=targets, tokens=tokens, padding=0, limits=self.limits)

    def _packed(self, examples: tuple[Example, ...]) -> Batch:
        packs = pack_examples(examples, self.prefix, self.budget)
        by_example = self.settings.normalize == "examples"
        return Batch(
            examples,
            parts=tuple(PackTensors(**tensors(pack, self.settings.normalize)) for pack in packs),
            weight=sum(pack.answers if by_example else pack.answer_tokens for pack in packs),
            tokens=sum(len(pack.ids) for pack in packs),
            padding=0,
            limits=self.limits,
        )

    def _padded(self, examples: tuple[Example, ...]) -> Batch:
        size = self.micro_batch
        rows = tuple(self._rows(examples[i : i + size]) for i in range(0, len(examples), size))
        tokens = sum(len(example.ids) for example in examples)
        return Batch(
            examples,
            parts=rows,
            weight=sum(int((row.labels != NO_TARGET).sum()) for row in rows),
            tokens=tokens,
            padding=sum(row.input_ids.numel() for row in rows) - tokens,
            limits=self.limits,
        )

    def _rows(self, examples: Sequence[Example]) -> PaddedRows:
        width = max(len(example.ids) for example in examples)

        def filled(row: Sequence[int], value: int) -> list[int]:
            return [*row, *[value] * (width - len(row))]

        labels = [[NO_TARGET] * min(e.answer_start, len(e.ids)) + list(e.ids[e.answer_start :]) for e in examples]
        return PaddedRows(
            torch.tensor([filled(example.ids, self.padding) for example in examples]),
            torch.tensor([filled([1] * len(example.ids), 0) for example in examples]),
            torch.tensor([filled(row, NO_TARGET) for row in labels]),
        )
