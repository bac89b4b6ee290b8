"""A run that reads spans is resumed bit-equally, can be started from, and refuses settings of writing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.real import bench
from spantune.core import ConfigError, DataError, Document, Entity, ModelError, parse_config
from spantune.data import formats
from spantune.models import HeadConfig, SpanHead, load_head_weights, save_head
from spantune.runs import RunFolder, resume_recipe, step_of
from spantune.runs.folder import REPORT
from spantune.training import Result, make_plan, masked, prepare, train
from spantune.training.recommendation import READ_FROM

Tree = Callable[..., dict[str, Any]]
READ: dict[str, Any] = {
    "task": {"answer": "spans"},
    "spans": {"size": 16, "convolution": 3},
    "lora": {"dropout": 0.1},  # so that the random state must be restored too
    "train": {"max_steps": 6, "eval_steps": 3, "save_steps": 2, "loss_on": None, "learning_rate": 1e-3},
    "track": {"swanlab": "off"},
}
records = bench("kills").lines_of


def sections(**changed: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of READ, changed by these values."""
    return {name: {**READ.get(name, {}), **changed.get(name, {})} for name in {*READ, *changed}}


@pytest.fixture(scope="module")
def read_run(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole small run that reads spans, with two steps of masked tokens; tests must not change its folder."""
    settings = {"masked_epochs": 0.5, "average": 0.9, "keep_checkpoints": 9}
    return train(parse_config(tree(tmp_path_factory.mktemp("read"), **sections(train=settings))))


@pytest.fixture
def plan_of(tree: Tree, tmp_path: Path) -> Callable[..., Any]:
    """A function that plans a recipe that reads spans, with changes."""
    return lambda **changed: make_plan(prepare(parse_config(tree(tmp_path / "runs", **sections(**changed)))))


@pytest.fixture
def warm(read_run: Result, tree: Tree, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that makes a recipe without a shape that starts from `read_run`."""

    def make(**changed: dict[str, Any]) -> dict[str, Any]:
        settings = {"from": str(read_run.folder), "max_steps": 1, "eval_steps": 1, **changed.get("train", {})}
        plain = tree(tmp_path / "runs", **sections(**{**changed, "train": settings}))
        return plain | {"lora": {}, "spans": changed.get("spans", {})}

    return make


def test_a_vocabulary_without_a_placeholder_is_refused_before_the_weights_are_loaded(
    plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked, "PLACEHOLDERS", ("<no such token>",))
    with pytest.raises(ModelError, match=r"the vocabulary has none of <no such token>; leave train\.masked_epochs out"):
        plan_of(train={"masked_epochs": 1})


def test_masked_tokens_come_first_and_are_recorded_by_themselves(read_run: Result) -> None:
    lines = [json.loads(line) for line in (read_run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = {split: [line["step"] for line in lines if line["split"] == split] for split in ("masked", "train", "dev")}
    assert steps == {"masked": [1, 2], "train": [3, 4, 5, 6, 7, 8], "dev": [5, 8]}
    assert [line["epoch"] for line in lines if line["split"] in ("masked", "train")][:3] == [0.25, 0.5, 0.25]
    assert next(line["loss"] for line in lines if line["split"] == "masked") > 3, "a tiny model knows no token"


@pytest.mark.no_cover
@pytest.mark.parametrize("newest", [2, 4])
def test_a_run_that_was_killed_ends_with_the_same_losses_and_weights(
    read_run: Result, tmp_path: Path, newest: int
) -> None:
    folder = Path(shutil.copytree(read_run.folder, tmp_path / "tiny"))
    (folder / REPORT).unlink()
    for path in (folder / "checkpoints").iterdir():
        if step_of(path) > newest:
            shutil.rmtree(path)
    train(resume_recipe(folder), resume=folder)
    assert f"resuming from checkpoint-{newest}" in (folder / "run.log").read_text(encoding="utf-8")
    assert records(folder) == records(read_run.folder)
    for name in ("head.safetensors", "adapter_model.safetensors", "head.json"):
        assert (folder / "adapter" / name).read_bytes() == (read_run.folder / "adapter" / name).read_bytes(), name


def test_a_head_is_gone_on_with_and_grows_by_a_label(warm: Callable[..., dict[str, Any]], read_run: Result) -> None:
    before = RunFolder(read_run.folder).task().codes
    labels = ["new", *reversed(before)]
    recipe = parse_config(warm(task={"labels": labels}, train={"learning_rate": 1e-9}, spans={"learning_rate": 1e-9}))
    result = train(recipe)
    assert RunFolder(result.folder).task().codes == tuple(labels)
    assert read_run.before is not None and read_run.before.micro.f1 == 0, "an untrained head finds nothing"
    assert result.before is not None
    old, grown = (load_file(folder / "adapter" / "head.safetensors") for folder in (read_run.folder, result.folder))
    for code in before:
        here, there = labels.index(code), before.index(code)
        assert torch.allclose(grown["types"][:, here], old["types"][:, there], atol=1e-6), code
        assert torch.equal(grown["label_states"][here], old["label_states"][there])
    assert grown["bias"][0] == -4.0 and len(grown["bias"]) == len(before) + 1
    kept = RunFolder(result.folder).config().spans
    assert (kept.size, kept.convolution, kept.longest) == (16, 3, 32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"spans": {"size": 32}},
            r"spans\.size is 32, and the head of train\.from \(.*\) has 16; leave spans\.size out",
        ),
        ({"spans": {"view": "twice"}}, r"spans\.view is twice, .* has whole"),
        ({"spans": {"convolution": 5}}, r"spans\.convolution is 5, .* has 3"),
        ({"spans": {"types": "learnt"}}, r"spans\.types is learnt, .* has names"),
        ({"task": {"answer": "jsonl"}}, r"trained with task\.answer=spans, and this recipe has jsonl"),
        ({"task": {"answer": None}, "train": {"loss_on": "choices"}}, r"to read spans, and train\.loss_on is for wri"),
    ],
)
def test_what_does_not_agree_with_the_head_is_refused(
    warm: Callable[..., dict[str, Any]], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(parse_config(warm(**changed)))


def test_reading_does_not_begin_with_an_adapter_that_writes(
    warm: Callable[..., dict[str, Any]], trained: Result
) -> None:
    with pytest.raises(ConfigError, match=r"trained with task\.answer=jsonl, and this recipe has spans"):
        prepare(parse_config(warm(train={"from": str(trained.folder)})))


def test_the_answer_and_the_rates_are_those_of_the_earlier_run(
    warm: Callable[..., dict[str, Any]], read_run: Result
) -> None:
    plain = warm(task={"answer": None}, spans={"longest": 40})
    del plain["train"]["learning_rate"]
    prepared = prepare(parse_config(plain))
    earlier = RunFolder(read_run.folder).config()
    assert prepared.recipe.task.answer == "spans" and prepared.recipe.spans.longest == 40
    assert earlier.train.learning_rate is not None and prepared.recipe.train.learning_rate is not None
    assert prepared.recipe.train.learning_rate == pytest.approx(earlier.train.learning_rate / 3)
    assert prepared.recipe.spans.learning_rate == pytest.approx(earlier.spans.learning_rate / 3)
    assert prepare(prepared.recipe).recipe == prepared.recipe


def test_a_head_of_other_labels_is_refused(tmp_path: Path) -> None:
    def head(*labels: str) -> SpanHead:
        sizes: dict[str, Any] = {"hidden": 8, "layers": 1, "longest": 4, "size": 8, "convolution": 0}
        return SpanHead(HeadConfig(labels=labels, view="whole", instruction=False, types="learnt", **sizes))

    save_head(head("a", "b"), tmp_path)
    load_head_weights(head("b", "c", "a"), tmp_path)
    with pytest.raises(ModelError, match=r"head\.safetensors is not that of head\.json; it differs in"):
        load_head_weights(head("a"), tmp_path)


def test_the_audits_of_reading_say_nothing_of_writing(plan_of: Callable[..., Any]) -> None:
    found = plan_of()
    names = [audit.name for audit in found.audits]
    assert "every entity can be read" in names and found.failed == []
    said = json.dumps(found.as_dict()["audits"], ensure_ascii=False)
    for word in ("stop token", "template", "cut_tokens", "grammar", "max_new_tokens", "answer"):
        assert word not in said, word


def test_few_documents_to_read_are_warned_of(plan_of: Callable[..., Any], warm: Callable[..., dict[str, Any]]) -> None:
    said = {warning.name: str(warning) for warning in plan_of().warnings}
    assert f"entities on average: under {READ_FROM}" in said["entities enough to read"]
    gone_on_with = make_plan(prepare(parse_config(warm())))
    assert "entities enough to read" not in {warning.name for warning in gone_on_with.warnings}


def test_an_entity_that_is_too_long_is_named_with_its_file(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    gold = (Entity(0, 5, "sym"), Entity(0, 6, "dis"))
    formats.write(tmp_path / "long.jsonl", [Document("x", "肺炎咳嗽发热", gold)])
    path = str(tmp_path / "long.jsonl")
    with pytest.raises(
        DataError, match=r"long\.jsonl.* 2 entities over spans\.longest=4.*'x', dis \[0, 6\); set .* 6 or"
    ):
        plan_of(data={"train": path}, spans={"longest": 4})
    formats.write(tmp_path / "long.jsonl", [Document("x", "肺炎咳嗽发热" * 9, (Entity(0, 40, "dis"),))])
    assert plan_of(data={"test": path}).failed == [], "the longest entity of test counts where nothing is said"
    (failed,) = plan_of(data={"test": path}, spans={"longest": 39}).failed
    assert failed.name == "every entity can be read" and "long.jsonl: document 'x', dis [0, 40)" in failed.found
    assert failed.remedy == "set spans.longest=40"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": {"pack": "none", "loss_on": "answer"}}, r"task\.answer=spans needs train\.pack=shared"),
        ({"train": {"cut_tokens": 64}}, r"no train\.cut_tokens"),
        ({"train": {"loss_on": "choices"}}, r"writes nothing: leave train\.loss_on out"),
        ({"task": {"template": "tutorial"}}, r"task\.template=tutorial is a prompt for writing"),
        ({"task": {"empty_answer": "none"}}, r"writes nothing: leave task\.empty_answer out"),
    ],
)
def test_settings_of_writing_are_refused(tree: Tree, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tree(tmp_path, **sections(**changed)))


