"""The training loop: a step is independent of its packing, evaluations and checkpoints follow steps, NaN ends a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from helpers.packs import adapted, examples
from spantune.core import ModelError, RunError, StopRequest, config
from spantune.encoding import NO_TARGET, Example, shared_prefix
from spantune.models import copy_trained, save_trained
from spantune.runs import BestAdapter, Checkpoints
from spantune.training.collator import Batch, Collator
from spantune.training.loop import Services, TrainingLoop
from spantune.training.nan_guard import StepGuard
from spantune.training.schedule import Clock
from spantune.training.step import StepRunner

PAD = 269


def train_settings(**changes: Any) -> config.Train:
    return config.Train(**{"batch_examples": 16, "learning_rate": 1e-4, "epochs": 1, **changes})


def collator(budget: int = 4096, **changes: Any) -> Collator:
    chosen = examples()
    return Collator(train_settings(**changes), chosen[0].ids[: shared_prefix(chosen)], budget, PAD)


def answer_tokens(chosen: list[Example]) -> int:
    return sum(len(example.ids) - example.answer_start for example in chosen)


def test_shared_packs_hold_every_answer_token_once() -> None:
    chosen = examples()
    for budget, packs in ((4096, 1), (200, 2), (1, 4)):
        batch = collator(budget)(chosen)
        assert batch.examples == tuple(chosen) and batch.weight == answer_tokens(chosen)
        assert len(batch.parts) == packs
        assert sum(len(pack.index) for pack in batch.parts) == answer_tokens(chosen)
        assert all(len(pack.ids) <= budget or packs == 4 for pack in batch.parts)
        assert batch.tokens == sum(len(pack.ids) for pack in batch.parts) and batch.padding == 0


def test_padded_rows_hold_the_examples_as_they_are() -> None:
    chosen = examples()
    batch = collator(pack="none", micro_batch=3)(chosen)
    assert [len(row.input_ids) for row in batch.parts] == [3, 1]
    assert batch.weight == answer_tokens(chosen) and batch.examples == tuple(chosen)
    rows = [(row, number) for row in batch.parts for number in range(len(row.input_ids))]
    for (row, number), example in zip(rows, chosen, strict=True):
        size, width = len(example.ids), row.input_ids.shape[1]
        assert row.input_ids[number].tolist() == [*example.ids, *[PAD] * (width - size)]
        assert row.attention_mask[number].tolist() == [1] * size + [0] * (width - size)
        labels = row.labels[number].tolist()
        assert labels == [NO_TARGET] * example.answer_start + list(example.ids[example.answer_start :]) + [
            NO_TARGET
        ] * (width - size)


def runner(
    settings: config.Train | None = None, model: Any = None, made: Collator | None = None, lora_plus: float = 1.0
) -> StepRunner:
    settings = settings or train_settings()
    return StepRunner(model or adapted("phi3"), made or collator(), settings, StepGuard(settings.on_nan), lora_plus)


def test_all_layers_train_though_their_base_was_loaded_for_evaluation() -> None:
    model = adapted("phi3")
    model.base_model.eval()
    assert model.training
    runner(model=model)
    assert all(module.training for module in model.modules())


class Looped:
    """A loop with one step for the four examples, whose evaluations give `f1(step)`; `lines` has what it recorded."""

    def __init__(self, folder: Path, settings: config.Train, stepper: StepRunner, f1: Callable[[int], float]):
        self.lines: list[dict[str, float]] = []

        def record(step: int, values: Mapping[str, float], split: str) -> None:
            self.lines.append({"step": step, **values})

        services = Services(
            checkpoints=Checkpoints(folder / "checkpoints"),
            best=BestAdapter(folder, stepper.model, lambda adapter: None, save_trained, copy_trained),
            stop=StopRequest(),
            evaluate=lambda step, seconds: {"f1": f1(step)},
            record=record,
        )
        self.loop = TrainingLoop(stepper, examples(), settings, Clock(), services)


def looped(
    tmp_path: Path,
    f1: Callable[[int], float] = lambda step: step / 10,
    lora_plus: float = 1.0,
    **changes: Any,
) -> Looped:
    settings = train_settings(**{"batch_examples": 4, "log_steps": 1, **changes})
    return Looped(tmp_path, settings, runner(settings, lora_plus=lora_plus), f1)


@pytest.mark.parametrize(("before", "steps"), [((), 6), ((0.3,), 4)])
def test_patience_counts_evaluations_without_a_better_f1_across_a_resume(
    tmp_path: Path, before: tuple[float, ...], steps: int
) -> None:
    made = looped(tmp_path, lambda step: 0.3, patience=2, max_steps=20, eval_steps=2).loop
    made.resume(None, [{"split": "dev", "f1": f1} for f1 in before])
    made.run()
    assert made.step == steps


def step(tmp_path: Path, batch: Batch, model: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of one training step from the same start."""
    made = runner(model=model)
    made.collator.budget = batch.limits.get("pack_tokens", made.collator.budget)
    loss = made.backward(replace(batch, limits=made.collator.limits), 1)
    made.guard.accepts(loss.item(), 1, [example.id for example in batch.examples])
    return loss.item(), {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}


