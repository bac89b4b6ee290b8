"""A warm start, `train.from`: a run that begins with the adapter of an earlier run instead of a new one.

The adapter keeps its shape (rank, alpha, targets and the like); a recipe that states another shape is refused. The base
model and the answer format must be the same. The task must have all labels of the earlier task, and may have more. A
span head is trained on too, and gets a type for each added label. The optimizer and the schedule start anew. The
adapter at the beginning is evaluated like the later ones, so the best adapter of the run is never worse on dev. The run
keeps a copy of this adapter, so the earlier run is not needed to resume it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spantune.core import Config, ConfigError, Label, RunError, TaskSpec, config, nearest
from spantune.encoding import make_task
from spantune.models import HeadConfig, ModelFiles, hash_model, read_head_config, read_lora
from spantune.runs import RunFolder, change_since, trained_files
from spantune.training.recommendation import writing_keys

RATE_SHARE = 1 / 3
"""The learning rate of a warm start, as a share of the earlier run's, if the recipe names no rate."""
_SHAPE = ("full", "rank", "alpha", "rslora", "dora", "rank_pattern")
_SAME = ("answer", "template", "empty_answer")
_HEAD_SHAPE = ("view", "instruction", "size", "convolution", "types")


@dataclass(frozen=True)
class Start:
    """The adapter that a run begins with.

    Args:
        folder: the adapter's folder.
        targets: the names of the modules with an adapter; empty for the weights of full fine-tuning.
        notes: the differences from the earlier run, in sentences.
        longest: the most characters of an entity that its span head can read; None without a head.
    """

    folder: Path
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    longest: int | None = None


def warm_start(recipe: Config, files: ModelFiles, own_copy: Path | None = None) -> tuple[Config, Start | None]:
    """Return the recipe with the values that a warm start takes from the earlier run, and the adapter to begin with.

    These values are the shape of the adapter and of its head and, where the recipe leaves them open, the answer format,
    the loss and a third of the learning rate.

    Args:
        recipe: the recipe.
        files: the files of the base model.
        own_copy: for a run that is resumed, its own copy of the adapter, which is read instead of `train.from`.

    Returns:
        The recipe and the adapter; the unchanged recipe and None without `train.from`.

    Raises:
        ConfigError: `train.from` is no run or adapter folder, or the recipe does not agree with it.
        RunError: the adapter was changed since it was written, or its task is damaged.
        ModelError: the adapter is damaged.
    """
    if recipe.train.from_ is None:
        return recipe, None
    path = own_copy or Path(recipe.train.from_)
    adapter, run = _find(path)
    if change := change_since(adapter):
        raise RunError(f"train.from: {adapter} was changed after training: {change}; restore it, or name another run")
    shape = read_lora(adapter)
    before = TaskSpec.load(adapter)
    update: dict[str, object] = {"lora": _agreed(path, recipe.lora, shape, run)}
    if recipe.task.answer is None:
        update["task"] = recipe.task.model_copy(update={"answer": before.answer})
    notes: list[str] = []
    if run:
        update["train"], notes = _with_training_of(path, recipe, run.config().train)
    head = read_head_config(adapter, before) if before.reads else None
    if head is not None and recipe.task.answer in (None, "spans"):
        update["spans"] = _agreed_head(path, recipe.spans, head, run)
        if keys := writing_keys(recipe):
            raise ConfigError(
                f"train.from: {path} was trained to read spans, and {keys[0]} is for writing; leave it out, or leave "
                "train.from out"
            )
    recipe = recipe.model_copy(update=update)
    if own_copy is None:
        notes += _require_same_base(path, run, files)
        notes += _require_same_task(path, before, make_task(recipe.task))
    targets = () if isinstance(shape.targets, str) else shape.targets
    return recipe, Start(adapter, targets, tuple(notes), head.longest if head else None)


def _with_training_of(path: Path, recipe: Config, earlier: config.Train) -> tuple[config.Train, list[str]]:
    """Fill in the loss and the learning rate of the section `train` by those of the earlier run, where they are open.

    Returns:
        The section, and a note if its own learning rate is too high for a warm start.
    """
    settings, rate = recipe.train, earlier.learning_rate
    update: dict[str, object] = {}
    if settings.loss_on is None and recipe.extract.grounded and settings.pack == "shared" and not settings.cut_tokens:
        update["loss_on"] = earlier.loss_on
    if settings.learning_rate is None and rate is not None:
        update["learning_rate"] = rate * RATE_SHARE
    notes = []
    if settings.learning_rate is not None and rate is not None and settings.learning_rate >= rate:
        lower = f"train.learning_rate={rate * RATE_SHARE:.0e}"
        notes.append(
            f"train.from: the learning rate {settings.learning_rate:g} is that of {path} or higher, and may undo what "
            f"its adapter has learnt; try a third of it: {lower}"
        )
    return settings.model_copy(update=update), notes


