"""The calibration of a run: its temperature and thresholds, from gold documents and what the model made of them.

    found = calibrate(gold, load_bare(run).extract(gold))
    found.save(run)

`load_run` reads it back and applies it. It judges entities one by one, so what the model never found stays
missed, and it is fitted and chosen on one corpus: beside its figures stand those of documents that were held out, five
times a fifth. It refuses a precision that no threshold reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spantune.core import ConfigError, Document, Entity, RunError, replacing
from spantune.metrics import reliability, thresholds
from spantune.metrics.thresholds import Curve, Point, Predictions, Thresholds, collect

CALIBRATION_FILE = "calibration.json"
LABEL_PREDICTIONS = 50
"""Fewest predictions of a label for a threshold of its own."""
CURVE_POINTS = 101
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Value(BaseModel):
    """A frozen part of `calibration.json`, which refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(Value):
    """What the entities that are kept come to; `kept`, `correct` and `gold` are counts."""

    precision: Probability
    recall: Probability
    f1: Probability
    kept: int
    correct: int
    gold: int


class ThresholdFigures(Figures):
    """The figures at one threshold."""

    threshold: Probability


class ReliabilityBin(Value):
    """Calibrated scores from `low` to `high`: how many, their mean, and the share that is right."""

    low: Probability
    high: Probability
    count: int
    confidence: Probability
    precision: Probability


