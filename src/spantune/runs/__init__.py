"""Run folders: claim, record, checkpoint, list and compare runs, and mirror them on dashboards.

The names are imported on their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.runs import listing
    from spantune.runs.card import dev_figures, label_lines, write_card
    from spantune.runs.checkpoints import BestAdapter, Checkpoints, step_of, torn
    from spantune.runs.claim import Claim
    from spantune.runs.evaluations import Evaluated, evaluated, name_predictions, predictions_for
    from spantune.runs.folder import (
        RunFolder,
        free_name,
        read_metrics,
        require_free,
        resume_recipe,
    )
    from spantune.runs.journal import logging_to, rewind
    from spantune.runs.listing import COLUMNS, Run
    from spantune.runs.manifest import change_since, trained_files
    from spantune.runs.systems import aligned, compare_runs, labels_of_systems, read_systems
    from spantune.runs.trackers.dashboards import Trackers, open_trackers, require_trackers
    from spantune.runs.trackers.interface import hints, url_of
    from spantune.runs.trackers.upload import sync

__all__ = [
    "COLUMNS",
    "BestAdapter",
    "Checkpoints",
    "Claim",
    "Evaluated",
    "Run",
    "RunFolder",
    "Trackers",
    "aligned",
    "change_since",
    "compare_runs",
    "dev_figures",
    "evaluated",
    "free_name",
    "hints",
    "label_lines",
    "labels_of_systems",
    "listing",
    "logging_to",
    "name_predictions",
    "open_trackers",
    "predictions_for",
    "read_metrics",
    "read_systems",
    "require_free",
    "require_trackers",
    "resume_recipe",
    "rewind",
    "step_of",
    "sync",
    "torn",
    "trained_files",
    "url_of",
    "write_card",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "card": ("dev_figures", "label_lines", "write_card"),
        "checkpoints": ("BestAdapter", "Checkpoints", "step_of", "torn"),
        "claim": ("Claim",),
        "evaluations": ("Evaluated", "evaluated", "name_predictions", "predictions_for"),
        "folder": (
            "RunFolder",
            "free_name",
            "read_metrics",
            "require_free",
            "resume_recipe",
        ),
        "journal": ("logging_to", "rewind"),
        "listing": ("COLUMNS", "Run"),
        "manifest": ("change_since", "trained_files"),
        "systems": ("aligned", "compare_runs", "labels_of_systems", "read_systems"),
        "trackers.dashboards": ("Trackers", "open_trackers", "require_trackers"),
        "trackers.interface": ("hints", "url_of"),
        "trackers.upload": ("sync",),
    },
)
