"""Entity extraction by a model in this process or on a server, and the inputs and outputs of `spantune extract`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.extraction.calibration import calibrate_run
    from spantune.extraction.choosing import Row
    from spantune.extraction.chunked import Engine, most_tokens, refusals
    from spantune.extraction.decoder import Decoder
    from spantune.extraction.evaluation import Evaluation, evaluate, evaluate_run, save_predictions
    from spantune.extraction.extractor import Extractor
    from spantune.extraction.gold_walk import mark_choices
    from spantune.extraction.grammar import Allowed, Guide, constraint_of, require_grammar
    from spantune.extraction.inputs import Texts
    from spantune.extraction.loading import load_bare, load_run, load_runs, require_merging
    from spantune.extraction.model_runner import Forward
    from spantune.extraction.outputs import SHOWN, Tally, Target
    from spantune.extraction.reading import LOWEST_LOGIT
    from spantune.extraction.remote.client import Server
    from spantune.extraction.remote.extractor import load_remote
    from spantune.extraction.remote.protocol import GRAMMARS, Question, Served
    from spantune.extraction.result import rates
    from spantune.extraction.resumable import partial
    from spantune.extraction.scale.devices import DeviceEngine, DeviceSettings, parse_devices
    from spantune.extraction.scale.ray_engine import Task, extract_on_ray
    from spantune.extraction.session import Options, Session

__all__ = [
    "GRAMMARS",
    "LOWEST_LOGIT",
    "SHOWN",
    "Allowed",
    "Decoder",
    "DeviceEngine",
    "DeviceSettings",
    "Engine",
    "Evaluation",
    "Extractor",
    "Forward",
    "Guide",
    "Options",
    "Question",
    "Row",
    "Served",
    "Server",
    "Session",
    "Tally",
    "Target",
    "Task",
    "Texts",
    "calibrate_run",
    "constraint_of",
    "evaluate",
    "evaluate_run",
    "extract_on_ray",
    "load_bare",
    "load_remote",
    "load_run",
    "load_runs",
    "mark_choices",
    "most_tokens",
    "parse_devices",
    "partial",
    "rates",
    "refusals",
    "require_grammar",
    "require_merging",
    "save_predictions",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "calibration": ("calibrate_run",),
        "chunked": ("Engine", "most_tokens", "refusals"),
        "choosing": ("Row",),
        "decoder": ("Decoder",),
        "evaluation": ("Evaluation", "evaluate", "evaluate_run", "save_predictions"),
        "extractor": ("Extractor",),
        "gold_walk": ("mark_choices",),
        "grammar": ("Allowed", "Guide", "constraint_of", "require_grammar"),
        "inputs": ("Texts",),
        "loading": ("load_bare", "load_run", "load_runs", "require_merging"),
        "model_runner": ("Forward",),
        "outputs": ("SHOWN", "Tally", "Target"),
        "reading": ("LOWEST_LOGIT",),
        "remote.client": ("Server",),
        "remote.extractor": ("load_remote",),
        "remote.protocol": ("GRAMMARS", "Question", "Served"),
        "result": ("rates",),
        "resumable": ("partial",),
        "scale.devices": ("DeviceEngine", "DeviceSettings", "parse_devices"),
        "scale.ray_engine": ("Task", "extract_on_ray"),
        "session": ("Options", "Session"),
    },
)