class Evidence(Value):
    """What a calibration was made from and what it is worth.

    `ece_held_out` and `held_out` are of documents that had no part in the temperature, or the thresholds, that they
    were measured with; None where there were too few documents or kinds of predictions.
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
    """How the scores of a run are to be read, and which entities are kept.

    An entity's score p becomes p^(1/`temperature`). It is kept when that reaches the threshold of its label in
    `label_thresholds`, else `threshold`; None keeps all.
    """

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    threshold: Probability | None = None
    label_thresholds: dict[str, Probability] = {}
    evidence: Evidence | None = None

    def with_min_score(self, score: float) -> Calibration:
        """The same temperature under one threshold for all labels; 0 keeps all.

        Raises:
            ConfigError: `score` is no probability.
        """
        if not 0 <= score <= 1:
            raise ConfigError(f"a lowest score of {score:g}; expected a probability from 0 (keep all) to 1")
        return self.model_copy(update={"threshold": score or None, "label_thresholds": {}})

    def apply(self, document: Document) -> tuple[Document, tuple[Entity, ...]]:
        """`document` with calibrated scores, and the entities that were left out of it; one without a score is kept."""
        kept: list[Entity] = []
        left_out: list[Entity] = []
        for entity in document.entities:
            if entity.score is None:
                kept.append(entity)
                continue
            score = entity.score ** (1 / self.temperature)
            lowest = self.label_thresholds.get(entity.label, self.threshold)
            (kept if lowest is None or score >= lowest else left_out).append(replace(entity, score=score))
        return document.with_entities(kept), tuple(left_out)

    def save(self, folder: Path) -> None:
        """Write `calibration.json` into a run folder, whole or not at all."""
        with replacing(folder / CALIBRATION_FILE) as file:
            file.write(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """The calibration of a run folder, None where it has none.

        Raises:
            RunError: the file is damaged.
        """
        path = folder / CALIBRATION_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
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
) -> Calibration:
    """Fit the temperature and choose the threshold.

    Args:
        gold: annotated documents that the model was not trained on.
        predicted: the same documents with the bare scores of `extract`, nothing left out.
        precision: the precision that the threshold is to reach with the most entities kept; None: the best F1, and no
            threshold at all where held-out documents gain nothing by it.
        per_label: give each label with `LABEL_PREDICTIONS` predictions a threshold of its own.
        data: the name of the corpus, for the record.

    Raises:
        DataError: the documents do not pair, nothing was predicted, or a score is missing or no probability.
        ConfigError: no threshold reaches the precision.
    """
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"a wanted precision of {precision:g}; expected a share over 0, 1 at the most")
    bare = collect(gold, predicted)
    temperature = reliability.fit_temperature(bare.scores, bare.right)
    notes = [] if temperature else ["temperature left at 1: it needs predictions of both kinds, right and wrong"]
    found = replace(bare, scores=reliability.tempered(bare.scores, temperature or 1.0))
    chosen = _choose(found, precision, per_label)
    if chosen is None:
        raise _unreached(found.curve(), precision)
    held_out = _held_out(found, precision, per_label)
    if per_label and not chosen.labels:
        notes.append(
            f"no label has its own threshold: it takes {LABEL_PREDICTIONS} predictions, and the objective reached"
        )
    if (
        precision is None
        and chosen != Thresholds()
        and (held_out is None or held_out.f1 <= found.kept(Thresholds()).f1)
    ):
        notes.append("no threshold: held-out documents gain no F1 by one")
        chosen = Thresholds()
    evidence = Evidence(
        data=data,
        documents=len(gold),
        objective="f1" if precision is None else f"precision={precision:g}",
        ece_held_out=_held_out_ece(bare),
        chosen=_figures(found.kept(chosen)),
        held_out=held_out and _figures(held_out),
        notes=tuple(notes),
        **_measured(bare, found),
    )
    return Calibration(
        temperature=temperature or 1.0,
        threshold=chosen.overall or None,
        label_thresholds=chosen.labels,
        evidence=evidence,
    )


def _choose(found: Predictions, precision: float | None, per_label: bool) -> Thresholds | None:
    """The thresholds for an objective; None where the overall one is not reached.

    A precision holds for all labels together: those without a threshold of their own reach it by themselves too, or
    no label has its own.
    """

    def choose(points: Curve) -> Point | None:
        return thresholds.best_f1(points) if precision is None else thresholds.reaching(points, precision)

    overall = choose(found.curve()) if len(found.scores) else None
    if overall is None:
        return None
    if not per_label:
        return Thresholds(overall.threshold)
    labels, counts = np.unique(found.labels, return_counts=True)
    points = {str(label): choose(found.curve([label])) for label in labels[counts >= LABEL_PREDICTIONS]}
    own = {label: point.threshold for label, point in points.items() if point}
    others = set(labels) - own.keys()
    if own and others and precision is not None:
        rest = thresholds.reaching(found.curve(others), precision)
        return Thresholds(rest.threshold, own) if rest else Thresholds(overall.threshold)
    return Thresholds(overall.threshold, own)


def _measured(bare: Predictions, found: Predictions) -> dict[str, Any]:
    """What bare and calibrated scores come to, whatever was chosen."""
    after, points = reliability.bins(found.scores, found.right), found.curve()
    return {
        "ece_before": reliability.ece(reliability.bins(bare.scores, bare.right)),
        "ece": reliability.ece(after),
        "all": _figures(points.point(0)),
        "best": _at(thresholds.best_f1(points)),
        "near_best": thresholds.near_best(points),
        "bins": tuple(ReliabilityBin(**asdict(one)) for one in after),
        "curve": tuple(map(_at, thresholds.thinned(points, CURVE_POINTS))),
    }


def _held_out(found: Predictions, precision: float | None, per_label: bool) -> Point | None:
    """The counts of all documents, each judged by thresholds that were chosen without it."""
    points = []
    for others, mine in found.folds():
        chosen = _choose(others, precision, per_label)
        if chosen is None:
            return None
        points.append(mine.kept(chosen))
    kept, correct, gold = (sum(getattr(point, name) for point in points) for name in ("kept", "correct", "gold"))
    return Point(0.0, kept, correct, gold)


def _held_out_ece(bare: Predictions) -> float | None:
    """The ECE of all predictions, each tempered by what was fitted without its document."""
    scores, rights = [], []
    for others, mine in bare.folds():
        temperature = reliability.fit_temperature(others.scores, others.right) if len(others.scores) else None
        if temperature is None:
            return None
        scores.append(reliability.tempered(mine.scores, temperature))
        rights.append(mine.right)
    return reliability.ece(reliability.bins(np.concatenate(scores), np.concatenate(rights)))


def _unreached(points: Curve, precision: float | None) -> ConfigError:
    top = thresholds.most_precise(points)
    return ConfigError(
        f"no threshold reaches precision {precision:g} on these documents; the highest is {top.precision:.3f}, from "
        f"{top.threshold:.3f} on, where {top.kept} of {points.kept[0]} predictions are left: ask for less"
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


def _at(point: Point) -> ThresholdFigures:
    return ThresholdFigures(threshold=point.threshold, **_figures(point).model_dump())