def _find(path: Path) -> tuple[Path, RunFolder | None]:
    """Return the adapter folder that `train.from` names, and its run if that is known.

    Raises:
        ConfigError: `path` is no run with an adapter and no adapter folder.
    """
    run = RunFolder(path)
    if run.is_run:
        if not run.adapter.is_dir():
            raise ConfigError(f"train.from: {path} has no adapter yet; finish it: spantune train --resume {path}")
        return run.adapter, run
    if not trained_files(path):
        raise ConfigError(f"train.from: {path} is no run folder and no adapter folder; name one, such as runs/demo")
    parent = RunFolder(path.absolute().parent)
    return path, parent if parent.is_run and parent.adapter == path.absolute() else None


def _require_same_base(path: Path, run: RunFolder | None, files: ModelFiles) -> list[str]:
    """Check that the base model is that of the earlier run; returns a note if that is not recorded.

    Raises:
        ConfigError: the base model is another one.
    """
    recorded = run.environment().get("model_sha256") if run else None
    if recorded is None:
        return [f"train.from: which base model {path} was trained on is not recorded; only its shapes are compared"]
    if recorded != hash_model(files.folder):
        assert run is not None
        raise ConfigError(
            f"train.from: {path} was trained on another base model, {run.config().model.source}, or its files have "
            "changed; set model.source to it, or leave train.from out"
        )
    return []


def _require_same_task(path: Path, before: TaskSpec, task: TaskSpec) -> list[str]:
    """Check that the adapter can be trained further for this task; returns notes on what else differs.

    Raises:
        ConfigError: a label of the earlier task is missing, or the answer format is another one.
    """
    if missing := [code for code in before.codes if code not in task.codes]:
        raise ConfigError(
            f"train.from: {path} was trained for the label {missing[0]!r}, which is not one of the task's; "
            f"{nearest(missing[0], task.codes)}. Add it to task.labels, or leave train.from out"
        )
    for key in _SAME[:1] if task.reads and before.reads else _SAME:
        if (old := getattr(before, key)) != (new := getattr(task, key)):
            raise ConfigError(
                f"train.from: {path} was trained with task.{key}={old}, and this recipe has {new}; set it to the same, "
                "or leave train.from out"
            )
    notes = []
    if added := [code for code in task.codes if code not in before.codes]:
        notes.append(f"train.from: {path} does not know the labels {', '.join(added)}; they are learnt anew")
    known = {label.code: label for label in before.labels}
    changed = [_key(label, known[label.code]) for label in task.labels if label != known.get(label.code, label)]
    names = [key for key in ("language", "nested") if getattr(before, key) != getattr(task, key)]
    names += ["instruction"] if before.instruction != task.instruction and not added else []
    if different := [*names, *changed]:
        notes.append(f"train.from: the task is not that of {path}; it differs in {', '.join(different)}")
    return notes


def _key(label: Label, before: Label) -> str:
    part = "name" if label.name != before.name else "description"
    return f"the {part} of {label.code}"


def _agreed(path: Path, stated: config.Lora, shape: config.Lora, run: RunFolder | None) -> config.Lora:
    """Return the section `lora` with the adapter's shape.

    Raises:
        ConfigError: the recipe states another shape.
    """
    given = {name for name in stated.model_fields_set if getattr(stated, name) is not None}
    if given and stated.full != shape.full:
        held, wanted = ("full fine-tuning", "LoRA") if shape.full else ("LoRA", "full fine-tuning")
        raise ConfigError(
            f"train.from: {path} holds weights of {held}, and the recipe's section lora asks for {wanted}; leave lora "
            "out, or name another run"
        )
    for name in _SHAPE:
        if name in given and (value := getattr(stated, name)) != (own := getattr(shape, name)):
            raise ConfigError(
                f"lora.{name} is {value}, and the adapter of train.from ({path}) has {own}; leave lora.{name} out, or "
                f"set it to {own}"
            )
    update = {name: getattr(shape, name) for name in _SHAPE}
    if "targets" not in given:
        before = run.config().lora if run else shape
        update |= {"targets": before.targets, "allow_unmatched": before.allow_unmatched}
    return stated.model_copy(update=update)


def _agreed_head(path: Path, stated: config.Spans, head: HeadConfig, run: RunFolder | None) -> config.Spans:
    """Return the section `spans` with the head's shape and, where it is open, a third of the earlier learning rate.

    Raises:
        ConfigError: the recipe states another shape.
    """
    for name in _HEAD_SHAPE:
        if name in stated.model_fields_set and (value := getattr(stated, name)) != (own := getattr(head, name)):
            raise ConfigError(
                f"spans.{name} is {value}, and the head of train.from ({path}) has {own}; leave spans.{name} out, or "
                f"set it to {own}"
            )
    update = {name: getattr(head, name) for name in _HEAD_SHAPE}
    if run and "learning_rate" not in stated.model_fields_set:
        update["learning_rate"] = run.config().spans.learning_rate * RATE_SHARE
    return stated.model_copy(update=update)
