"""Figures of predicted documents against gold ones, with their uncertainty."""

from __future__ import annotations

from spantune.metrics import bootstrap, calibration, counts
from spantune.metrics.calibration import Calibration, Evidence, Figures, best_thresholds, calibrate, require_precision
from spantune.metrics.comparison import Comparison, Difference, Gap, System, compare
from spantune.metrics.error_analysis import ANSWER_KINDS, KINDS, NONE, Confusion, Error, Judged, Outcome, judge
from spantune.metrics.figures import TOO_FEW, Figure, Protocol, Scores, f1_text
from spantune.metrics.pairing import align, pair
from spantune.metrics.scoring import label_codes, labels_of, require_protocol, score

__all__ = [
    "ANSWER_KINDS",
    "KINDS",
    "NONE",
    "TOO_FEW",
    "Calibration",
    "Comparison",
    "Confusion",
    "Difference",
    "Error",
    "Evidence",
    "Figure",
    "Figures",
    "Gap",
    "Judged",
    "Outcome",
    "Protocol",
    "Scores",
    "System",
    "align",
    "best_thresholds",
    "bootstrap",
    "calibrate",
    "calibration",
    "compare",
    "counts",
    "f1_text",
    "judge",
    "label_codes",
    "labels_of",
    "pair",
    "require_precision",
    "require_protocol",
    "score",
]
