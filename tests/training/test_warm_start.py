"""A run that starts from another run's adapter: what must agree, its first weights, and that it is then independent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from spantune.core import ConfigError, Label, ModelError, RunError, parse_config
from spantune.runs import RunFolder, listing, resume_recipe
from spantune.training import Result, make_plan, prepare, train
from spantune.training.loop import TrainingLoop

Tree = Callable[..., dict[str, Any]]
ONE_STEP = {"max_steps": 1, "eval_steps": 1}


@pytest.fixture
def warm(trained: Result, tree: Tree, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that makes a recipe without an adapter shape that starts from a copy of `trained`, or from `start`."""
    earlier = tmp_path / "earlier"
    shutil.copytree(trained.folder, earlier, ignore=shutil.ignore_patterns("swanlab", "checkpoints"))

    def make(start: Path = earlier, **sections: dict[str, Any]) -> dict[str, Any]:
        values = {"track": {"swanlab": "off"}, **sections}
        values["train"] = {"from": str(start), **ONE_STEP, **sections.get("train", {})}
        plain = tree(tmp_path / "runs", **values)
        plain["lora"] = sections.get("lora", {})
        return plain

    return make


@pytest.mark.no_cover
def test_a_run_begins_as_the_earlier_one_ended_and_resumes_without_it(
    trained: Result, warm: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the machine is gone")

    recipe = parse_config(warm())
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "run", fail)
        with pytest.raises(RuntimeError, match="gone"):
            train(recipe)
    shutil.rmtree(tmp_path / "earlier")
    folder = recipe.run_folder
    result = train(resume_recipe(folder), resume=folder)
    assert result.before is not None and result.before.micro == trained.after.scores.micro
    run = RunFolder(folder)
    evaluations = [record for record in run.metrics() if record["split"] == "dev"]
    assert [record["step"] for record in evaluations] == [0, 1]
    best = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    assert best["f1"] == max(record["f1"] for record in evaluations)
    assert run.config().lora.rank == 8 and run.config().lora.alpha == 16
    assert yaml.safe_load(run.config_file.read_text(encoding="utf-8"))["train"]["from"] == str(tmp_path / "earlier")
    assert listing.read(folder).warm_start == str(tmp_path / "earlier")
    assert listing.matching([listing.read(folder)], ["train.from=*earlier"])
    assert len(run.environment()["start_sha256"]) == 64
    assert "warm start from" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"lora": {"rank": 4}},
            r"lora\.rank is 4, and the adapter of train\.from \(.*earlier\) has 8; leave lora\.rank",
        ),
        ({"lora": {"alpha": 8}}, r"lora\.alpha is 8\.0, .* has 16\.0"),
        ({"task": {"answer": "grouped"}}, r"task\.answer=jsonl, and this recipe has grouped"),
    ],
)
def test_what_does_not_agree_is_refused(
    warm: Callable[..., dict[str, Any]], section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(parse_config(warm(**section)))


def test_another_base_model_or_adapter_is_refused(
    warm: Callable[..., dict[str, Any]], tiny_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**settings, "rope_theta": 5000.0}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"another base model, .*tiny-phi3"):
        prepare(parse_config(warm(model={"source": str(other)})))
    with pytest.raises(ConfigError, match="no run folder and no adapter folder"):
        prepare(parse_config(warm(start=tmp_path)))
    weights = tmp_path / "earlier" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(RunError, match="was changed after training"):
        prepare(parse_config(warm()))
    shutil.rmtree(tmp_path / "earlier" / "adapter")
    with pytest.raises(ConfigError, match="has no adapter yet"):
        prepare(parse_config(warm()))


def test_a_label_of_the_earlier_task_has_to_stay(warm: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    alone = Path(shutil.copytree(tmp_path / "earlier" / "adapter", tmp_path / "alone"))
    (alone / "manifest.json").unlink()
    task = RunFolder(tmp_path / "earlier").task()
    task.model_copy(update={"labels": (*task.labels, Label(code="DISS"))}).save(alone)
    with pytest.raises(ConfigError, match=r"the label 'DISS', which is not one of the task's; did you mean 'dis'\?"):
        prepare(parse_config(warm(start=alone)))


def test_labels_may_be_added_and_plan_says_so(warm: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    labels = [*RunFolder(tmp_path / "earlier").task().codes, "new"]
    plan = make_plan(prepare(parse_config(warm(task={"labels": labels}))))
    audit = next(audit for audit in plan.audits if "train.from" in audit.name)
    assert audit.ok and "does not know the labels new" in audit.found


def test_the_adapter_s_modules_have_to_be_those_of_the_recipe(warm: Callable[..., dict[str, Any]]) -> None:
    plan = make_plan(prepare(parse_config(warm(lora={"targets": ["qkv_proj"]}))))
    assert [audit.name for audit in plan.failed] == ["the adapter of train.from fits"]
    assert "differs in" in plan.failed[0].found


def test_a_rate_that_is_not_named_is_a_third_of_the_earlier_one_and_a_high_one_is_noted(
    warm: Callable[..., dict[str, Any]],
) -> None:
    named = prepare(parse_config(warm()))
    assert named.start is not None and "train.learning_rate=7e-03" in named.start.notes[0]
    plain = warm()
    del plain["train"]["learning_rate"], plain["train"]["loss_on"]
    chosen = prepare(parse_config(plain))
    assert chosen.start is not None and chosen.start.notes == ()
    assert chosen.recipe.train.learning_rate == pytest.approx(0.02 / 3)
    assert chosen.recipe.train.loss_on == "choices"


def test_an_adapter_folder_alone_will_do(warm: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    inside = prepare(parse_config(warm(start=tmp_path / "earlier" / "adapter")))
    assert inside.start is not None and "only its shapes" not in " ".join(inside.start.notes)
    alone = Path(shutil.copytree(tmp_path / "earlier" / "adapter", tmp_path / "alone"))
    prepared = prepare(parse_config(warm(start=alone)))
    assert prepared.start is not None and "only its shapes are compared" in prepared.start.notes[0]
    assert prepared.recipe.lora.targets == prepared.start.targets
    settings = json.loads((alone / "adapter_config.json").read_text(encoding="utf-8"))
    (alone / "adapter_config.json").write_text(json.dumps({**settings, "alpha_pattern": {"x": 2.0}}), encoding="utf-8")
    (alone / "manifest.json").unlink()
    with pytest.raises(ModelError, match="alpha_pattern"):
        prepare(parse_config(warm(start=alone)))
