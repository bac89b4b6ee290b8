"""A whole training job on a toy corpus: a complete run folder, correct figures, and resuming after a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.fakes import write_jsonl
from spantune.core import Config, ConfigError, DataError, ModelError, RunError, TaskSpec, config, parse_config
from spantune.data import formats
from spantune.extraction import evaluate, load_run
from spantune.models import load
from spantune.runs import RunFolder, read_metrics, resume_recipe
from spantune.training import Collator, Result, train

Tree = Callable[..., dict[str, Any]]
QUIET = {"swanlab": "off"}


@pytest.fixture
def recipe(tree: Tree, tmp_path: Path) -> Callable[..., Config]:
    """A function that makes the tiny recipe without SwanLab; its runs are in the test's folder."""

    def make(**sections: dict[str, Any]) -> Config:
        return parse_config(tree(tmp_path / "runs", **{"track": QUIET, **sections}))

    return make


def of(records: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [record for record in records if record["split"] == split]


def losses(folder: Path) -> dict[int, float]:
    found = of(read_metrics(folder), "train")
    assert len({record["step"] for record in found}) == len(found)  # no step is recorded twice
    return {record["step"]: record["loss"] for record in found}


def test_the_run_folder_is_complete(trained: Result) -> None:
    folder = trained.folder
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "predictions",
        "report.html",
        "report.md",
        "run.lock",
        "run.log",
        "scores.json",
        "task.json",
        "trackers",
    }
    assert {path.name for path in (folder / "predictions").iterdir()} == {
        "test-0.jsonl",
        "dev-4.jsonl",
        "dev-8.jsonl",
        "dev-12.jsonl",
        "test-12.jsonl",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"checkpoint-8", "checkpoint-12"}
    assert TaskSpec.load(folder) == TaskSpec.load(folder / "adapter")
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["max_steps"] == 12
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.part*"))
    assert "100 % of the linear weights" in (folder / "run.log").read_text(encoding="utf-8")


def test_metrics_lines_keep_the_contract(trained: Result) -> None:
    records = read_metrics(trained.folder)
    assert all({"step", "time", "split"} <= record.keys() for record in records)
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)
    training = of(records, "train")
    assert [record["step"] for record in training] == list(range(1, 13))
    for record in training:
        assert {"loss", "learning_rate", "grad_norm", "epoch", "examples_per_s", "step_ms"} <= record.keys()
        assert record["tokens_per_s"] > record["examples_per_s"] and record["padding_share"] == 0.0
        assert 0.05 < record.get("peak_gib", record.get("peak_rss_gib", 0)) < 100
        assert record["examples_per_s"] > 0 and record["learning_rate"] > 0
    assert training[-1]["loss"] < training[0]["loss"] and training[-1]["learning_rate"] < training[0]["learning_rate"]
    assert [record["step"] for record in of(records, "dev")] == [4, 8, 12]
    assert [record["step"] for record in of(records, "test")] == [0, 12]
    codes = [label.code for label in TaskSpec.load(trained.folder).labels]
    wanted = {
        "f1",
        "f1_low",
        "f1_high",
        "invalid_rate",
        "ungrounded_rate",
        "non_stop_rate",
        *(f"f1/{c}" for c in codes),
    }
    for record in of(records, "dev") + of(records, "test"):
        assert wanted <= record.keys()
        assert record["f1_low"] is record["f1_high"] is None  # 8 documents are too few for an interval
        assert not any(key.startswith(("f1_low/", "f1_high/")) for key in record)


def test_the_closing_line_is_the_last_measurement(trained: Result) -> None:
    line = trained.as_dict()
    assert set(line) == {"run", "f1_before", "f1", "f1_low", "f1_high", "f1_on", "seconds"}
    before, after = of(read_metrics(trained.folder), "test")
    assert line["f1"] == round(after["f1"], 4) and line["f1_before"] == round(before["f1"], 4)
    assert line["f1_low"] is line["f1_high"] is after["f1_low"] is None
    assert line["f1"] > line["f1_before"]
    assert line["f1_on"] == "test" and line["run"] == str(trained.folder) and line["seconds"] > 0


def test_measuring_again_gives_the_same_f1(trained: Result, corpus: Path) -> None:
    gold = formats.read(corpus / "test.jsonl").documents
    again = evaluate(load_run(trained.folder), gold, train=formats.read(corpus / "train.jsonl").documents)
    assert again.scores == trained.after.scores and again.scores.micro.f1 > 0
    kept = formats.read(trained.folder / "predictions" / "test-12.jsonl").documents
    assert [document.entities for document in kept] == [document.entities for document in again.predicted]
    assert len(trained.after.gold) == len(gold)


