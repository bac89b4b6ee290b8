"""Calibration: what it refuses, what it chooses, how it is stored, and how it changes documents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import ConfigError, DataError, Document, Entity, RunError
from spantune.metrics import Calibration, calibrate, calibration
from spantune.metrics.calibration import LABEL_PREDICTIONS
from spantune.metrics.thresholds import FOLDS

TEXT = "x" * 40


def corpus(rows: Sequence[Sequence[tuple[str, float, bool]]], missed: int = 0) -> tuple[list[Document], list[Document]]:
    """Return gold and predicted documents for rows of (label, score, correct); the first gold one has `missed` more."""
    gold, predicted = [], []
    for number, row in enumerate(rows):
        guessed = tuple(Entity(place, place + 1, label, score) for place, (label, score, _) in enumerate(row))
        true = [Entity(place, place + 1, label) for place, (label, _, right) in enumerate(row) if right]
        true += [Entity(place, place + 2, "b") for place in range(missed if number == 0 else 0)]
        gold.append(Document(str(number), TEXT, tuple(true)))
        predicted.append(Document(str(number), TEXT, guessed))
    return gold, predicted


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Return `count` documents with four predictions each, whose probabilities are distorted by `temperature`."""
    random = np.random.default_rng(seed)
    true = random.uniform(0, 1, (count, 4))
    right = random.random((count, 4)) < true
    rows = [
        [("ab"[place % 2], float(p**temperature), bool(r)) for place, (p, r) in enumerate(zip(ps, rs, strict=True))]
        for ps, rs in zip(true, right, strict=True)
    ]
    return corpus(rows)


row = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1), st.booleans()), max_size=5)


@given(st.lists(row, min_size=1, max_size=12), st.integers(0, 5), st.sampled_from([None, 0.1, 0.5]), st.booleans())
@settings(deadline=None)
def test_what_is_stored_does_to_documents_what_the_figures_say(
    rows: list[list[tuple[str, float, bool]]], missed: int, precision: float | None, per_label: bool
) -> None:
    gold, predicted = corpus(rows, missed)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration, "LABEL_PREDICTIONS", 3)
            found = calibrate(gold, predicted, precision, per_label)
    except DataError:
        assert not any(rows)
        return
    except ConfigError as error:
        assert precision is not None and "no threshold reaches" in str(error)
        return
    applied = [found.apply(document) for document in predicted]
    kept = [set(document.entities) for document, _ in applied]
    assert [one | set(left) for one, (_, left) in zip(kept, applied, strict=True)] == [
        set(document.entities) for document in predicted
    ]
    evidence = found.evidence
    assert evidence is not None and evidence.documents == len(gold)
    correct = sum(len(one & set(document.entities)) for one, document in zip(kept, gold, strict=True))
    assert (evidence.chosen.kept, evidence.chosen.correct) == (sum(map(len, kept)), correct)
    assert evidence.chosen.gold == sum(len(document.entities) for document in gold)
    assert evidence.all.kept == sum(map(len, rows))
    assert precision is None or evidence.chosen.precision >= precision
    assert evidence.best.f1 >= evidence.all.f1 and sum(one.count for one in evidence.bins) == evidence.all.kept
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_a_spoilt_temperature_is_mended_on_held_out_documents_too() -> None:
    found = calibrate(*drawn(800, 2.0), data="made up")
    evidence = found.evidence
    assert found.temperature == pytest.approx(2.0, rel=0.1) and evidence is not None
    assert evidence.ece_before > 0.12 and evidence.ece < 0.04
    assert evidence.ece_held_out is not None and evidence.ece_held_out < 0.05
    assert (evidence.data, evidence.objective, evidence.notes) == ("made up", "f1", ())
    # Lipton et al. (2014): on calibrated probabilities, the best threshold is half of the best F1.
    low, high = evidence.near_best
    assert low < evidence.best.f1 / 2 < high and found.threshold == evidence.best.threshold > 0
    assert evidence.held_out is not None and evidence.all.f1 < evidence.held_out.f1 <= evidence.chosen.f1


def test_held_out_figures_are_those_of_five_separate_choices() -> None:
    gold, predicted = drawn(60, 1.5)
    evidence = calibrate(gold, predicted, precision=0.7).evidence
    assert evidence is not None and evidence.held_out is not None
    kept = correct = 0
    for fold in range(FOLDS):
        others = [place for place in range(60) if place % FOLDS != fold]
        one = calibrate([gold[place] for place in others], [predicted[place] for place in others], precision=0.7)
        for place in range(fold, 60, FOLDS):
            entities = set(one.apply(predicted[place])[0].entities)
            kept, correct = kept + len(entities), correct + len(entities & set(gold[place].entities))
    assert (evidence.held_out.kept, evidence.held_out.correct) == pytest.approx((kept, correct), abs=2)


def test_a_threshold_that_gains_nothing_on_held_out_documents_is_not_kept() -> None:
    random = np.random.default_rng(1)
    rows = [[("a", float(random.random()), bool(random.random() < 0.4))] for _ in range(40)]
    found = calibrate(*corpus(rows))
    assert found.threshold is None and found.evidence is not None
    assert found.evidence.best.threshold > 0 and found.evidence.best.f1 > found.evidence.all.f1
    assert "no threshold" in found.evidence.notes[0] and found.evidence.chosen == found.evidence.all


