"""Load finished runs for extraction: one run with its adapter merged, or several runs over one shared base model.

Several runs share a base model if its source, type and device are the same; it is then loaded once. The adapters of
these runs are not merged: each is computed beside the base, and made the active adapter before each of its passes, so
that no weight of the base changes. A single run over a base in FP8, NF4 or INT8 is loaded in the same way, unmerged.
With `extract.merge: always` each run has a base model of its own; the adapter is merged before an FP8 base is
quantised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spantune.core import Config, ConfigError, TaskSpec, config, expect, nearest
from spantune.encoding import make_encoder
from spantune.extraction.extractor import Extractor, require_settings
from spantune.extraction.grammar import require_grammar
from spantune.extraction.reading import require_reading
from spantune.metrics import Calibration
from spantune.models import (
    CausalLM,
    Loaded,
    check_head_files,
    hash_model,
    head_of,
    is_shareable,
    load,
    load_adapter,
    load_head,
    open_together,
    open_trained,
    pack_weights,
    read_files,
    silenced,
)
from spantune.runs import RunFolder

DEVICES = ("auto", "cpu", "cuda")
log = logging.getLogger(__name__)


@silenced()
def load_run(
    run: str | Path,
    device: str = "auto",
    settings: config.Extract | None = None,
    min_score: float | None = None,
    *,
    accept_changes: bool = False,
) -> Extractor:
    """Load the Extractor of a finished run, with the run's calibration; the adapter is merged into an unquantised base.

        extractor = spantune.load("runs/demo")
        for document in extractor.extract(["患者因急性阑尾炎行腹腔镜手术。"]):
            for entity in document.entities:
                print(entity.start, entity.end, entity.label, document.surface(entity), entity.score)

    Args:
        run: the run folder.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        settings: the section `extract` of a recipe (batch size, limits, grammar). None takes that of the run.
        min_score: the lowest score of an entity, from 0 to 1, which replaces the run's thresholds; 0 drops no entity.
            Where spans are read, spans with a score under 0.047 are never entities.
        accept_changes: load an adapter whose files were changed after training, with a warning.

    Raises:
        ConfigError: `min_score` is not a probability, an argument is of a wrong type, or as `require_grammar` and
            `require_reading`.
        RunError: the folder is not a run, has no adapter yet, its adapter was changed, or its calibration is damaged.
        ModelError: the base model or the adapter cannot be loaded.
    """
    expect(run, (str, Path), "load", "the path of a run folder, such as runs/demo")
    expect(min_score, (int, float, type(None)), "min_score", "a probability from 0 to 1, or None")
    _require_options(device, settings)
    calibration = _calibration(Path(run), min_score)
    extractor = load_bare(run, device, settings, accept_changes=accept_changes)
    extractor.calibration = calibration
    return extractor


@silenced()
def load_bare(
    run: str | Path, device: str = "auto", settings: config.Extract | None = None, *, accept_changes: bool = False
) -> Extractor:
    """Load the Extractor of a finished run without its calibration; the arguments and errors are those of `load_run`.

    Scores are not calibrated. Where answers are written, no entity is dropped because of its score.
    """
    return _load_alone(_read(run, device, settings, accept_changes=accept_changes))


@silenced()
def load_runs(
    runs: Sequence[str | Path],
    device: str = "auto",
    settings: config.Extract | None = None,
    min_score: float | None = None,
    *,
    accept_changes: bool = False,
) -> dict[str, Extractor]:
    """Load the Extractors of several runs, keyed by the names of their folders; a shared base model is loaded once.

        extractors = load_runs(["runs/diseases", "runs/drugs"])
        extractors["drugs"].extract("阿司匹林 100 mg")

    Each run extracts what it extracts when it is loaded alone, up to rounding: an adapter that is not merged is
    computed in a higher precision. A run is loaded alone if no other run has its base, or if it trained the base
    itself. Only one thread may use the returned Extractors. The arguments are those of `load_run`.

    Raises:
        ConfigError: no folder is given, two folders have the same name, or as `load_run`.
        RunError, ModelError: as `load_run`.
    """
    _require_options(device, settings)
    folders = [Path(expect(run, (str, Path), "load_runs", "the paths of run folders")) for run in runs]
    if not folders:
        raise ConfigError("load_runs: no run was given; name one run folder at least")
    calibrations = [_calibration(folder, min_score) for folder in folders]
    read = [_read(folder, device, settings, accept_changes=accept_changes) for folder in folders]
    names = [run.folder.path.resolve().name for run in read]
    for number, name in enumerate(names):
        if name in names[:number]:
            first = folders[names.index(name)]
            raise ConfigError(f"{first} and {folders[number]} are both called {name!r}; rename one of the folders")
    extractors: dict[int, Extractor] = {}
    for numbers in _by_base(read).values():
        loaded = _load_together([read[number] for number in numbers]) if len(numbers) > 1 else []
        extractors |= dict(zip(numbers, loaded or [_load_alone(read[numbers[0]])], strict=True))
    for number, calibration in enumerate(calibrations):
        extractors[number].calibration = calibration
    return {name: extractors[number] for number, name in enumerate(names)}


@dataclass(frozen=True)
class _Run:
    """A run as it is read before its model is loaded; `model` has the device that was asked for."""

    folder: RunFolder
    recipe: Config
    task: TaskSpec
    model: config.Model
    settings: config.Extract

    @property
    def is_merged(self) -> bool:
        """Whether the adapter is merged into the base, also where the base is quantised."""
        return self.settings.merge == "always" and is_shareable(self.folder.adapter)


def _read(run: str | Path, device: str, settings: config.Extract | None, *, accept_changes: bool) -> _Run:
    """Read and check the files of a run that can be checked without loading the model."""
    folder = RunFolder(Path(run))
    recipe, task = folder.config(), folder.adapter_task(accept_changes=accept_changes)
    settings = settings or recipe.extract
    require_grammar(settings, on_choices=recipe.train.on_choices)
    if task.reads:
        require_reading(settings)
    check_head_files(folder.adapter, task)
    require_merging(settings, recipe.model.base)
    return _Run(folder, recipe, task, folder.model().model_copy(update={"device": device}), settings)


def require_merging(settings: config.Extract, base: config.Base) -> None:
    """Check that the adapter can be merged into the base if the settings ask for it.

    Raises:
        ConfigError: `extract.merge` is `always` and the base is NF4 or INT8, which bitsandbytes quantises while it
            reads the weights.
    """
    if settings.merge == "always" and base in ("nf4", "int8"):
        raise ConfigError(
            f"extract.merge=always, and the run's base is {base}, into which no adapter can be merged; set "
            "extract.merge=auto, which computes it beside the base"
        )


def _by_base(runs: Sequence[_Run]) -> Mapping[tuple[object, ...], list[int]]:
    """Group the indices of runs that can share a base model; a run that cannot share is a group of its own."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, run in enumerate(runs):
        source = Path(run.model.source)
        base = (str(source.resolve()) if source.is_dir() else run.model.source, run.model.base, run.model.verify)
        shares = is_shareable(run.folder.adapter) and not run.is_merged
        groups.setdefault(base if shares else (number,), []).append(number)
    return groups


