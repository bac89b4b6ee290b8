"""The report of a run, made from its folder alone: what is read, what is computed, and when it is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from helpers.base_install import run_without_train
from spantune.core import (
    DataError,
    Document,
    Entity,
    Extraction,
    RunError,
    Status,
    TaskSpec,
    parse_config,
    to_prediction_record,
)
from spantune.data import formats, read_splits
from spantune.metrics import Calibration, calibrate, score
from spantune.report import report_run
from spantune.runs import RunFolder, resume_recipe

Command = Callable[..., Any]
TASK = TaskSpec.model_validate(
    {"labels": [{"code": "dis", "name": "disease"}, {"code": "bod"}], "instruction": "Find entities."}
)
TRAIN = [Document(f"r{i}", "肺炎", (Entity(0, 2, "dis"), Entity(0, 1, "bod"))) for i in range(4)]
DEV = [Document(f"d{i}", "右肺肺炎", (Entity(0, 2, "bod"), Entity(2, 4, "dis"))) for i in range(6)]
TEST = [Document(f"t{i}", "左肺结核", (Entity(0, 2, "bod"), Entity(2, 4, "dis"))) for i in range(5)]
RATES = {"invalid_rate": 0.25, "ungrounded_rate": 0.0, "non_stop_rate": 0.125}


def predicted(gold: Sequence[Document], right: int) -> list[Document]:
    """Return the first `right` documents as gold, the others with an entity that is too long; scores fall."""
    made = []
    for number, document in enumerate(gold):
        entities = [replace(entity, score=0.9 - number / 10) for entity in document.entities]
        if number >= right:
            entities[0] = replace(entities[0], end=3)
        made.append(Document(document.id, document.text, tuple(entities)))
    return made


def save(path: Path, documents: Sequence[Document], status: Status = Status.STOPPED) -> None:
    records = [to_prediction_record(Extraction(document, "<raw> answer", status)) for document in documents]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps({"time": 1_700_000_000, **record}) + "\n" for record in records)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 20 steps, best at 10 and again at 20, that was killed before its report was written."""
    for name, documents in {"train": TRAIN, "dev": DEV, "test": TEST}.items():
        formats.write(tmp_path / f"{name}.jsonl", documents)
    folder = tmp_path / "runs" / "one"
    (folder / "predictions").mkdir(parents=True)
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "dev", "test")}
    task = {"labels": ["dis", "bod"], "instruction": "Find entities."}
    parse_config({"run": {"name": "other"}, "model": {"source": "x"}, "task": task, "data": data}).save(folder)
    TASK.save(folder)
    (folder / "environment.json").write_text('{"device": "a <b> GPU"}', encoding="utf-8")
    save(folder / "predictions" / "test-0.jsonl", predicted(TEST, 0))
    save(folder / "predictions" / "test-20.jsonl", predicted(TEST, 4), Status.LENGTH)
    save(folder / "predictions" / "dev-10.jsonl", predicted(DEV, 1))
    save(folder / "predictions" / "dev-20.jsonl", predicted(DEV, 5)[:4] + predicted(DEV, 5)[5:])
    dev = {"split": "dev", "f1": 0.5, "f1_low": 0.25, "f1_high": 0.75, "documents": 5, "evaluation_seconds": 3.0}
    (folder / "metrics.jsonl").write_text(
        lines(
            {"step": 0, "split": "test", "f1": 0.1, **RATES},
            {"step": 5, "split": "train", "loss": 2.0, "examples_per_s": 8.0},
            {"step": 10, **dev},
            {"step": 15, "split": "train", "loss": None, "examples_per_s": 16.0},
            {"step": 15, **dev, "f1": None},
            {"step": 20, "split": "train", "loss": 0.5, "examples_per_s": 10.0},
            {"step": 20, **dev},
            {"step": 20, "split": "test", "f1": 0.9, "training_seconds": 90.0, **RATES},
        ),
        encoding="utf-8",
    )
    return folder


def figures(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "scores.json").read_text(encoding="utf-8")))


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_figures_are_those_of_the_last_predictions_and_of_those_before_training(run: Path) -> None:
    report_run(run)
    found = figures(run)
    after = score(TEST, predicted(TEST, 4), TASK.codes, train=TRAIN).as_dict()
    assert found["strict"] == after["strict"] and found["slices"] == after["slices"]
    assert found["before"] == score(TEST, predicted(TEST, 0), TASK.codes, train=TRAIN).as_dict()
    assert found["answers"]["truncated by length"] == 5 and found["rates"] == RATES
    assert page(run).count('["\\u003craw> answer"]') == 5
    assert (found["run"], found["date"]) == ("one", "2023-11-14")


