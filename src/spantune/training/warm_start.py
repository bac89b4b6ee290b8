"""A warm start, `train.from`: a run that begins with what another one has trained instead of a new adapter.

The adapter's shape (rank, alpha, targets and the like) is that of the earlier run; what the recipe states must agree
with it. The base model and the answer format must be the same, and every label of the earlier task must still be one;
labels may be added. A head that reads spans goes on too, and grows by the labels that are added. The optimizer and the
schedule start anew. The adapter that a run began with counts among those that its evaluations choose from, so that the
run ends no worse on dev. The run keeps a copy of it, and is resumed without the earlier run.
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
"""The share of the earlier run's learning rate that a warm start begins with, where the recipe names no rate."""
_SHAPE = ("full", "rank", "alpha", "rslora", "dora", "rank_pattern")
_SAME = ("answer", "template", "empty_answer")
_HEAD_SHAPE = ("view", "instruction", "size", "convolution", "types")


@dataclass(frozen=True)
class Start:
    """The adapter that a run begins with.

    Args:
        folder: the adapter's folder.
        targets: the names of the modules that it is on; none where it is the weights of a full fine-tuning.
        notes: what differs from the run that it comes from, in sentences.
        longest: the most characters of an entity that its head reads; None where it has none.
    """

    folder: Path
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    longest: int | None = None


def warm_start(recipe: Config, files: ModelFiles, own_copy: Path | None = None) -> tuple[Config, Start | None]:
    """Return the recipe with the shape of the adapter that `train.from` names, and that adapter.

    Answer format and loss are those of the earlier run too, and the learning rate is a third of its, where the recipe
    names none. Without `train.from` the recipe is returned as it is, and None. A run that is resumed reads its own copy
    instead.

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
    """The section `train` with the loss of the earlier run and a part of its rate, where it names none; and notes."""
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
    """The adapter folder that `train.from` names, and its run where that is known."""
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
    """Refuse another base model than that of the run; returns a note where it is not known."""
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
    """Refuse a task that the adapter cannot go on with; returns what else differs."""
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
    """The `lora` section with the adapter's shape; what the recipe states must agree with it."""
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
    """The `spans` section with the head's shape, and a part of its rate; what the recipe states must agree with it."""
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