def test_the_adapter_is_the_best_on_dev(trained: Result, corpus: Path) -> None:
    found = of(read_metrics(trained.folder), "dev")
    best = max(found, key=lambda record: (record["f1"], record["step"]))
    assert best["f1"] > 0
    kept = formats.read(trained.folder / "predictions" / f"dev-{best['step']}.jsonl").documents
    again = load_run(trained.folder).extract(document.with_entities(()) for document in kept)
    assert [document.entities for document in again] == [document.entities for document in kept]
    gold = {document.id: document for document in formats.read(corpus / "dev.jsonl").documents}
    assert evaluate(load_run(trained.folder), [gold[document.id] for document in kept]).scores.micro.f1 == best["f1"]


def test_the_adapter_loads_with_plain_peft(trained: Result) -> None:
    from peft import PeftModel

    ids = torch.arange(40)[None]
    base = load(RunFolder(trained.folder).config().model).model
    plain = PeftModel.from_pretrained(base, str(trained.folder / "adapter")).eval()
    ours = load_run(trained.folder).model
    with torch.no_grad():
        logits = plain(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(ours(input_ids=ids, use_cache=False).logits, logits, rtol=1e-3, atol=1e-3)
        with plain.disable_adapter():
            assert (plain(input_ids=ids, use_cache=False).logits - logits).abs().max() > 0.1


def test_report_and_dashboard_show_the_run(trained: Result) -> None:
    page = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert f"{100 * trained.after.scores.micro.f1:.1f}" in page and "max_steps: 12" in page
    with closing(sqlite3.connect(trained.folder.parent / "swanlab" / "runs.swanlab")) as store:
        names = {name for (name,) in store.execute("select name from tag")}
        ((status,),) = store.execute("select status from experiment").fetchall()
    assert {"train/loss", "dev/f1", "test/f1", "Prediction"} <= names and status == 1
    texts = [
        path.read_text(encoding="utf-8") for path in (trained.folder.parent / "swanlab").glob("run-*/media/text/*.txt")
    ]
    assert any("gold: " in text and "predicted: " in text for text in texts)


def test_an_existing_folder_is_refused_and_untouched(recipe: Callable[..., Config]) -> None:
    folder = recipe().run_folder
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        train(recipe())
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_nothing_is_left_behind_when_something_is_wrong(
    recipe: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    entity = {"start": 0, "end": 1, "label": "nothing", "text": "肺"}
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"id": "a", "text": "肺炎", "entities": [entity]}])
    (tmp_path / "not.jsonl").write_text("no json\n")
    flaws: list[tuple[type[Exception], dict[str, dict[str, Any]]]] = [
        (DataError, {"data": {"train": str(bad)}}),
        (DataError, {"data": {"train": str(tmp_path / "not.jsonl")}}),
        (DataError, {"train": {"max_tokens": 64}}),
        (ModelError, {"lora": {"targets": ["q_proj", "o_proj"]}}),
        (ModelError, {"model": {"source": str(tmp_path)}}),
        (ConfigError, {"track": {"swanlab": "online"}}),
    ]
    if not torch.cuda.is_available():
        flaws.append((ConfigError, {"model": {"device": "cuda"}}))
    for kind, sections in flaws:
        with pytest.raises(kind):
            train(recipe(**sections))
        assert not (tmp_path / "runs").exists()


@pytest.mark.no_cover
@pytest.mark.parametrize(("steps", "evals", "wanted"), [(3, 2, [2, 3]), (2, 5, [2])])
def test_the_last_step_is_measured_whatever_the_interval(
    recipe: Callable[..., Config], steps: int, evals: int, wanted: list[int]
) -> None:
    result = train(recipe(train={"max_steps": steps, "eval_steps": evals, "eval_before": False}))
    assert [record["step"] for record in of(read_metrics(result.folder), "dev")] == wanted
    assert result.as_dict()["f1_before"] is None


@pytest.mark.no_cover
def test_the_slice_that_steers_is_sized_to_its_share_of_the_time_and_stays(recipe: Callable[..., Config]) -> None:
    settings = {"max_steps": 4, "eval_steps": 1, "eval_documents": 12, "eval_share": 1e-6}
    records = read_metrics(train(recipe(train=settings, data={"dev": "bundled:clinical-zh-test"})).folder)
    assert [record["documents"] for record in of(records, "dev")] == [8] * 4
    assert all(record["evaluation_seconds"] > 0 for record in of(records, "dev"))


@pytest.mark.no_cover
def test_a_run_ends_when_its_minutes_are_over(recipe: Callable[..., Config]) -> None:
    result = train(recipe(train={"max_steps": 100000, "max_minutes": 0.02, "eval_steps": 100000, "save_steps": 100000}))
    records = read_metrics(result.folder)
    last = max(record["step"] for record in of(records, "train"))
    assert last < 1000 and [record["step"] for record in of(records, "dev")] == [last]
    rates = [record["learning_rate"] for record in of(records, "train")]
    assert rates[-1] < 0.7 * max(rates)  # the schedule followed the clock
    assert (result.folder / "checkpoints" / f"checkpoint-{last}" / "clock.json").is_file()
    (result.folder / "report.html").unlink()  # as if it had been killed during its last evaluation
    again = train(resume_recipe(result.folder), resume=result.folder)
    assert max(losses(result.folder)) == last and again.after.scores == result.after.scores