BATCHES: dict[str, Callable[[], Batch]] = {
    "two packs": lambda: collator(200)(examples()),
    "alone": lambda: collator(1)(examples()),
    "another order": lambda: collator()(examples()[::-1]),
    "padded": lambda: collator(pack="none", micro_batch=3)(examples()),
    "padded alone": lambda: collator(pack="none", micro_batch=1)(examples()),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_step_is_the_same_however_its_examples_are_packed(tmp_path: Path, name: str) -> None:
    loss, gradients = step(tmp_path, collator()(examples()))
    other_loss, other = step(tmp_path, BATCHES[name]())
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == other.keys() and gradients
    for key, gradient in gradients.items():
        assert (other[key] - gradient).norm() <= 2e-5 * gradient.norm(), key


def test_recomputed_activations_give_the_same_step(tmp_path: Path) -> None:
    loss, gradients = step(tmp_path, collator()(examples()))
    model = adapted("phi3")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    again, other = step(tmp_path, collator()(examples()), model)
    assert again == pytest.approx(loss, rel=1e-6)
    assert all((other[key] - gradient).norm() <= 1e-5 * gradient.norm() for key, gradient in gradients.items())


def test_a_bf16_base_trains_fp32_adapters_to_about_the_same_loss(tmp_path: Path) -> None:
    loss, _ = step(tmp_path, collator()(examples()))
    model = adapted("phi3")
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for pack in ("shared", "none"):
        rough, gradients = step(tmp_path, collator(pack=pack)(examples()), model)
        assert rough == pytest.approx(loss, rel=0.05)
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_a_step_without_answer_tokens_is_no_division_by_nothing(tmp_path: Path) -> None:
    cut = [Example(example.id, example.ids[:16], example.answer_start) for example in examples()[:2]]
    loss, _ = step(tmp_path, collator(pack="none", micro_batch=2)(cut))
    assert loss == 0.0


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = adapted("phi3")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(math.nan)
    with pytest.raises(RunError, match=r"the loss became nan at step 1; documents: .*lower train\.learning_rate"):
        step(tmp_path, collator()(examples()), model)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path, broken: float) -> None:
    made = looped(tmp_path, on_nan="skip", schedule="constant", max_steps=2, learning_rate=1e-2)
    trained = {name: p for name, p in made.loop.runner.model.named_parameters() if p.requires_grad}
    seen: list[dict[str, torch.Tensor]] = []
    first = next(iter(trained.values()))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append({name: p.detach().clone() for name, p in trained.items()})  # the weights before each step
        return gradient * (broken if len(seen) == 1 else 1.0)

    first.register_hook(spoil)
    made.loop.run()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in trained), "the first step is left out"
    assert not any(torch.equal(seen[1][name], p) for name, p in trained.items()), "the second is not"
    spoilt, good = (line for line in made.lines if "loss" in line)
    assert spoilt["left_out"] == 1 and math.isfinite(spoilt["loss"]) and not math.isfinite(spoilt["grad_norm"])
    assert "left_out" not in good and good["loss"] == pytest.approx(spoilt["loss"])


