"""Measuring what users deploy: a model's real extractions against gold documents.

The figures are those of `metrics.score`, and the rates of answers that were invalid, named something not in the text
or did not stop. Predictions are kept as files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spantune import formats
from spantune.document import Document
from spantune.extract import Extractor
from spantune.extraction import Extraction, annotated, rates
from spantune.metrics import Protocol, Scores, score
from spantune.progress import track


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

    def values(self) -> dict[str, float]:
        """Flat figures for `metrics.jsonl` and the trackers."""
        micro = self.scores.micro
        flat = {"f1": micro.f1, "precision": micro.precision, "recall": micro.recall, "macro_f1": self.scores.macro_f1}
        flat |= {"f1_low": micro.f1_low or 0.0, "f1_high": micro.f1_high or 0.0}
        flat |= {f"f1/{label}": figure.f1 for label, figure in self.scores.labels.items()}
        cost = {"documents": len(self.gold), "evaluation_seconds": round(self.seconds, 2)}
        return flat | rates(self.extractions) | cost

    def as_dict(self) -> dict[str, object]:
        """The scores and rates as one JSON object."""
        return {**self.scores.as_dict(), **rates(self.extractions), "seconds": round(self.seconds, 2)}


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
    predicted = [item.document for item in extractions]
    scores = score(gold, predicted, extractor.task.codes, protocol=protocol, train=train)
    return Evaluation(tuple(gold), extractions, scores, seconds)


def save_predictions(path: Path, extractions: Sequence[Extraction]) -> None:
    """Write the extracted documents as native JSONL, with status and problems of each in `meta`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(path, (annotated(extraction) for extraction in extractions))