VARIANTS: dict[str, Mapping[str, dict[str, Any]]] = {
    "padded": {"train": {"loss_on": "answer", "pack": "none", "micro_batch": 4}},
    "answers": {"train": {"loss_on": "answer"}},
    "recomputed": {"train": {"gradient_checkpointing": "on"}},
    "fp8": {"model": {"base": "fp8"}},
    "nf4": {"model": {"base": "nf4"}, "train": {"optimizer": "adamw_8bit"}},
    "by examples": {"train": {"normalize": "examples"}, "lora": {"plus_ratio": 4.0, "rslora": True, "dora": True}},
    "holdout": {"data": {"dev": None, "test": None, "holdout": 0.2}},
    "tutorial": {
        "task": {"preset": "cmeee_tutorial", "labels": None, "instruction": None},
        "model": {"verify": False},
        "lora": {"targets": ["q_proj", "o_proj"], "allow_unmatched": True, "dropout": 0.1},
        "train": {"loss_on": "answer", "pack": "none", "cut_tokens": 900, "schedule": "linear", "warmup": 0},
        "extract": {"grounded": False, "max_new_tokens": 24},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_other_ways_of_training_end_well(recipe: Callable[..., Config], name: str) -> None:
    if name == "nf4":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes, of the extra of that name, is not installed")
    sections = {key: dict(values) for key, values in VARIANTS[name].items()}
    sections["train"] = {**sections.get("train", {}), "max_steps": 2, "eval_steps": 2, "eval_before": False}
    result = train(recipe(**sections))
    found = losses(result.folder)
    assert list(found) == [1, 2] and all(0 < loss < 20 for loss in found.values())
    assert (result.folder / "report.html").is_file()


def test_padded_and_packed_runs_have_the_same_losses(recipe: Callable[..., Config]) -> None:
    found = []
    for pack in ("shared", "none"):
        settings = {"loss_on": "answer", "pack": pack, "max_steps": 3, "eval_before": False, "learning_rate": 1e-3}
        folder = train(recipe(run={"name": pack}, train=settings)).folder
        found.append(losses(folder))
        padding = [record["padding_share"] for record in of(read_metrics(folder), "train")]
        assert all((0 < share < 0.9) == (pack == "none") for share in padding)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_run_that_runs_out_of_memory_goes_on_with_smaller_packs_and_records_it(
    recipe: Callable[..., Config],
) -> None:
    settings = {"max_steps": 3, "eval_steps": 2, "save_steps": 2, "eval_before": False}
    sizes: list[int] = []

    def weigh(module: Any, arguments: Any) -> None:
        """Fail as if 600 tokens filled the GPU."""
        if module.training and type(module) is torch.nn.Embedding:
            sizes.append(arguments[0].numel())
            if sizes[-1] > 600:
                raise torch.OutOfMemoryError

    hook = torch.nn.modules.module.register_module_forward_pre_hook(weigh)
    try:
        result = train(recipe(train=settings))
    finally:
        hook.remove()
    assert sizes[0] > 600 >= sizes[-1]
    found = of(read_metrics(result.folder), "train")
    assert found[0]["memory_splits"] >= 1 and found[0]["pack_tokens"] <= 600
    assert all("memory_splits" not in record for record in found[1:])
    assert "out of memory at step 1" in (result.folder / "run.log").read_text(encoding="utf-8")
    whole = train(recipe(run={"name": "roomy"}, train=settings))
    assert losses(result.folder) == pytest.approx(losses(whole.folder), rel=1e-4)
    collator = Collator(config.Train(), (), 4096, 0)
    collator.restore(read_metrics(result.folder))
    assert collator.limits == {"pack_tokens": found[0]["pack_tokens"]}


def test_the_first_steps_are_held_against_the_prediction(trained: Result) -> None:
    (record,) = of(read_metrics(trained.folder), "plan")
    assert record["step"] == 5 and record["step_ms"] > 0 and record["predicted_step_ms"] > 0
    steps = [line["step_ms"] for line in of(read_metrics(trained.folder), "train")[2:5]]
    assert record["step_ms"] == pytest.approx(sum(steps) / 3, rel=0.2)
    log = (trained.folder / "run.log").read_text(encoding="utf-8")
    assert f"3 steps: {record['step_ms']:.0f} ms each, predicted {record['predicted_step_ms']:.0f}" in log
