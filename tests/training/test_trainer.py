"""A step is the same step however it is packed, the schedule ends low, and a broken loss ends the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import TrainingArguments

from helpers.packs import adapted, examples
from spantune.core import RunError, config
from spantune.encoding import NO_TARGET, Example, shared_prefix
from spantune.training import Collator
from spantune.training.schedule import CLOCK_FILE, Clock, Schedule, read_clock
from spantune.training.trainer import PackTrainer

PAD = 269


def train_settings(**changes: Any) -> config.Train:
    return config.Train(**changes)


class Hand(Clock):
    """A clock that is set by hand."""

    def __init__(self, seconds: float = 0.0):
        super().__init__()
        self.now = seconds

    @property
    def seconds(self) -> float:
        return self.now


def factors(total: int = 10, **changes: Any) -> list[float]:
    schedule = Schedule(train_settings(**changes), total, Hand())
    return [schedule.factor(step) for step in range(total + 1)]


def test_cosine_and_linear_fall_to_nothing_and_constant_does_not() -> None:
    assert factors(warmup=0) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(11)])
    assert factors(warmup=0, schedule="linear") == pytest.approx([1 - step / 10 for step in range(11)])
    assert factors(warmup=0, schedule="constant") == [1.0] * 11
    assert factors(warmup=0)[0] == 1.0 and factors(warmup=0)[-1] == pytest.approx(0.0)


def test_warm_up_is_a_share_below_one_and_steps_from_one_on() -> None:
    for warmup in (0.3, 3):
        found = factors(warmup=warmup, schedule="constant")
        assert found[:3] == pytest.approx([1 / 4, 2 / 4, 3 / 4]) and found[3:] == [1.0] * 8
    assert factors(warmup=3)[3:] == pytest.approx(factors(warmup=0)[3:])


def test_the_schedule_follows_whichever_is_further_steps_or_clock() -> None:
    clock = Hand()
    schedule = Schedule(train_settings(warmup=0, schedule="linear", max_minutes=2.0), 100, clock)
    assert schedule.progress(10) == pytest.approx(0.1)
    clock.now = 60.0
    assert schedule.progress(10) == pytest.approx(0.5) and schedule.factor(10) == pytest.approx(0.5)
    assert schedule.progress(80) == pytest.approx(0.8)
    clock.now = 500.0
    assert schedule.progress(10) == 1.0 and schedule.factor(10) == 0.0
    assert Schedule(train_settings(), 100, clock).progress(10) == pytest.approx(0.1)  # no minutes, no clock


def test_a_run_that_the_clock_ends_is_not_all_warm_up() -> None:
    clock = Hand()
    schedule = Schedule(train_settings(warmup=0.1, max_minutes=1.0), 10**6, clock)
    assert schedule.factor(0) < 1e-4
    for now, factor in ((3.0, 0.5), (6.0, 0.5 * (1 + math.cos(math.pi * 0.1))), (60.0, 0.0)):
        clock.now = now
        assert schedule.factor(5) == pytest.approx(factor, abs=1e-4)


def test_a_clock_goes_on_where_the_checkpoint_left_it(tmp_path: Path) -> None:
    assert read_clock(None) == 0.0 and read_clock(tmp_path) == 0.0
    (tmp_path / CLOCK_FILE).write_text("12.5\n")
    clock = Clock(read_clock(tmp_path))
    assert 12.5 <= clock.seconds < 13.5
    time.sleep(0.01)
    assert clock.seconds > 12.505


def collator(budget: int = 4096, **changes: Any) -> Collator:
    chosen = examples()
    return Collator(train_settings(**changes), chosen[0].ids[: shared_prefix(chosen)], budget, PAD)


def answer_tokens(chosen: list[Example]) -> int:
    return sum(len(example.ids) - example.answer_start for example in chosen)


def test_what_runs_while_the_clock_is_stopped_takes_no_time() -> None:
    clock = Clock(10.0)
    with clock.stopped():
        time.sleep(0.05)
    assert 10.0 <= clock.seconds < 10.04
    assert clock.expected(0.5) == pytest.approx(20.0, abs=0.1) and clock.expected(0.0) == math.inf


def test_shared_packs_hold_every_answer_token_once() -> None:
    chosen = examples()
    for budget, packs in ((4096, 1), (200, 2), (1, 4)):
        batch = collator(budget)(chosen)
        assert batch["examples"] == chosen and batch["weight"] == answer_tokens(chosen)
        assert len(batch["packs"]) == packs
        assert sum(len(pack["index"]) for pack in batch["packs"]) == answer_tokens(chosen)
        assert all(len(pack["ids"]) <= budget or packs == 4 for pack in batch["packs"])
        assert batch["tokens"] == sum(len(pack["ids"]) for pack in batch["packs"]) and batch["padding"] == 0


def test_padded_rows_hold_the_examples_as_they_are() -> None:
    chosen = examples()
    batch = collator(pack="none", micro_batch=3)(chosen)
    assert [len(row["input_ids"]) for row in batch["rows"]] == [3, 1]
    assert batch["weight"] == answer_tokens(chosen) and batch["examples"] == chosen
    rows = [(row, number) for row in batch["rows"] for number in range(len(row["input_ids"]))]
    for (row, number), example in zip(rows, chosen, strict=True):
        size, width = len(example.ids), row["input_ids"].shape[1]
        assert row["input_ids"][number].tolist() == [*example.ids, *[PAD] * (width - size)]
        assert row["attention_mask"][number].tolist() == [1] * size + [0] * (width - size)
        labels = row["labels"][number].tolist()
        assert labels == [NO_TARGET] * example.answer_start + list(example.ids[example.answer_start :]) + [
            NO_TARGET
        ] * (width - size)


def trainer(
    tmp_path: Path, settings: config.Train, model: Any = None, lora_plus: float = 1.0, **changes: Any
) -> PackTrainer:
    """A trainer of the four examples in one pack, evaluated by a figure that tells the step."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False, **changes
    )

    def evaluation(step: int) -> Mapping[str, float]:
        return {"f1": step / 10}

    return PackTrainer(
        model=model or adapted("phi3"),
        args=arguments,
        train_dataset=examples(),
        eval_dataset=examples(),
        data_collator=collator(),
        evaluation=evaluation,
        settings=settings,
        clock=Clock(),
        lora_plus=lora_plus,
    )