def test_the_tutorial_s_prompt_is_not_read(tree: Tree, tmp_path: Path) -> None:
    plain = tree(tmp_path, **sections())
    plain["task"] = {"preset": "cmeee_tutorial", "answer": "spans"}
    with pytest.raises(ConfigError, match=r"task\.preset=cmeee_tutorial is a prompt for writing"):
        prepare(parse_config(plain))


def test_lora_plus_and_the_head_s_rate_go_together(tree: Tree, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "eval_steps": 1}
    result = train(parse_config(tree(tmp_path, **sections(train=settings, lora={"plus_ratio": 16, "dropout": 0}))))
    assert (result.folder / "adapter" / "head.safetensors").is_file()


def test_a_longer_text_is_read_in_chunks_as_long_as_the_longest_training_text(tree: Tree, tmp_path: Path) -> None:
    def chunks(**changed: dict[str, Any]) -> int | None:
        return prepare(parse_config(tree(tmp_path / "runs", **sections(**changed)))).recipe.extract.chunk_tokens

    long, short = tmp_path / "long.jsonl", tmp_path / "short.jsonl"
    formats.write(long, [Document("long", "a." * 50), Document("short", "b")])
    formats.write(short, [Document("short", "b"), Document("other", "c")])
    assert chunks(data={"train": str(short)}) == 64 and chunks(extract={"chunk_tokens": 20}) == 20
    longest = chunks(data={"train": str(long)})
    assert longest is not None and longest > 64
    assert chunks(data={"train": str(long)}, spans={"view": "twice"}) == longest
