"""The predicted memory of each part agrees with measurements, and a run that does not fit gets settings that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from helpers.fakes import tiny_model
from helpers.real import bench
from spantune.core import Config, config, parse_config
from spantune.models import attach, attach_head, load, make_head, own_output_weights
from spantune.training import estimate, make_plan, prepare
from spantune.training.estimate import fitting
from spantune.training.layers import checkpointing, compiling
from spantune.training.memory import GIB, HeadLoad, predict_memory
from spantune.training.plan import MEMORY, settled, skeleton
from spantune.training.preparation import Prepared

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LARGEST_STEP = 3332  # tokens of the largest step of 16 examples in the measurements below; their mean is 2,818


@pytest.fixture(scope="module")
def phi4() -> Any:
    """A model of Phi-4's shape without weights."""
    values = bench("random_phi4").CONFIG
    shape = {key: value for key, value in values.items() if key not in ("model_type", "torch_dtype", "architectures")}
    return skeleton(AutoConfig.for_model("phi3", **shape))


def recipe(**sections: dict[str, Any]) -> Config:
    plain: dict[str, Any] = {"model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": "t"}}
    plain["lora"] = {"rank": 64, "alpha": 16}
    return parse_config({**plain, **{name: {**plain.get(name, {}), **values} for name, values in sections.items()}})


@pytest.mark.parametrize(
    ("base", "keep", "measured"),
    [("fp8", "none", 19.8), ("fp8", "most", 35.0), ("bf16", "some", 37.5), ("bf16", "most", 49.1)],
)
def test_predicted_peaks_are_within_a_tenth_of_those_measured(phi4: Any, base: str, keep: str, measured: float) -> None:
    settings = recipe(model={"base": base}, train={"keep": keep})
    assert predict_memory(phi4, settings, CUDA, LARGEST_STEP).total_gib == pytest.approx(measured, rel=0.1)