@pytest.mark.parametrize(("before", "steps"), [((), 6), ((0.3,), 4)])
def test_patience_counts_evaluations_without_a_better_f1_across_a_resume(
    tmp_path: Path, before: tuple[float, ...], steps: int
) -> None:
    changes = {"max_steps": 20, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2}
    made = trainer(tmp_path, train_settings(patience=2), save_strategy="no", **changes)
    made.evaluation = lambda step: {"f1": 0.3}
    made.go_on_from([{"split": "dev", "f1": f1} for f1 in before])
    made.train()
    assert made.state.global_step == steps


def step(tmp_path: Path, batch: dict[str, Any], model: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step from the same start."""
    made = trainer(tmp_path, train_settings(), model)
    loss = made.training_step(made.model, batch)
    return loss.item(), {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}


Batch = Callable[[], dict[str, Any]]
BATCHES: dict[str, Batch] = {
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
    changes = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    made = trainer(tmp_path, train_settings(on_nan="skip", schedule="constant"), save_strategy="no", **changes)
    trained = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    seen: list[dict[str, torch.Tensor]] = []
    first = next(iter(trained.values()))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append({name: p.detach().clone() for name, p in trained.items()})  # the weights before each step
        return gradient * (broken if len(seen) == 1 else 1.0)

    first.register_hook(spoil)
    made.train()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in trained), "the first step is left out"
    assert not any(torch.equal(seen[1][name], p) for name, p in trained.items()), "the second is not"
    spoilt, good = (entry for entry in made.state.log_history if "loss" in entry)
    assert spoilt["left_out"] == 1 and math.isfinite(spoilt["loss"]) and not math.isfinite(spoilt["grad_norm"])
    assert "left_out" not in good and good["loss"] == pytest.approx(spoilt["loss"])


def test_the_loop_uses_our_schedule_and_evaluates_by_calling_back(tmp_path: Path) -> None:
    settings = train_settings(schedule="linear", warmup=0)
    changes = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    made = trainer(tmp_path, settings, eval_strategy="steps", eval_steps=2, save_strategy="no", **changes)
    made.train()
    history = made.state.log_history
    assert [entry["learning_rate"] for entry in history if "loss" in entry] == pytest.approx(
        [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert made.evaluate() == {"eval_f1": 0.4}


def test_a_step_by_examples_is_the_mean_of_their_means_however_they_are_packed(tmp_path: Path) -> None:
    found = [step(tmp_path, collator(budget, normalize="examples")(examples())) for budget in (4096, 200, 1)]
    alone = [step(tmp_path, collator()([example])) for example in examples()]
    assert found[0][0] == pytest.approx(sum(loss for loss, _ in alone) / 4, rel=1e-5)
    by_tokens, _ = step(tmp_path, collator()(examples()))
    assert abs(found[0][0] - by_tokens) > 1e-3  # the examples' answers differ in length
    for loss, gradients in found:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for key, gradient in gradients.items():
            wanted = torch.stack([other[key] for _, other in alone]).mean(0)
            assert (gradient - wanted).norm() <= 2e-5 * wanted.norm(), key


def test_lora_plus_raises_the_rate_of_b_alone(tmp_path: Path) -> None:
    changes = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    moved: dict[float, dict[str, float]] = {}
    for ratio in (1.0, 16.0):
        settings = train_settings(schedule="constant", warmup=0)
        made = trainer(tmp_path, settings, lora_plus=ratio, save_strategy="no", weight_decay=0.0, **changes)
        before = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
        made.train()
        assert made.state.log_history[0]["learning_rate"] == pytest.approx(1e-3)
        after = dict(made.model.named_parameters())
        moved[ratio] = {name: (after[name] - old).abs().max().item() for name, old in before.items()}
    for name, distance in moved[1.0].items():  # Adam's first step is as long as the rate
        assert moved[16.0][name] == pytest.approx((16 if "lora_B" in name else 1) * distance, rel=1e-3), name


class Small:
    """Memory for packs of `room` tokens: over it, a model's forward raises what torch raises on a full GPU."""

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
    made = trainer(tmp_path, train_settings())
    made.data_collator = collator(pack=pack)
    small = Small(made.model, max(lengths()) * (1 if pack == "shared" else 2))
    loss = made.training_step(made.model, made.data_collator(examples()))
    assert small.sizes[0] > small.room and max(small.sizes[-2:]) <= small.room
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad - gradients[name]).norm() <= 2e-5 * gradients[name].norm(), name
    assert "out of memory at step 1: it is split and repeated" in caplog.text
    made.model.zero_grad()
    tried = len(small.sizes)
    made.training_step(made.model, made.data_collator(examples()))  # the limit stays low: nothing fails again
    assert max(small.sizes[tried:]) <= small.room and made.splits == caplog.text.count("out of memory")