def test_scores_that_are_at_hand_are_not_computed_again(run: Path) -> None:
    report_run(run, after=score(TEST, TEST, TASK.codes, resamples=0))
    micro = figures(run)["strict"]["micro"]
    assert micro["f1"] == 1.0 and micro["f1_low"] is None


def test_the_page_has_curves_cost_speed_names_recipe_and_environment(run: Path) -> None:
    report_run(run)
    shown = page(run)
    for part in (
        "<td>6.7%</td>",  # two evaluations of 3 s and 90 s of training; the one without F1 does not count
        "<td>10.00</td>",
        "<td>20, F1 50.0 on 5 dev documents</td>",
        "3 points; loss 2 at step 5, 0.5 at step 20; 1 not a finite number",
        "2 evaluations; best 50.0 at step 10",
        "disease",
        "source: x",
        "a &lt;b&gt; GPU",
        "spantune · one",
    ):
        assert part in shown, part


def test_the_head_says_what_was_trained_on_what_and_how_it_was_split(run: Path) -> None:
    report_run(run)
    head = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd></div>", page(run).partition("<main")[0]))
    folder = run.parents[1]
    assert head["model"].startswith("x (auto), LoRA") and head["device"] == "a &lt;b&gt; GPU"
    assert head["training"] == f"{folder / 'train.jsonl'}: 4 documents, 8 entities"
    assert head["test"] == f"{folder / 'test.jsonl'}: 5 documents, 10 entities"
    assert head["training time"] == "1 min 30 s"
    assert figures(run)["f1_on"] == "test" and "chose the adapter" not in page(run)


def test_figures_of_documents_that_chose_the_adapter_say_so(run: Path) -> None:
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    recipe["data"] |= {"test": None, "dev": recipe["data"]["test"]}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    report_run(run)
    assert figures(run)["f1_on"] == "dev" and "which also chose the adapter" in page(run)
    assert "which also chose the adapter" in (run / "report.md").read_text(encoding="utf-8")
    assert "<dt>test</dt><dd>the dev documents</dd>" in page(run)


def test_calibration_is_fitted_to_the_dev_predictions_of_the_kept_step_and_not_stored(run: Path) -> None:
    report_run(run)
    kept = [document for document in DEV if document.id != "d4"]
    guessed = [document for document in predicted(DEV, 5) if document.id != "d4"]
    wanted = calibrate(kept, guessed)
    assert wanted.evidence
    found = figures(run)["calibration"]
    assert (
        found["ece"] == pytest.approx(wanted.evidence.ece_before) and found["data"] == "the 5 dev documents of step 20"
    )
    assert found["temperature"] == pytest.approx(wanted.temperature) and not found["stored"]
    assert "does not store it" in page(run) and not (run / "calibration.json").exists()


def test_of_a_run_that_reads_the_calibration_and_the_note_speak_of_its_thresholds(run: Path) -> None:
    TASK.model_copy(update={"answer": "spans"}).save(run)
    (run / "adapter").mkdir()
    logits = torch.tensor([-2.0, -1.0])
    save_file({"bias": torch.zeros(2), "thresholds": logits}, run / "adapter" / "head.safetensors")
    report_run(run)
    found = figures(run)["calibration"]
    assert found["data"].endswith("of step 20, of which spans under the thresholds of the run are left out")
    low = torch.sigmoid(logits.double()) ** (1 / found["temperature"])
    assert found["label_thresholds"] == pytest.approx(dict(zip(TASK.codes, low.tolist(), strict=True)))
    assert "thresholds chosen on dev" in page(run) and "no threshold." not in page(run)


def test_a_stored_calibration_is_shown_with_what_its_threshold_makes_of_the_test_documents(run: Path) -> None:
    stored = calibrate(DEV, predicted(DEV, 3), data="held <out>")
    stored.model_copy(update={"threshold": 0.85, "temperature": 1.0, "label_thresholds": {}}).save(run)
    report_run(run)
    found = figures(run)["calibration"]
    assert (found["data"], found["stored"], found["threshold"]) == ("held <out>", True, 0.85)
    kept = [one.with_entities([e for e in one.entities if (e.score or 0) >= 0.85]) for one in predicted(TEST, 4)]
    points = 100 * score(TEST, kept, TASK.codes, resamples=0).micro.f1
    assert f"strict F1 with the stored threshold</th><td>{points:.1f} (" in page(run)
    assert figures(run)["strict"]["micro"]["predicted"] == 10  # the figures are of all entities