def test_each_part_is_what_its_setting_makes_it(phi4: Any) -> None:
    def parts(**sections: dict[str, Any]) -> dict[str, float]:
        return vars(predict_memory(phi4, recipe(**sections), CUDA, 3000))

    linear, embeddings, adapters = 40 * 340_787_200, 2 * 100352 * 5120 + 81 * 5120, 40 * 64 * 87_040
    plain = parts(model={"base": "bf16"})
    assert plain["base_gib"] * GIB == 2 * (linear + embeddings)
    assert plain["adapters_gib"] * GIB == plain["optimizer_gib"] * GIB == 8 * adapters
    for base, least in (("fp8", 1.0), ("int8", 1.0), ("nf4", 0.5)):
        found = parts(model={"base": base})["base_gib"] * GIB
        on_the_host = 100352 * 5120  # the token embeddings
        assert least * linear < found - 2 * (embeddings - on_the_host) < 1.05 * least * linear
    assert parts(train={"optimizer": "adamw_8bit"})["optimizer_gib"] == plain["optimizer_gib"] / 4
    keeps = ("none", "some", "fp8", "most")
    none, some, eight, most = (parts(model={"base": "fp8"}, train={"keep": keep}) for keep in keeps)
    # Kept are: attention, 40 × 128, and its log-sum-exp; then qkv and o with their low-rank states. gate_up is wide,
    # down's output is in the residual sum, and the low-rank states of gate_up and down are kept by every setting.
    kept = 2 * (5120 + 7680 + 5120 + 2 * 64) + 160
    assert (some["activations_gib"] - none["activations_gib"]) * GIB == 3000 * 40 * kept
    assert (most["activations_gib"] - some["activations_gib"]) * GIB == 3000 * 40 * 2 * 35840
    assert (eight["activations_gib"] - some["activations_gib"]) * GIB == 3000 * 40 * (35840 + 4 * 35840 // 128)
    narrow = parts(model={"base": "bf16"}, lora={"targets": ["o_proj"]})
    assert narrow["activations_gib"] < plain["activations_gib"]  # others are not kept by our operators
    recomputed, eager = (
        parts(train={"compile": "off", "gradient_checkpointing": switch})["activations_gib"] for switch in ("on", "off")
    )
    assert recomputed == none["activations_gib"] - 3000 * 40 * 2 * 2 * 64 / GIB < eager
    padded = parts(train={"pack": "none"})
    assert padded["logits_gib"] == plain["logits_gib"] * 3000 / 256  # the model's own loss makes all logits


def test_where_spans_are_read_an_output_layer_of_its_own_takes_nothing(phi4: Any) -> None:
    writing, reading = (
        predict_memory(phi4, recipe(model={"base": "bf16"}), CUDA, 3000, head).base_gib
        for head in (None, HeadLoad(1000, 1.0, 1.0))
    )
    assert (writing - reading) * GIB == pytest.approx(2 * 100352 * 5120)
    assert own_output_weights(skeleton(tiny_model("gemma3_text").config)) == 0  # it shares the table of embeddings


def test_full_fine_tuning_takes_sixteen_bytes_a_weight_on_either_base(phi4: Any) -> None:
    trained = 40 * 340_787_200 + 81 * 5120  # the layers and the last norm
    for base, copies in (("bf16", 8), ("fp32", 4)):
        full = parse_config({**recipe(model={"base": base}).model_dump(mode="json", by_alias=True), "lora": "full"})
        memory = predict_memory(phi4, full, CUDA, 3000)
        assert memory.adapters_gib * GIB == copies * trained and memory.optimizer_gib * GIB == 8 * trained


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(tmp_path: Path, tree: Callable[..., dict[str, Any]]) -> Prepare:
    """A function that prepares the tiny recipe, changed by section."""
    return lambda **sections: prepare(parse_config(tree(tmp_path / "runs", **sections)))


def test_the_estimate_counts_weights_and_tokens(prepared: Prepare) -> None:
    found = prepared()
    predicted, recipe = make_plan(found).estimate, found.recipe
    loaded = load(recipe.model)
    assert predicted.memory.base_gib * GIB == 4 * sum(p.numel() for p in loaded.model.parameters())
    model, _ = attach(loaded.model, recipe.lora)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predicted.memory.adapters_gib * GIB == predicted.memory.optimizer_gib * GIB == 8 * trained
    lengths, batch = [len(example.ids) for example in found.examples], recipe.train.batch_examples
    assert predicted.tokens_unpacked == round(sum(lengths) * batch / len(lengths))
    assert predicted.tokens_per_step < predicted.tokens_unpacked
    assert predicted.steps == 12
    assert make_plan(prepared(train={"max_steps": None, "epochs": 2})).estimate.steps == 8
    assert predicted.step_seconds > 0 and predicted.available_gib > 0.1 and predicted.fits
    assert predicted.memory.total_gib > predicted.memory.base_gib


READ: dict[str, dict[str, Any]] = {"task": {"answer": "spans"}, "train": {"loss_on": None}}


def test_the_estimate_of_reading_counts_the_head_and_no_vocabulary(prepared: Prepare) -> None:
    found = prepared(**READ)
    recipe, predicted = found.recipe, make_plan(found).estimate
    model, _ = attach(load(recipe.model).model, recipe.lora)
    attach_head(model, make_head(model, found.tokenizer, found.task, recipe.spans))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predicted.memory.adapters_gib * GIB == predicted.memory.optimizer_gib * GIB == 8 * trained
    wide = make_plan(prepared(**READ, spans={"size": 512})).estimate.memory
    assert 0 < predicted.memory.logits_gib < wide.logits_gib
    assert predicted.tokens_per_step <= predicted.tokens_unpacked
    every_step = make_plan(prepared(**{**READ, "train": {"loss_on": None, "eval_steps": 1}})).estimate
    training = every_step.steps * every_step.step_seconds / 60
    assert every_step.minutes == pytest.approx(training * (1 + recipe.train.eval_share))
    assert predicted.minutes < predicted.steps * predicted.step_seconds / 60 * (1 + recipe.train.eval_share)


def test_bf16_on_a_cpu_is_not_as_much_faster_as_its_products(
    tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_product_rates", {(torch.bfloat16, CPU): 500e9, (torch.float32, CPU): 100e9})
    of_base = {
        base: estimate._rate(parse_config(tree(tmp_path, model={"base": base})), CPU) for base in ("bf16", "fp32")
    }
    assert of_base["fp32"] == 50e9 and 1 < of_base["bf16"] / of_base["fp32"] < 2


def test_settings_that_make_reading_fit(prepared: Prepare, phi4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "has_fp8", lambda device: True)
    found = prepared(**READ, model={"base": "bf16"})
    assert fitting(found, phi4, CUDA, 70) == {}
    tight = fitting(found, phi4, CUDA, 9.5)
    assert tight is not None and tight["model.base"] == "nf4"
    assert fitting(found, phi4, CUDA, 6) is None


def test_what_is_recomputed_by_default(tree: Any, tmp_path: Path) -> None:
    assert compiling(parse_config(tree(tmp_path)), CUDA) and not compiling(parse_config(tree(tmp_path)), CPU)
    assert not compiling(parse_config(tree(tmp_path, model={"base": "nf4"})), CUDA)
    auto = parse_config(tree(tmp_path, train={"compile": "off"}))
    assert checkpointing(auto, CUDA) and not checkpointing(auto, CPU)


def test_what_is_kept_by_itself_is_all_where_it_fits(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(train={"compile": "on"})
    for free, keep in ((100 * GIB, "most"), (1, "some")):
        monkeypatch.setattr(estimate, "available_bytes", lambda device, free=free: free)
        assert settled(found).recipe.train.keep == keep
        assert settled(prepared(train={"compile": "on", "keep": "none"})).recipe.train.keep == "none"
    assert settled(prepared(train={"compile": "off"})).recipe.train.keep == "some"  # and there is no warning


def test_settings_that_fit_are_the_nearest_ones(prepared: Prepare, phi4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less and less GPU memory: first less is kept, then optimizer, base and at last packs become smaller."""
    monkeypatch.setattr(estimate, "has_fp8", lambda device: True)
    found = prepared(model={"base": "bf16"}, lora={"rank": 64}, train={"keep": "most", "loss_on": "answer"})
    sizes = {70: {}, 42: {"train.keep": "some"}, 37: {"train.keep": "none"}}
    sizes |= {34: {"train.keep": "none", "train.optimizer": "adamw_8bit"}, 26: {"model.base": "fp8"}}
    for available, settings in sizes.items():
        chosen = fitting(found, phi4, CUDA, available)
        assert chosen is not None and settings.items() <= chosen.items(), (available, chosen)
        assert settings or chosen == {}
    tight = fitting(found, phi4, CUDA, 13)
    assert tight is not None and tight["model.base"] == "nf4" and tight["train.pack_tokens"] < 4096
    assert fitting(found, phi4, CUDA, 8) is None
    full = config.Lora(full=True)
    whole = replace(found, recipe=found.recipe.model_copy(update={"lora": full}))
    assert fitting(whole, phi4, CUDA, 70) is None  # no quantised base is proposed for full fine-tuning


def test_a_run_that_does_not_fit_names_settings_with_which_it_would(prepared: Prepare) -> None:
    plan = make_plan(prepared(train={"pack_tokens": 2**40}))
    (failed,) = plan.failed
    assert failed.name == MEMORY and "free on this machine" in failed.found and "activations" in failed.found
    chosen = plan.estimate.fitting
    assert chosen is not None and 200 < chosen["train.pack_tokens"] < 2**40
    assert failed.remedy == "set " + " ".join(f"{key}={value}" for key, value in chosen.items())
    sections: dict[str, dict[str, Any]] = {"train": {}, "model": {}}
    for key, value in chosen.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    fitted = make_plan(prepared(**sections))
    assert fitted.failed == [] and fitted.estimate.fits
