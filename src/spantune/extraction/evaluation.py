"""Measure a model's real extractions against gold documents.

The figures are those of `metrics.score`, and the rates of answers with problems. Predictions are saved as files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spantune.core import Document, Extraction, replacing, to_json, to_prediction_record, track
from spantune.extraction.extractor import Extractor
from spantune.extraction.result import rates
from spantune.metrics import Protocol, Scores, score


@dataclass(frozen=True)
class Evaluation:
    """Scores, the extractions behind them, and the seconds that extraction took."""

    gold: tuple[Document, ...]
    extractions: tuple[Extraction, ...]
    scores: Scores
    seconds: float

    @property
    def predicted(self) -> list[Document]:
        """The documents as the model annotated them."""
        return [extraction.document for extraction in self.extractions]

    def values(self) -> dict[str, float | None]:
        """Return flat figures for `metrics.jsonl` and the trackers; the bounds are None where there is no interval."""
        micro = self.scores.micro
        flat: dict[str, float | None] = {
            "f1": micro.f1,
            "precision": micro.precision,
            "recall": micro.recall,
            "macro_f1": self.scores.macro_f1,
        }
        flat |= {"f1_low": micro.f1_low, "f1_high": micro.f1_high}
        for label, figure in self.scores.labels.items():
            flat[f"f1/{label}"] = figure.f1
            if figure.f1_low is not None and figure.f1_high is not None:
                flat |= {f"f1_low/{label}": figure.f1_low, f"f1_high/{label}": figure.f1_high}
        cost = {"documents": len(self.gold), "evaluation_seconds": round(self.seconds, 2)}
        return flat | rates(self.extractions) | cost

    @property
    def below_threshold(self) -> dict[str, int]:
        """How many entities a threshold dropped, and how many of them are in gold."""
        pairs = [
            (set(gold.entities), set(extraction.below_threshold))
            for gold, extraction in zip(self.gold, self.extractions, strict=True)
        ]
        return {
            "entities": sum(len(dropped) for _, dropped in pairs),
            "correct": sum(len(gold & dropped) for gold, dropped in pairs),
        }

    def as_dict(self) -> dict[str, object]:
        """Return the scores, the rates and what a threshold dropped as one JSON object."""
        more = {**rates(self.extractions), "left_out": self.below_threshold, "seconds": round(self.seconds, 2)}
        return {**self.scores.as_dict(), **more}


def evaluate(
    extractor: Extractor,
    gold: Sequence[Document],
    description: str = "evaluate",
    *,
    protocol: Protocol = "cblue",
    train: Sequence[Document] | None = None,
) -> Evaluation:
    """Extract from the texts of `gold` and score against it; `protocol` and `train` as in `metrics.score`."""
    started = time.perf_counter()
    extractions = tuple(track(extractor.stream(gold), description, len(gold)))
    seconds = time.perf_counter() - started
    predicted = [extraction.document for extraction in extractions]
    scores = score(gold, predicted, extractor.task.codes, protocol=protocol, train=train)
    return Evaluation(tuple(gold), extractions, scores, seconds)


def save_predictions(path: Path, extractions: Sequence[Extraction]) -> None:
    """Write `extractions` as native JSONL with the raw answers and, in `meta.left_out`, the entities under a threshold.

    `spantune.data.read_extractions` reads the file back.

    Raises:
        DataError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for extraction in extractions:
            file.write(to_json(to_prediction_record(extraction)) + "\n")
