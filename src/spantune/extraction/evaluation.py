"""Measuring what users deploy: a model's real extractions against gold documents.

The figures are those of `metrics.score`, and the rates of answers that were invalid, named something not in the text
or did not stop. Predictions are kept as files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spantune.core import Document, to_record, track
from spantune.data import formats
from spantune.extraction.extractor import Extractor
from spantune.extraction.result import Extraction, annotated, rates
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

    def values(self) -> dict[str, float]:
        """Flat figures for `metrics.jsonl` and the trackers."""
        micro = self.scores.micro
        flat = {"f1": micro.f1, "precision": micro.precision, "recall": micro.recall, "macro_f1": self.scores.macro_f1}
        flat |= {"f1_low": micro.f1_low or 0.0, "f1_high": micro.f1_high or 0.0}
        for label, figure in self.scores.labels.items():
            flat[f"f1/{label}"] = figure.f1
            if figure.f1_low is not None and figure.f1_high is not None:  # a label that nobody named has none
                flat |= {f"f1_low/{label}": figure.f1_low, f"f1_high/{label}": figure.f1_high}
        cost = {"documents": len(self.gold), "evaluation_seconds": round(self.seconds, 2)}
        return flat | rates(self.extractions) | cost

    @property
    def left_out(self) -> dict[str, int]:
        """How many entities a threshold left out, and how many of them gold has."""
        pairs = [(set(gold.entities), set(one.left_out)) for gold, one in zip(self.gold, self.extractions, strict=True)]
        return {
            "entities": sum(len(gone) for _, gone in pairs),
            "correct": sum(len(true & gone) for true, gone in pairs),
        }

    def as_dict(self) -> dict[str, object]:
        """The scores, the rates and what a threshold left out as one JSON object."""
        more = {**rates(self.extractions), "left_out": self.left_out, "seconds": round(self.seconds, 2)}
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
    predicted = [item.document for item in extractions]
    scores = score(gold, predicted, extractor.task.codes, protocol=protocol, train=train)
    return Evaluation(tuple(gold), extractions, scores, seconds)


def save_predictions(path: Path, extractions: Sequence[Extraction]) -> None:
    """Write the extracted documents as native JSONL, with all that `explained` adds to `meta`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(path, map(explained, extractions))


def explained(extraction: Extraction) -> Document:
    """As `annotated`, and `meta` has the entities that a threshold left out, where it left out any."""
    document = annotated(extraction)
    if not extraction.left_out:
        return document
    gone = to_record(document.with_entities(extraction.left_out))["entities"]
    return Document(document.id, document.text, document.entities, {**document.meta, "left_out": gone})
