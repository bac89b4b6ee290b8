"""The calibration of a run: its temperature and thresholds, from gold documents and the model's predictions.

    calibration = calibrate(gold, load_bare(run).extract(gold))
    calibration.save(run)

`load_run` loads the calibration and applies it. A calibration cannot add entities that were not predicted. Temperature
and thresholds are fitted on one corpus. The evidence also has the figures of held-out documents, by cross-validation
over five folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spantune.core import ConfigError, Document, Entity, RunError, expect, number, replacing
from spantune.metrics import reliability, thresholds
from spantune.metrics.thresholds import Curve, Point, Predictions, Thresholds, collect

CALIBRATION_FILE = "calibration.json"
LABEL_PREDICTIONS = 50
"""The minimum number of predictions of a label for a threshold of its own."""
CURVE_POINTS = 101
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Value(BaseModel):
    """A frozen part of `calibration.json`. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(Value):
    """The figures of the entities that pass the thresholds; `kept` is the number of these entities."""

    precision: Probability
    recall: Probability
    f1: Probability
    kept: int
    correct: int
    gold: int


class ThresholdFigures(Figures):
    """The figures of the entities that pass one threshold."""

    threshold: Probability


class ReliabilityBin(Value):
    """The predictions with calibrated scores from `low` to `high`: number, mean score (`confidence`) and precision."""

    low: Probability
    high: Probability
    count: int
    confidence: Probability
    precision: Probability


class Evidence(Value):
    """What a calibration was made from, and its figures.

    Args:
        data: the name of the corpus.
        documents: the number of its documents.
        objective: `f1`, or the precision to reach, such as `precision=0.9`.
        ece_before: the expected calibration error of the uncalibrated scores.
        ece: the expected calibration error of the calibrated scores.
        ece_held_out: the same, for documents that were not used to fit the temperature; None if it cannot be fitted
            without them.
        all: the figures without a threshold.
        chosen: the figures with the thresholds of the calibration.
        held_out: the figures of documents that were not used to choose thresholds; None if none can be chosen without
            them.
        best: the single threshold with the best F1.
        near_best: the range of thresholds whose F1 is nearly as good.
        bins: the reliability of the calibrated scores.
        curve: the figures at thresholds from 0 to the highest.
        notes: what was noticed.
    """

    data: str
    documents: int
    objective: str
    ece_before: Probability
    ece: Probability
    ece_held_out: Probability | None
    all: Figures
    chosen: Figures
    held_out: Figures | None
    best: ThresholdFigures
    near_best: tuple[Probability, Probability]
    bins: tuple[ReliabilityBin, ...]
    curve: tuple[ThresholdFigures, ...]
    notes: tuple[str, ...] = ()


