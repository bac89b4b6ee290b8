"""One optimizer step: every part of a batch goes forward and backward, the gradient is clipped, the weights change.

The loss of a step is divided by the weight of the whole batch, so it does not depend on how the examples are packed. If
a part does not fit into memory, it is split and the step is repeated from its beginning. A step whose loss or gradient
is not finite changes no weight.

With several processes, each runs its own packs; their number may differ. Then loss and gradients are summed over all
processes in one call. So no process waits for another during a forward or backward pass, and a process that must split
its parts does so without the others. (With FSDP all processes take the same number of passes.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from spantune.core import RunError, config
from spantune.models import CausalLM, SpanPack, end_graphs, head_of, pad_ahead
from spantune.training.average import WeightAverage
from spantune.training.collator import Batch, Collator, PaddedRows, Part
from spantune.training.loss import pack_loss
from spantune.training.masters import MasterWeights
from spantune.training.nan_guard import StepGuard
from spantune.training.ranks import ALONE, Ranks
from spantune.training.span_loss import span_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """The figures of a step.

    Attributes:
        loss: the loss per target token, or per example (see `Batch.weight`); a float32 scalar on the device. It is 0 if
            the loss was not finite and the step was skipped.
        gradient_norm: the norm of the gradient before it is clipped, without that of the span head.
        learning_rate: the learning rate of the first parameter group.
    """

    loss: Tensor
    gradient_norm: float
    learning_rate: float


class StepRunner:
    """Runs optimizer steps on one model.

    Args:
        model: a causal LM with some trainable weights, on its device.
        collator: makes the batches; if a part does not fit into memory, it makes the batch again in smaller parts.
        settings: the recipe's section `train`.
        guard: refuses losses and gradients that are not finite.
        lora_plus: the learning rate of LoRA's B divided by that of A (LoRA+); 1 for plain LoRA.
        head_rate: the learning rate of the span head, if the model has one.
        ranks: the processes that train together; all have the same weights.
    """

    def __init__(
        self,
        model: CausalLM,
        collator: Collator,
        settings: config.Train,
        guard: StepGuard,
        lora_plus: float = 1.0,
        head_rate: float = 0.0,
        ranks: Ranks = ALONE,
    ):
        device = next(model.parameters()).device
        self.ranks, collator.rank, collator.ranks = ranks, ranks.rank, ranks.size
        head = head_of(model)
        self._head = [] if head is None else list(head.parameters())
        self.model, self.optimizer = model, make_optimizer(model, settings, lora_plus, head_rate)
        self.masters = MasterWeights(self.optimizer)
        groups = self.optimizer.param_groups[: -1 if self._head else None]
        self.trainable = [parameter for group in groups for parameter in group["params"]]
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self._average = WeightAverage(weights, settings.average) if settings.average is not None else None
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.collator, self.settings, self.guard, self.device = collator, settings, guard, device
        self.tokens = self.padding = 0
        """Positions that this process has computed so far: tokens without padding, and padding."""
        self.first_step = 0
        """The number of steps before the optimizer last began again."""
        self.memory_splits = 0
        """How many times this process has split parts for want of memory, since the caller last reset the number."""
        self._skips_by_itself = settings.optimizer == "adamw"  # torch's fused optimizers skip a step by `found_inf`
        self._autocast = model.get_input_embeddings().weight.dtype == torch.bfloat16
        self._adapters = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        # The base model was loaded in evaluation mode and its adapters are new, so `model.training` can be True while
        # the layers are in evaluation mode. Without this call they would be neither compiled nor recomputed in the
        # backward pass until the first evaluation.
        model.train()

    def run(
        self, batch: Batch, step: int, rate_factor: float, meanwhile: Callable[[], None] | None = None
    ) -> StepResult:
        """Take optimizer step number `step`.

        Args:
            batch: the examples of the step.
            step: the number of the step, from 1.
            rate_factor: the factor on the peak learning rate.
            meanwhile: called once while the device still computes, to prepare the next step.

        Raises:
            RunError: one example alone does not fit into memory, or the guard ends the run.
        """
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * rate_factor
        loss = self.backward(batch, step)
        if meanwhile is not None:
            meanwhile()
        self.masters.take_gradients()
        loss = self._over_all_ranks(loss)
        documents = [example.id for example in batch.examples]
        # The head is clipped by itself, since its gradient is much larger at the beginning.
        norms = [clip_grad_norm_(weights, self.settings.max_grad_norm) for weights in (self.trainable, self._head)]
        numbers = torch.stack([loss, *(norm.to(loss) for norm in norms)])
        if self._skips_by_itself:  # update before the numbers are read, since reading them waits for the device
            self.optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]
            self._update(step)
        value, norm, head_norm = numbers.tolist()
        is_accepted = self.guard.accepts(value, step, documents)
        if not is_accepted:
            loss, norm = torch.zeros_like(loss), 0.0
        is_taken = is_accepted and self.guard.accepts_gradient(norm + head_norm, step, documents)
        if not self._skips_by_itself:
            self._update(step, is_taken=is_taken)
        return StepResult(loss, norm, self.optimizer.param_groups[0]["lr"])

    def _update(self, step: int, *, is_taken: bool = True) -> None:
        """Change the weights if the step is taken, update their average, and drop the gradients."""
        if is_taken:
            self.optimizer.step()
            self.masters.give_weights()
        if self._average is not None:
            self._average.update(step - self.first_step)
        self._drop_gradients()

    def ready(self, batch: Batch) -> Batch:
        """Return the batch on the device, without waiting until the device has finished its present work."""
        parts = tuple(part.to(self.device) for part in batch.parts)
        for part in parts:
            if not isinstance(part, PaddedRows):
                pad_ahead(self.model, part.ids, part.positions, part.spans)
        return replace(batch, parts=parts)

    def begin_again(self, step: int) -> None:
        """Drop the optimizer's moments, and begin the averages with the weights after `step` steps."""
        self.first_step = step
        self.optimizer.state.clear()
        if self._average is not None:
            self._average.begin_again()

    def align(self) -> None:
        """Set the trained weights of all ranks, and their averages, to those of rank 0."""
        averages = [] if self._average is None else self._average.state()["averages"]
        self.ranks.same([*(weight.data for weight in (*self.trainable, *self._head)), *averages])
        self.masters.give_weights()

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizer, the fp32 copies of weights that are not fp32, and the averages.

        A checkpoint holds this state beside the trained weights.
        """
        average = {} if self._average is None else self._average.state()
        return {**self.optimizer.state_dict(), "masters": self.masters.state(), "average": average}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the `state` of a checkpoint.

        Raises:
            RunError: the state lacks fp32 copies or averages that this run needs (see `MasterWeights.restore` and
                `WeightAverage.restore`).
        """
        state = dict(state)
        self.masters.restore(state.pop("masters", []))  # checkpoints of earlier releases have no copies and averages
        average = state.pop("average", {})
        if self._average is not None:
            self._average.restore(average)
        self.optimizer.load_state_dict(state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averages of its weights inside the block, if `train.average` is set."""
        if self._average is None:
            yield
            return
        try:
            with self._average.in_place():
                self.masters.give_weights()
                yield
        finally:
            self.masters.give_weights()

    def backward(self, batch: Batch, step: int) -> Tensor:
        """Add the gradients of this process' parts of a batch, and return their loss (a float32 scalar on the device).

        Raises:
            RunError: one example alone does not fit into memory.
        """
        if not self.model.training:  # `train()` visits all modules while the GPU waits, so it is called only if needed
            self.model.train()
        if batch.limits != self.collator.limits:  # the batch was made before the limits were lowered
            batch = self.collator(batch.examples)
        outcome = self._attempt(self._in_lockstep(batch))
        while not isinstance(outcome, Tensor):
            batch = self._split(batch, step, outcome)
            outcome = self._attempt(batch)
        self.tokens += batch.tokens
        self.padding += batch.padding
        return outcome

    def _attempt(self, batch: Batch) -> Tensor | Part:
        """Return the loss of the batch, or the first part that does not fit into memory."""
        summed = torch.zeros((), device=self.device)
        for number, part in enumerate((*batch.parts, *batch.fillers)):
            counts = float(number < len(batch.parts))
            try:
                loss = counts * self._part_loss(part.to(self.device), max(1, batch.weight))
                loss.backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError:
                return part
            summed += loss.detach().float()
            del loss  # frees the tensors of its graph
        return summed

    def _over_all_ranks(self, loss: Tensor) -> Tensor:
        """Sum the gradients over all ranks, and return the sum of their losses."""
        if self.ranks.size == 1:
            return loss
        weights = [*self.trainable, *self._head]  # all fp32, as their gradients are
        gradients = [weight.new_zeros(weight.shape) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([loss.reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        for weight in weights:
            weight.grad = None
        del gradients
        self.ranks.sum(flat)
        sizes = [1, *(weight.numel() for weight in weights)]
        summed, *parts = torch.split(flat, sizes)
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view(weight.shape)
        return summed[0].clone()

    def _in_lockstep(self, batch: Batch) -> Batch:
        """Return the batch, filled up to the largest number of parts on any rank if the base is divided over ranks.

        The loss of an added part is multiplied by 0.
        """
        if not self.ranks.in_lockstep:
            return batch
        most = int(max(count for (count,) in self.ranks.table([len(batch.parts)])))
        missing = most - len(batch.parts)
        return replace(batch, fillers=self.collator.single(batch.examples[0]).parts * missing) if missing else batch

    def _split(self, batch: Batch, step: int, part: Part) -> Batch:
        """Return the batch for another attempt after `part` did not fit, and free the memory of the failed attempt.

        If packs were replayed as CUDA graphs, the graphs are given up and the batch is returned unchanged. Otherwise it
        is made again in smaller parts.

        Raises:
            RunError: `part` is a single example, or the base is divided over ranks (FSDP).
        """
        self._drop_gradients()
        had_graphs = end_graphs(self.model)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if had_graphs:
            return batch
        if self.ranks.in_lockstep:  # the other ranks wait in the middle of a pass
            raise RunError(
                f"out of memory at step {step}, and with distributed.strategy=fsdp a step cannot be repeated; set a "
                f"lower train.pack_tokens than {len(part.ids) if not isinstance(part, PaddedRows) else 64} in the "
                "config.yaml of the run, and resume from the last checkpoint"
            )
        if not self.collator.lower(part):
            ids = (part.input_ids[0] if isinstance(part, PaddedRows) else part.ids).tolist()
            name = next(example.id for example in batch.examples if list(example.ids) == ids)
            raise RunError(
                f"out of memory at step {step}: document {name!r} ({len(ids)} tokens) does not fit by itself; set "
                "train.keep=none, model.base=fp8 or nf4, or a lower train.max_tokens with data.too_long=split"
            )
        self.memory_splits += 1
        limits = ", ".join(f"train.{name}={value}" for name, value in self.collator.limits.items())
        log.warning("out of memory at step %d: it is split and repeated; %s for the rest of the run", step, limits)
        return self.collator(batch.examples)

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.drop_gradients()

    def _part_loss(self, part: Part, weight: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            if not isinstance(part, PaddedRows):
                dtype = torch.bfloat16 if self._autocast else torch.float32
                with self._input_casts_by_autocast():
                    if isinstance(part, SpanPack):
                        return span_loss(self.model, part, dtype) / weight
                    return pack_loss(self.model, part, dtype) / weight
            loss: Tensor = self.model(**vars(part), use_cache=False, num_items_in_batch=weight).loss
            return loss

    @contextmanager
    def _input_casts_by_autocast(self) -> Iterator[None]:
        """Keep PEFT from casting the inputs of adapters inside the block, where autocast does it.

        PEFT's own `disable_input_dtype_casting` does the same, but visits all modules for every pack.
        """
        self._let_cast(not self._autocast)
        try:
            yield
        finally:
            self._let_cast(True)

    def _let_cast(self, is_allowed: bool) -> None:
        """Set whether PEFT casts the inputs of adapters; written by `vars`, since `Module.__setattr__` is slow."""
        for module in self._adapters:
            vars(module)["cast_input_dtype_enabled"] = is_allowed


def make_optimizer(
    model: CausalLM, settings: config.Train, lora_plus: float = 1.0, head_rate: float = 0.0
) -> Optimizer:
    """Make the recipe's optimizer for the parameters that require a gradient.

    If the model has a span head, its weights are the last parameter group.

    Args:
        model: the model.
        settings: the recipe's section `train`.
        lora_plus: the learning rate of LoRA's B divided by that of A (LoRA+, arXiv 2402.12354); 1 for plain LoRA.
        head_rate: the learning rate of the span head.
    """
    head = head_of(model)
    if head is None:
        return _optimizer(model, settings, lora_plus)
    head.requires_grad_(False)
    optimizer = _optimizer(model, settings, lora_plus)
    head.requires_grad_(True)
    weights = list(head.parameters())
    optimizer.add_param_group({"params": weights, "lr": head_rate, "weight_decay": settings.weight_decay})
    return optimizer


def _optimizer(model: CausalLM, settings: config.Train, lora_plus: float) -> Optimizer:
    options: dict[str, Any] = {"lr": config.filled(settings.learning_rate)}
    optimizer_class: Callable[..., Optimizer] = torch.optim.AdamW
    if settings.optimizer == "adamw":
        options["fused"] = True
    else:
        from bitsandbytes import optim

        optimizer_class = {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[settings.optimizer]
    if lora_plus != 1.0:
        return create_loraplus_optimizer(  # type: ignore[no-any-return]
            model, optimizer_class, loraplus_lr_ratio=lora_plus, loraplus_weight_decay=settings.weight_decay, **options
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return optimizer_class(trainable, weight_decay=settings.weight_decay, **options)