def _load_alone(run: _Run) -> Extractor:
    began = time.perf_counter()
    adapter = run.folder.adapter
    if run.is_merged and run.model.base == "fp8":
        loaded = _load_requantised(run)
        model = loaded.model
    else:
        loaded = load(run.model, tokenizer_folder=adapter)
        model = open_trained(loaded.model, adapter, run.task, merge=not loaded.quantized)
    _warn_of_another_base(run.folder, run.model.source, loaded.path)
    pack_weights(model)
    extractor = _extractor(run, model, loaded)
    log.info("%s: loaded in %.1f s, %s", run.folder.path, time.perf_counter() - began, _place(loaded))
    return extractor


def _load_requantised(run: _Run) -> Loaded:
    """Load a run's base with the adapter merged before it is quantised to FP8, and the span head if there is one."""
    adapter = run.folder.adapter
    loaded = load(run.model, tokenizer_folder=adapter, change=partial(load_adapter, folder=adapter, merge=True))
    if run.task.reads:
        load_head(loaded.model, adapter, run.task)
    log.warning(
        "%s: the adapter was merged before the base was quantised to FP8 (extract.merge=always): scores and entities "
        "may differ a little from those of the training's evaluation",
        run.folder.path,
    )
    return loaded


def _load_together(runs: Sequence[_Run]) -> list[Extractor]:
    """Load several runs over one base model, whose adapters are not merged."""
    began = time.perf_counter()
    files = [read_files(run.model.source, run.folder.adapter) for run in runs]
    loaded = load(runs[0].model, files[0])
    for run in runs:
        _warn_of_another_base(run.folder, run.model.source, loaded.path)
    model, activations = open_together(loaded.model, [(run.folder.adapter, run.task) for run in runs])
    extractors = []
    for run, own, activate in zip(runs, files, activations, strict=True):
        activate()
        extractor = _extractor(run, model, Loaded(model, own.tokenizer, loaded.path, loaded.device, loaded.dtype))
        extractor.scheduler.activate = activate
        extractors.append(extractor)
    names = ", ".join(str(run.folder.path) for run in runs)
    log.info("%s: loaded over one base in %.1f s, %s", names, time.perf_counter() - began, _place(loaded))
    return extractors


def _extractor(run: _Run, model: CausalLM, loaded: Loaded) -> Extractor:
    head = head_of(model) if run.task.reads else None
    spans = run.recipe.spans if head is None else head.config.settings
    encoder = make_encoder(loaded.tokenizer, run.task, spans, run.recipe.train.max_tokens)
    extractor = Extractor(model, encoder, run.settings, on_choices=run.recipe.train.on_choices)
    extractor.run = run.folder.path
    return extractor


def _place(loaded: Loaded) -> str:
    return f"in {str(loaded.dtype)[6:]} on {loaded.device}"


def _require_options(device: str, settings: object) -> None:
    require_settings(settings)
    if device not in DEVICES:
        expect(device, str, "device", f"one of {', '.join(DEVICES)}")
        raise ConfigError(f"unknown device {device!r}; {nearest(device, DEVICES)}")


def _calibration(run: Path, min_score: float | None) -> Calibration | None:
    calibration = Calibration.load(run)
    return calibration if min_score is None else (calibration or Calibration()).with_min_score(min_score)


def _warn_of_another_base(run: RunFolder, source: str, path: Path) -> None:
    """Log a warning if the base model in a local folder is not the one that the run was trained on.

    Models from hubs and packages are verified when they are loaded, so they are not checked here.
    """
    if not Path(source).is_dir() or not run.environment_file.is_file():
        return
    recorded = run.environment().get("model_sha256")
    if recorded is not None and recorded != hash_model(path):
        log.warning("%s: the files of the base model are not those that the run was trained on: %s", run.path, path)
