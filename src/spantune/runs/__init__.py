"""The run folder: claimed, recorded, checkpointed, listed, and mirrored on dashboards."""

from __future__ import annotations

from spantune.runs import listing
from spantune.runs.checkpoints import BestAdapter, Checkpoints, step_of, torn
from spantune.runs.folder import (
    Claim,
    free_name,
    is_finished,
    last_predictions,
    logging_to,
    read_adapter,
    read_config,
    require_free,
    resume_recipe,
)
from spantune.runs.journal import METRICS_FILE, read_metrics, rewind
from spantune.runs.listing import COLUMNS, Run
from spantune.runs.trackers.dashboards import Trackers, open_trackers, require_trackers
from spantune.runs.trackers.interface import hints
from spantune.runs.trackers.upload import sync

__all__ = [
    "COLUMNS",
    "METRICS_FILE",
    "BestAdapter",
    "Checkpoints",
    "Claim",
    "Run",
    "Trackers",
    "free_name",
    "hints",
    "is_finished",
    "last_predictions",
    "listing",
    "logging_to",
    "open_trackers",
    "read_adapter",
    "read_config",
    "read_metrics",
    "require_free",
    "require_trackers",
    "resume_recipe",
    "rewind",
    "step_of",
    "sync",
    "torn",
]