@pytest.mark.parametrize("case", ["nothing", "absent", "no scores", "no evidence", "no evaluation"])
def test_a_calibration_that_cannot_be_shown_is_noted(run: Path, case: str) -> None:
    path = run / "predictions" / "dev-20.jsonl"
    if case == "nothing":
        formats.write(path, [one.with_entities([]) for one in DEV])
    elif case == "absent":
        path.unlink()
    elif case == "no scores":
        formats.write(path, DEV)
    elif case == "no evidence":
        Calibration(temperature=2.0).save(run)
    else:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        kept = [record for record in records if record["split"] != "dev"]
        (run / "metrics.jsonl").write_text(lines(*kept), encoding="utf-8")
    report_run(run)
    (note,) = figures(run)["report_notes"]
    said = {
        "nothing": "nothing was extracted",
        "absent": "no such file",
        "no scores": "has no score",
        "no evidence": "holds no evidence",
        "no evaluation": "no evaluation during training",
    }
    assert note.startswith("calibration: ") and said[case] in note
    assert "calibration" not in figures(run) and "Note: calibration: " in page(run)


def test_the_same_folder_gives_the_same_files(run: Path) -> None:
    names = ("report.html", "report.md", "scores.json")
    report_run(run)
    first = {name: (run / name).read_bytes() for name in names}
    report_run(run, read_splits(RunFolder(run).config().data))
    assert {name: (run / name).read_bytes() for name in names} == first


def test_a_run_without_its_closing_measurement_is_refused_and_stays_unfinished(run: Path) -> None:
    whole = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for kept in (whole[:-1], whole[:1], [*whole, lines({"step": 25, "split": "train", "loss": 0.4})], []):
        (run / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
        with pytest.raises(RunError, match=r"no closing measurement in metrics\.jsonl.*spantune train --resume"):
            report_run(run)
    assert not (run / "report.html").exists() and resume_recipe(run).run.name == "one"


def test_what_is_damaged_is_named_and_leaves_no_report(run: Path) -> None:
    path = run / "environment.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"environment\.json cannot be read"):
        report_run(run)
    path.write_text("{}", encoding="utf-8")
    formats.write(run / "predictions" / "test-20.jsonl", predicted(TEST, 4)[:2])
    with pytest.raises(DataError, match="'t2' is gold only"):
        report_run(run)
    (run / "predictions" / "test-20.jsonl").unlink()
    with pytest.raises(DataError, match=r"test-20\.jsonl"):
        report_run(run)
    (run / "task.json").unlink()
    with pytest.raises(RunError, match=r"no task\.json here"):
        report_run(run)
    assert not [path for path in run.iterdir() if path.name.startswith(("report", "scores"))]


def test_a_report_needs_no_torch(run: Path) -> None:
    ((code, out, err),) = run_without_train([["report", run]], run.parent)
    assert (code, out, err) == (0, f"{run / 'report.html'}\n", "") and (run / "report.html").is_file()


def test_the_command_finishes_a_run_that_only_lacks_its_report(command: Command, run: Path, tmp_path: Path) -> None:
    done = command("report", run)
    assert (done.code, done.out) == (0, f"{run / 'report.html'}\n") and page(run)
    refused = command("report", tmp_path)
    assert refused.code == 2 and "no config.yaml here" in refused.err and refused.err.count("\n") == 1


def test_a_trained_runs_report_can_be_made_again_elsewhere(trained: Any, command: Command, tmp_path: Path) -> None:
    kept = shutil.ignore_patterns("swanlab", "checkpoints", "adapter", "report.*")
    folder = Path(shutil.copytree(trained.folder, tmp_path / trained.folder.name, ignore=kept))
    before = figures(folder)
    assert command("report", folder).code == 0
    assert figures(folder) == before and page(folder) == page(trained.folder)
    assert before["strict"] == trained.after.scores.as_dict()["strict"]
    assert before["before"]["strict"] == trained.before.as_dict()["strict"]
    assert "evaluations, share of training time" in page(folder)