class Calibration(Value):
    """The temperature and thresholds for the scores of a run.

    An entity's score p becomes p^(1/`temperature`). The entity is dropped if this value is below the threshold of its
    label in `label_thresholds`, or, if its label has none there, below `threshold`. None drops no entity.
    """

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    threshold: Probability | None = None
    label_thresholds: dict[str, Probability] = {}
    evidence: Evidence | None = None

    def __repr__(self) -> str:
        evidence = self.evidence
        basis = f", from {number(evidence.documents, 'document')} of {evidence.data}" if evidence else ""
        threshold = "none" if self.threshold is None else f"{self.threshold:.3f}"
        by_label = f", {len(self.label_thresholds)} by label" if self.label_thresholds else ""
        return f"Calibration(temperature {self.temperature:.3f}, threshold {threshold}{by_label}{basis})"

    __str__ = __repr__

    @property
    def has_thresholds(self) -> bool:
        """Whether there is a threshold, so that an entity can be dropped."""
        return self.threshold is not None or bool(self.label_thresholds)

    def with_min_score(self, score: float) -> Calibration:
        """Return a calibration with the same temperature and one threshold for all labels; 0 keeps all entities.

        Raises:
            ConfigError: `score` is not a probability.
        """
        if not 0 <= score <= 1:
            raise ConfigError(f"a lowest score of {score:g}; expected a probability from 0 (keep all) to 1")
        return self.model_copy(update={"threshold": score or None, "label_thresholds": {}})

    def apply(self, document: Document) -> tuple[Document, tuple[Entity, ...]]:
        """Return `document` with calibrated scores, and the entities that were dropped.

        An entity without a score is kept.
        """
        passing: list[Entity] = []
        dropped: list[Entity] = []
        for entity in document.entities:
            if entity.score is None:
                passing.append(entity)
                continue
            score = entity.score ** (1 / self.temperature)
            threshold = self.label_thresholds.get(entity.label, self.threshold)
            passes = threshold is None or score >= threshold
            (passing if passes else dropped).append(replace(entity, score=score))
        return document.with_entities(passing), tuple(dropped)

    def save(self, folder: Path) -> None:
        """Write `calibration.json` into the run folder `folder`, atomically."""
        with replacing(folder / CALIBRATION_FILE) as file:
            file.write(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Load the calibration of the run folder `folder`; None if it has none.

        Raises:
            RunError: the file cannot be read or is damaged.
        """
        path = folder / CALIBRATION_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RunError(
                f"{path}: not a calibration: {where}: {first['msg']}; make it again with spantune calibrate {folder}, "
                "or remove it to have bare scores"
            ) from None


def calibrate(
    gold: Sequence[Document],
    predicted: Sequence[Document],
    precision: float | None = None,
    per_label: bool = False,
    data: str = "dev",
    *,
    own_thresholds: Mapping[str, float] | None = None,
) -> Calibration:
    """Fit the temperature and choose the thresholds on one corpus.

    Args:
        gold: annotated documents that the model was not trained on.
        predicted: the same documents with uncalibrated scores, and no entity dropped.
        precision: the precision that the thresholds are to reach while as many entities as possible pass. None for the
            best F1; no threshold is then set if it does not improve the F1 of held-out documents.
        per_label: whether each label with at least `LABEL_PREDICTIONS` predictions gets a threshold of its own.
        data: the name of the corpus, for the record.
        own_thresholds: the thresholds by label, for uncalibrated scores, that the model has without a calibration.
            They are kept if other thresholds do not improve the F1 of held-out documents.

    Raises:
        DataError: the documents do not pair, nothing was predicted, or a score is missing or not a probability.
        ConfigError: `precision` is not in (0, 1], or no threshold reaches it.
    """
    require_precision(precision)
    uncalibrated = collect(gold, predicted)
    temperature = reliability.fit_temperature(uncalibrated.scores, uncalibrated.right)
    notes = [] if temperature else ["temperature left at 1: it needs predictions of both kinds, right and wrong"]
    tempered = replace(uncalibrated, scores=reliability.tempered(uncalibrated.scores, temperature or 1.0))
    chosen = _choose(tempered, precision, per_label)
    if chosen is None:
        raise _unreached(tempered.curve(), precision)
    held_out = _held_out(tempered, precision, per_label)
    if per_label and not chosen.labels:
        notes.append(
            f"no label has its own threshold: it takes {LABEL_PREDICTIONS} predictions, and the objective reached"
        )
    if precision is None:
        own = {label: value ** (1 / (temperature or 1.0)) for label, value in (own_thresholds or {}).items()}
        chosen, kept = _gaining(tempered, chosen, held_out, Thresholds(labels=own))
        notes += kept
    bins, curve = reliability.bins(tempered.scores, tempered.right), tempered.curve()
    evidence = Evidence(
        data=data,
        documents=len(gold),
        objective="f1" if precision is None else f"precision={precision:g}",
        ece_before=reliability.ece(reliability.bins(uncalibrated.scores, uncalibrated.right)),
        ece=reliability.ece(bins),
        ece_held_out=_held_out_ece(uncalibrated),
        all=_figures(curve.point(0)),
        chosen=_figures(tempered.passing(chosen)),
        held_out=held_out and _figures(held_out),
        best=_threshold_figures(thresholds.best_f1(curve)),
        near_best=thresholds.near_best(curve),
        bins=tuple(ReliabilityBin(**asdict(bin)) for bin in bins),
        curve=tuple(map(_threshold_figures, thresholds.thinned(curve, CURVE_POINTS))),
        notes=tuple(notes),
    )
    return Calibration(
        temperature=temperature or 1.0,
        threshold=chosen.overall or None,
        label_thresholds=chosen.labels,
        evidence=evidence,
    )


def _gaining(
    predictions: Predictions, chosen: Thresholds, held_out: Point | None, before: Thresholds
) -> tuple[Thresholds, list[str]]:
    """Return `chosen` if it improves the F1 of held-out documents over `before`; otherwise `before`, and a note."""
    if chosen == before or (held_out is not None and held_out.f1 > predictions.passing(before).f1):
        return chosen, []
    if before.labels:
        return before, ["the thresholds chosen in training are kept: held-out documents gain no F1 by others"]
    return before, ["no threshold: held-out documents gain no F1 by one"]


def best_thresholds(gold: Sequence[Document], predicted: Sequence[Document]) -> Thresholds | None:
    """Choose the thresholds with the best F1 for uncalibrated scores: one for all labels, or one for each label.

    Each label gets its own threshold if that gives the better F1 on held-out documents (five folds).

    Args:
        gold: annotated documents.
        predicted: the same documents with every candidate, however low its score.

    Returns:
        The thresholds; None if nothing was predicted.

    Raises:
        DataError: the documents do not pair, or a score is missing or not a probability.
    """
    if not any(document.entities for document in predicted):
        return None
    predictions = collect(gold, predicted)
    held_out = {per_label: _held_out(predictions, None, per_label) for per_label in (False, True)}
    figures = {per_label: point.f1 if point else 0.0 for per_label, point in held_out.items()}
    return _choose(predictions, None, per_label=figures[True] > figures[False])


def require_precision(precision: float | None) -> None:
    """Check that `precision` is None, or a share that thresholds can reach.

    Raises:
        ConfigError: it is not in (0, 1].
    """
    expect(precision, (float, int, type(None)), "precision", "a share such as 0.9, or None")
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"a wanted precision of {precision:g}; expected a share over 0, 1 at the most")


def _choose(predictions: Predictions, precision: float | None, per_label: bool) -> Thresholds | None:
    """Choose the thresholds for an objective; None if all labels together do not reach it.

    All labels together must reach a wanted `precision`. So the labels without a threshold of their own must reach it
    together too; otherwise no label gets its own.
    """

    def choose(curve: Curve) -> Point | None:
        return thresholds.best_f1(curve) if precision is None else thresholds.reaching(curve, precision)

    overall = choose(predictions.curve()) if len(predictions.scores) else None
    if overall is None:
        return None
    if not per_label:
        return Thresholds(overall.threshold)
    labels, counts = np.unique(predictions.labels, return_counts=True)
    points = {str(label): choose(predictions.curve([label])) for label in labels[counts >= LABEL_PREDICTIONS]}
    label_thresholds = {label: point.threshold for label, point in points.items() if point}
    other_labels = set(labels) - label_thresholds.keys()
    if label_thresholds and other_labels and precision is not None:
        others = thresholds.reaching(predictions.curve(other_labels), precision)
        return Thresholds(others.threshold, label_thresholds) if others else Thresholds(overall.threshold)
    return Thresholds(overall.threshold, label_thresholds)


def _held_out(predictions: Predictions, precision: float | None, per_label: bool) -> Point | None:
    """Return the counts over all documents, each filtered with thresholds that were chosen without it."""
    points = []
    for chosen_by, held_out in predictions.folds():
        chosen = _choose(chosen_by, precision, per_label)
        if chosen is None:
            return None
        points.append(held_out.passing(chosen))
    return Point(
        0.0,
        sum(point.kept for point in points),
        sum(point.correct for point in points),
        sum(point.gold for point in points),
    )


def _held_out_ece(uncalibrated: Predictions) -> float | None:
    """Return the ECE of all predictions, each calibrated with a temperature that was fitted without its document.

    None if a temperature cannot be fitted without the documents of one fold.
    """
    scores, rights = [], []
    for fitted_to, held_out in uncalibrated.folds():
        temperature = reliability.fit_temperature(fitted_to.scores, fitted_to.right) if len(fitted_to.scores) else None
        if temperature is None:
            return None
        scores.append(reliability.tempered(held_out.scores, temperature))
        rights.append(held_out.right)
    return reliability.ece(reliability.bins(np.concatenate(scores), np.concatenate(rights)))


def _unreached(curve: Curve, precision: float | None) -> ConfigError:
    highest = thresholds.most_precise(curve)
    return ConfigError(
        f"no threshold reaches precision {precision:g} on these documents; the highest is {highest.precision:.3f}, "
        f"from {highest.threshold:.3f} on, where {highest.kept} of {curve.kept[0]} predictions are left: ask for less"
    )


def _figures(point: Point) -> Figures:
    return Figures(
        precision=point.precision,
        recall=point.recall,
        f1=point.f1,
        kept=point.kept,
        correct=point.correct,
        gold=point.gold,
    )


def _threshold_figures(point: Point) -> ThresholdFigures:
    return ThresholdFigures(threshold=point.threshold, **_figures(point).model_dump())
