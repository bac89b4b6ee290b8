"""Every recipe in recipes/ loads, makes a task and has the settings that its comments state."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from spantune.core import ConfigError, load_config
from spantune.data import formats
from spantune.encoding import make_task
from spantune.models.bundled import BUNDLED

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
READING = ("demo", "english-biomedical", "cmeee-spans", "phi4-cmeee-spans")


def test_the_recipes_are_there() -> None:
    names = {path.stem for path in RECIPES}
    assert {"demo", "cmeee-small", "english-biomedical", "phi4-cmeee", "phi4-cmeee-seed"} <= names
    assert {"cmeee-spans", "phi4-cmeee-spans"} <= names
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_is_kept_and_makes_a_task(path: Path, tmp_path: Path) -> None:
    recipe = load_config(path)
    assert recipe.run.name == path.stem
    assert make_task(recipe.task).labels
    recipe.save(tmp_path)
    assert load_config(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_writes_is_what_is_loaded(path: Path) -> None:
    loaded = load_config(path).model_dump(mode="json")
    for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for key, value in values.items():
            assert loaded[section][key] == value and type(loaded[section][key]) in (type(value), float), (
                f"{section}.{key}"
            )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_and_a_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    head = [line for line in lines[: lines.index(next(line for line in lines if not line.startswith("#")))] if line]
    assert len(head) >= 2 and any(f"spantune train recipes/{path.name}" in line for line in head)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_models_and_corpora_exist(path: Path) -> None:
    recipe = load_config(path)
    if recipe.model.source.startswith("bundled:"):
        assert recipe.model.source.removeprefix("bundled:") in BUNDLED
    codes = make_task(recipe.task).codes
    for corpus in (recipe.data.train, recipe.data.dev, recipe.data.test):
        if corpus and corpus.startswith("bundled:"):
            found = {entity.label for document in formats.read(corpus).documents for entity in document.entities}
            assert found <= set(codes)


def test_the_demo_trains_and_tests_on_different_files_within_minutes() -> None:
    recipe = load_config(FOLDER / "demo.yaml")
    assert (recipe.data.train, recipe.data.test) == ("bundled:clinical-zh-train", "bundled:clinical-zh-test")
    assert recipe.train.max_minutes is not None and recipe.train.max_minutes <= 10
    assert recipe.extract.grounded and recipe.train.pack == "shared" and recipe.model.verify


def test_the_seed_recipe_turns_every_flaw_on() -> None:
    recipe = load_config(FOLDER / "phi4-cmeee-seed.yaml")
    assert (recipe.model.source, recipe.model.base, recipe.model.verify) == (
        "modelscope:LLM-Research/phi-4",
        "bf16",
        False,
    )
    assert (recipe.data.holdout, recipe.data.limit, recipe.data.test_limit) == (0.1, 2000, 20)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (64, 16, 0.1)
    assert recipe.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert recipe.lora.allow_unmatched
    train = recipe.train
    assert (train.pack, train.micro_batch, train.batch_examples, train.cut_tokens) == ("none", 4, 16, 384)
    assert (train.learning_rate, train.epochs, train.schedule, train.warmup) == (1e-4, 1, "linear", 0)
    assert train.gradient_checkpointing == "on" and not train.eval_before and not recipe.extract.grounded
    task = make_task(recipe.task)
    assert (task.answer, task.template, task.empty_answer) == ("jsonl_seed", "tutorial", "没有找到任何实体")


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem != "phi4-cmeee-seed"], ids=lambda path: path.stem
)
def test_no_other_recipe_turns_one_on(path: Path) -> None:
    recipe = load_config(path)
    assert recipe.model.verify and not recipe.lora.allow_unmatched
    assert recipe.lora.dropout == 0 or path.stem == "cmeee-spans"  # its dropout is measured in docs/quality.md
    assert recipe.train.pack == "shared" and recipe.train.cut_tokens is None and recipe.extract.grounded
    task = make_task(recipe.task)
    assert (task.answer, task.template) == ("spans" if path.stem in READING else "jsonl", "chat")
    assert recipe.task.answer == task.answer  # stated, because the default depends on the size of the corpus


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_unknown_key_is_refused_with_the_nearest(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch'; did you mean 'epochs'\?"):
        load_config(path, ["train.epoch=1"])
    misspelt = tmp_path / path.name
    misspelt.write_text(path.read_text(encoding="utf-8").replace("\nlora:", "\nlora_:"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key 'lora_'; did you mean 'lora'\?"):
        load_config(misspelt)
