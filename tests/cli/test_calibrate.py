"""`spantune calibrate` on a trained run, and how a stored calibration changes extraction, evaluation and the API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import Outcome, one_line_error
from spantune.cli.options import describe_threshold
from spantune.core import Document, number
from spantune.data import formats
from spantune.extraction import load_bare, load_run
from spantune.metrics import Calibration, calibrate

Command = Callable[..., Outcome]


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the trained run, which the test may change."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab")))


@pytest.fixture(scope="module")
def bare(trained: Any) -> list[Document]:
    """The test documents as the model annotates them, with uncalibrated scores."""
    return load_bare(trained.folder).extract(trained.after.gold)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.mark.no_cover
def test_the_runs_dev_documents_give_what_is_stored(command: Command, run: Path, corpus: Path) -> None:
    outcome = command("calibrate", run, "--json")
    assert outcome.code == 0, outcome.err
    found = rows(outcome)[-1]
    assert found.pop("stored") == str(run / "calibration.json")
    stored = Calibration.load(run)
    assert stored is not None and stored.model_dump(mode="json") == found
    gold = formats.read(corpus / "dev.jsonl").documents
    assert stored == calibrate(gold, load_bare(run).extract(gold))
    assert (found["evidence"]["data"], found["evidence"]["documents"]) == ("dev", 6)
    again = rows(command("calibrate", run, "--json"))[-1]  # it uses the uncalibrated scores, not calibrated ones
    assert again["temperature"] == found["temperature"]


def test_the_report_shows_what_is_stored_and_stays_where_it_cannot_be_made_again(
    command: Command, run: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (run / "report.html").read_text(encoding="utf-8")
    assert "does not store it" in before
    assert command("calibrate", run, "--no-store").code == 0
    assert (run / "report.html").read_text(encoding="utf-8") == before
    assert command("calibrate", run).code == 0
    after = (run / "report.html").read_text(encoding="utf-8")
    assert "The run stores it." in after and "Fitted to dev:" in after
    for path in (run / "predictions").glob("test-[1-9]*.jsonl"):
        path.unlink()
    outcome = command("calibrate", run, "--data", corpus / "test.jsonl", "--json")
    assert outcome.code == 0 and rows(outcome)[-1]["stored"]
    assert "the calibration is stored, and the report is the old one: " in caplog.text and "test-" in caplog.text
    assert (run / "report.html").read_text(encoding="utf-8") == after


def test_other_documents_and_a_look_without_storing(command: Command, run: Path, corpus: Path) -> None:
    outcome = command("calibrate", run, "--data", corpus / "test.jsonl", "--no-store", "--objective", "precision=0.01")
    assert outcome.code == 0, outcome.err
    assert f"8 ({corpus / 'test.jsonl'})" in outcome.out.replace("\n", "") or "test.jsonl" in outcome.out
    for word in ("temperature", "calibration error", "best F1", "all entities", "precision=0.01", "scores from"):
        assert word in outcome.out
    assert not (run / "calibration.json").exists()


def test_thresholds_of_labels_alone_are_said_without_one_for_all() -> None:
    by_label = {"dis": 0.5, "sym": 0.25}
    assert describe_threshold(Calibration(label_thresholds=by_label)) == (
        "score under that of the label: dis 0.500, sym 0.250"
    )
    both = describe_threshold(Calibration(threshold=0.1, label_thresholds=by_label))
    assert both == "score under 0.100; by label: dis 0.500, sym 0.250"


def test_scores_are_calibrated_and_entities_under_the_threshold_left_out_and_counted(
    command: Command, run: Path, corpus: Path, bare: list[Document]
) -> None:
    scores = sorted({entity.score for document in bare for entity in document.entities if entity.score is not None})
    assert len(scores) > 1
    lowest = ((scores[0] + scores[1]) / 2) ** 0.5
    Calibration(temperature=2.0, threshold=lowest).save(run)
    outcome = command("extract", run, corpus / "test.jsonl")
    found = rows(outcome)
    wanted = [[e for e in document.entities if (e.score or 0) > scores[0]] for document in bare]
    assert [[(e["start"], e["end"], e["label"]) for e in row["entities"]] for row in found] == [
        [(e.start, e.end, e.label) for e in entities] for entities in wanted
    ]
    for row, entities in zip(found, wanted, strict=True):
        for one, entity in zip(row["entities"], entities, strict=True):
            assert one["score"] == pytest.approx((entity.score or 0) ** 0.5, abs=1e-4)
    gone = sum(len(document.entities) for document in bare) - sum(map(len, wanted))
    counted = number(gone, "entity", "entities")
    assert gone and f"{counted} left out, score under {lowest:.3f}; --min-score 0 keeps all" in outcome.err
    every = command("extract", run, corpus / "test.jsonl", "--min-score", 0)
    assert sum(len(row["entities"]) for row in rows(every)) == sum(len(document.entities) for document in bare)
    assert "left out" not in every.err and every.code == outcome.code
    none = command("evaluate", run, "--data", corpus / "test.jsonl", "--min-score", 1, "--json")
    assert rows(none)[-1]["strict"]["micro"]["predicted"] == 0 and "score under 1.000" in none.err
    measured = command("evaluate", run, "--data", corpus / "test.jsonl", "--json")
    assert rows(measured)[-1]["strict"]["micro"]["predicted"] == sum(map(len, wanted))


def test_the_api_applies_it_and_keeps_what_was_left_out(run: Path, bare: list[Document]) -> None:
    assert load_run(run).calibration is None and load_run(run, min_score=0.5).calibration == Calibration(threshold=0.5)
    Calibration(temperature=0.5, label_thresholds={"dis": 1.0}).save(run)
    extractor = load_run(run)
    found = list(extractor.stream(bare))
    for one, document in zip(found, bare, strict=True):
        assert set(one.document.entities) | set(one.below_threshold) == set(document.entities)
        assert all(entity.label != "dis" or entity.score == 1 for entity in one.document.entities)
        assert all(entity.label == "dis" for entity in one.below_threshold)
    assert any(one.below_threshold and one.answer and not one.problems for one in found)
    extractor.calibration = None
    assert [one.answer for one in extractor.stream(bare)] == [one.answer for one in found]
    assert load_run(run, min_score=0).calibration == Calibration(temperature=0.5)


def test_wrong_use_is_one_line_and_stores_nothing(command: Command, run: Path, corpus: Path, tmp_path: Path) -> None:
    for objective in ("f2", "precision", "precision=", "precision=0", "precision=1.5", "precision=nan", "recall=0.9"):
        one_line_error(command("calibrate", run, "--objective", objective), f"--objective {objective}", "precision=0.9")
    one_line_error(command("calibrate", tmp_path), "no config.yaml here")
    one_line_error(command("calibrate", run, "--data", tmp_path / "none.jsonl"), "none.jsonl")
    one_line_error(command("extract", run, corpus / "test.jsonl", "--min-score", "2"), "less than or equal to 1")
    bad = '{"id": "a", "text": "x", "entities": [{"start": 0, "end": 1, "label": "dis", "score": NaN}]}\n'
    (tmp_path / "bad.jsonl").write_text(bad, encoding="utf-8")
    one_line_error(command("calibrate", run, "--data", tmp_path / "bad.jsonl"), "bad.jsonl:1", "NaN")
    assert not (run / "calibration.json").exists()
    (run / "report.html").unlink()
    one_line_error(command("calibrate", run), "is not finished", "--resume")


def test_a_damaged_calibration_is_said_by_extract_and_mended_by_calibrate(
    command: Command, run: Path, corpus: Path
) -> None:
    (run / "calibration.json").write_text('{"temperature": -1}', encoding="utf-8")
    one_line_error(command("extract", run, corpus / "test.jsonl"), "calibration.json", "temperature")
    assert command("calibrate", run).code == 0
    assert command("extract", run, corpus / "test.jsonl").code in (0, 1)