def test_gradients_of_the_packs_before_the_failure_do_not_count_twice(tmp_path: Path) -> None:
    wanted, gradients = step(tmp_path, collator(200)(examples()))
    made = trainer(tmp_path, train_settings())
    made.data_collator = collator(200)
    batch = made.data_collator(examples())
    first, second = (len(part["ids"]) for part in batch["packs"])
    batch["packs"].sort(key=lambda part: len(part["ids"]))
    assert first != second
    small = Small(made.model, max(first, second) - 1)
    assert made.training_step(made.model, batch).item() == pytest.approx(wanted, rel=1e-5)
    assert small.sizes[0] <= small.room < small.sizes[1]
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad - gradients[name]).norm() <= 2e-5 * gradients[name].norm(), name


@pytest.mark.parametrize("pack", ["shared", "none"])
def test_an_example_that_does_not_fit_by_itself_is_named(tmp_path: Path, pack: Literal["shared", "none"]) -> None:
    longest = max(examples(), key=lambda example: len(example.ids))
    made = trainer(tmp_path, train_settings())
    made.data_collator = collator(pack=pack)
    Small(made.model, len(longest.ids) - 1)
    with pytest.raises(
        RunError, match=rf"out of memory at step 1: document '{longest.id}' \({len(longest.ids)} tokens\) .*keep=none"
    ):
        made.training_step(made.model, made.data_collator(examples()))