def test_the_loop_follows_the_schedule_and_evaluates_what_is_due(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def f1(step: int) -> float:
        evaluated.append(step)
        return step / 10

    made = looped(tmp_path, f1, schedule="linear", warmup=0, max_steps=5, eval_steps=2, learning_rate=1e-3)
    made.loop.run()
    lines = [line for line in made.lines if "loss" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert evaluated == [2, 4, 5], "the last step is evaluated whatever the interval"
    assert made.loop.services.best.step == 5 and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_loop_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    changes = {"max_steps": 6, "save_steps": 3, "eval_steps": 6, "learning_rate": 1e-2, "keep_checkpoints": 9}
    whole = looped(tmp_path / "whole", **changes)
    whole.loop.run()
    resumed = looped(tmp_path / "resumed", **changes)
    resumed.loop.resume(tmp_path / "whole" / "checkpoints" / "checkpoint-3", [])
    resumed.loop.run()
    for line, other_line in zip(whole.lines[3:], resumed.lines, strict=True):
        assert [line[key] for key in ("step", "loss", "grad_norm", "epoch")] == [
            other_line[key] for key in ("step", "loss", "grad_norm", "epoch")
        ]


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    first = looped(tmp_path, max_steps=1)
    first.loop.run()
    settings = train_settings(batch_examples=4)
    other = Looped(tmp_path / "other", settings, runner(settings, adapted("phi3", hidden_size=64)), lambda step: 0.0)
    with pytest.raises(ModelError, match="checkpoint-1: the adapter is for another model"):
        other.loop.resume(tmp_path / "checkpoints" / "checkpoint-1", [])


def test_a_step_by_examples_is_the_mean_of_their_means_however_they_are_packed(tmp_path: Path) -> None:
    found = [step(tmp_path, collator(budget, normalize="examples")(examples())) for budget in (4096, 200, 1)]
    alone = [step(tmp_path, collator()([example])) for example in examples()]
    assert found[0][0] == pytest.approx(sum(loss for loss, _ in alone) / 4, rel=1e-5)
    by_tokens, _ = step(tmp_path, collator()(examples()))
    assert abs(found[0][0] - by_tokens) > 1e-3  # the examples have answers of different lengths
    for loss, gradients in found:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for key, gradient in gradients.items():
            wanted = torch.stack([other[key] for _, other in alone]).mean(0)
            assert (gradient - wanted).norm() <= 2e-5 * wanted.norm(), key


def test_lora_plus_raises_the_rate_of_b_alone(tmp_path: Path) -> None:
    moved: dict[float, dict[str, float]] = {}
    for ratio in (1.0, 16.0):
        made = looped(
            tmp_path / str(ratio),
            lora_plus=ratio, schedule="constant", warmup=0, max_steps=1, learning_rate=1e-3, weight_decay=0.0,
        )  # fmt: skip
        model = made.loop.runner.model
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        made.loop.run()
        assert made.lines[0]["learning_rate"] == pytest.approx(1e-3)
        after = dict(model.named_parameters())
        moved[ratio] = {name: (after[name] - old).abs().max().item() for name, old in before.items()}
    for name, distance in moved[1.0].items():  # Adam's first step is as long as the learning rate
        assert moved[16.0][name] == pytest.approx((16 if "lora_B" in name else 1) * distance, rel=1e-3), name


class Small:
    """Memory for packs of `room` tokens; a larger pack raises what torch raises if a GPU is full."""

    def __init__(self, model: Any, room: int):
        self.room, self.sizes = room, list[int]()
        model.get_base_model().base_model.register_forward_pre_hook(self._weigh, with_kwargs=True)

    def _weigh(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self.sizes.append(named["input_ids"].numel())
        if self.sizes[-1] > self.room:
            raise torch.OutOfMemoryError(f"no room for {self.sizes[-1]} tokens")


def lengths() -> list[int]:
    return sorted(len(example.ids) for example in examples())


@pytest.mark.parametrize("pack", ["shared", "none"])
def test_a_step_that_does_not_fit_is_split_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: Literal["shared", "none"]
) -> None:
    wanted, gradients = step(tmp_path, collator(pack=pack)(examples()))
    made = runner(made=collator(pack=pack))
    small = Small(made.model, max(lengths()) * (1 if pack == "shared" else 2))
    loss = made.backward(made.collator(examples()), 1)
    assert small.sizes[0] > small.room and max(small.sizes[-2:]) <= small.room
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad - gradients[name]).norm() <= 2e-5 * gradients[name].norm(), name
    assert "out of memory at step 1: it is split and repeated" in caplog.text
    made.model.zero_grad()
    tried = len(small.sizes)
    made.backward(made.collator(examples()), 1)  # the limit stays low, so nothing fails again
    assert max(small.sizes[tried:]) <= small.room and made.memory_splits == caplog.text.count("out of memory")


def test_gradients_of_the_packs_before_the_failure_do_not_count_twice(tmp_path: Path) -> None:
    wanted, gradients = step(tmp_path, collator(200)(examples()))
    made = runner(made=collator(200))
    batch = made.collator(examples())
    first, second = (len(part.ids) for part in batch.parts)
    batch = replace(batch, parts=tuple(sorted(batch.parts, key=lambda part: len(part.ids))))
    assert first != second
    small = Small(made.model, max(first, second) - 1)
    assert made.backward(batch, 1).item() == pytest.approx(wanted, rel=1e-5)
    assert small.sizes[0] <= small.room < small.sizes[1]
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad - gradients[name]).norm() <= 2e-5 * gradients[name].norm(), name


@pytest.mark.parametrize("pack", ["shared", "none"])
def test_an_example_that_does_not_fit_by_itself_is_named(tmp_path: Path, pack: Literal["shared", "none"]) -> None:
    longest = max(examples(), key=lambda example: len(example.ids))
    made = runner(made=collator(pack=pack))
    Small(made.model, len(longest.ids) - 1)
    with pytest.raises(
        RunError, match=rf"out of memory at step 1: document '{longest.id}' \({len(longest.ids)} tokens\) .*keep=none"
    ):
        made.backward(made.collator(examples()), 1)