def test_labels_with_few_predictions_have_no_threshold_of_their_own() -> None:
    def rows(count: int) -> list[list[tuple[str, float, bool]]]:
        often = [[("a", place / 100, place >= 20)] for place in range(100)]
        return often + [[("b", 0.2 + place / 1000, place % 2 == 1)] for place in range(count)]

    few = calibrate(*corpus(rows(LABEL_PREDICTIONS - 1)), precision=0.5, per_label=True)
    enough = calibrate(*corpus(rows(LABEL_PREDICTIONS)), precision=0.5, per_label=True)
    assert set(few.label_thresholds) == {"a"} and set(enough.label_thresholds) == {"a", "b"}
    assert enough.label_thresholds["b"] == 0 and calibrate(*corpus(rows(50)), precision=0.5).label_thresholds == {}
    strict = calibrate(*corpus(rows(LABEL_PREDICTIONS)), precision=0.95, per_label=True)
    assert set(strict.label_thresholds) == {"a", "b"}  # b reaches it with one entity
    gold, predicted = corpus([[("a", place / 100, place >= 20)] for place in range(100)] + [[("b", 0.5, False)]] * 60)
    mixed = calibrate(gold, predicted, precision=0.9, per_label=True)
    assert mixed.label_thresholds == {} and mixed.threshold is not None and mixed.evidence is not None
    assert mixed.evidence.chosen.precision >= 0.9 and "no label has its own" in mixed.evidence.notes[0]


def test_a_precision_out_of_reach_is_an_error_that_says_what_can_be_reached() -> None:
    gold, predicted = corpus([[("a", 0.9, False), ("a", 0.8, True), ("a", 0.7, True), ("a", 0.1, False)]])
    with pytest.raises(ConfigError, match=r"precision 0\.9 .* highest is 0\.667, from .* 3 of 4 predictions"):
        calibrate(gold, predicted, precision=0.9)
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="expected a share"):
            calibrate(gold, predicted, precision=wrong)


@pytest.mark.parametrize("right", [True, False])
def test_predictions_of_one_kind_leave_the_temperature_alone(right: bool) -> None:
    found = calibrate(*corpus([[("a", 0.5, right)], [("a", 0.7, right)]], missed=1))
    assert found.temperature == 1 and found.threshold is None and found.evidence is not None
    assert "temperature left at 1" in found.evidence.notes[0] and found.evidence.ece_held_out is None


@pytest.mark.parametrize(
    ("score", "found"), [(None, "no score"), (math.nan, "the score nan"), (1.5, "the score 1.5"), (-0.1, "-0.1")]
)
def test_scores_that_are_no_probabilities_are_refused(score: float | None, found: str) -> None:
    gold = [Document("n7", TEXT)]
    predicted = [Document("n7", TEXT, (Entity(0, 2, "a", 0.5), Entity(3, 4, "b", score)))]
    with pytest.raises(DataError, match=rf"'n7': 'b' at \[3, 4\) has .*{found}; expected a probability"):
        calibrate(gold, predicted)


def test_documents_that_do_not_pair_and_no_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="'0'"):
        calibrate([Document("0", TEXT)], [])
    with pytest.raises(DataError, match="nothing was extracted from 2 documents"):
        calibrate(*corpus([[], []], missed=2))


def test_a_repeated_entity_counts_once_with_its_highest_score() -> None:
    gold = [Document("0", TEXT, (Entity(0, 1, "a"),))]
    predicted = [Document("0", TEXT, (Entity(0, 1, "a", 0.6), Entity(0, 1, "a", 0.2)))]
    evidence = calibrate(gold, predicted).evidence
    assert evidence is not None and [(one.low, one.count) for one in evidence.bins] == [(0.6, 1)]


def test_applying_tempers_scores_and_keeps_by_label() -> None:
    found = Calibration(temperature=2.0, threshold=0.5, label_thresholds={"b": 0.0, "c": 0.9})
    labels = [("a", 0.25), ("a", 0.24), ("b", 0.0), ("c", 0.5), ("c", 1.0), ("a", None)]
    entities = tuple(Entity(place, place + 1, label, score) for place, (label, score) in enumerate(labels))
    document, left_out = found.apply(Document("d", TEXT, entities, {"k": 1}))
    assert [(entity.start, entity.score) for entity in document.entities] == [(0, 0.5), (2, 0.0), (4, 1.0), (5, None)]
    assert [entity.start for entity in left_out] == [1, 3] and left_out[1].score == pytest.approx(0.5**0.5)
    assert (document.id, document.text, document.meta) == ("d", TEXT, {"k": 1})
    every, none = found.with_min_score(0).apply(Document("d", TEXT, entities))
    assert len(every.entities) == 6 and none == () and every.entities[1].score == pytest.approx(0.24**0.5)
    assert [entity.start for entity in found.with_min_score(0.6).apply(document)[0].entities] == [0, 4, 5]
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="expected a probability"):
            found.with_min_score(wrong)


def test_it_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    assert Calibration.load(tmp_path) is None
    found = calibrate(*drawn(60, 1.5))
    found.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
    assert Calibration.load(tmp_path) == found
    record = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert {"temperature", "threshold", "label_thresholds", "evidence"} == record.keys()
    (tmp_path / "calibration.json").write_text('{"temperature": 1.5}', encoding="utf-8")
    assert Calibration.load(tmp_path) == Calibration(temperature=1.5)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "the file"),
        ('{"temperature": 0}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"threshold": 2}', "threshold"),
        ('{"label_thresholds": {"a": -1}}', r"label_thresholds\.a"),
        ('{"temperatur": 1}', "temperatur"),
    ],
)
def test_a_damaged_file_is_a_damaged_run(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "calibration.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=rf"calibration\.json: not a calibration: {found}: .*spantune calibrate"):
        Calibration.load(tmp_path)
