"""Audits of a recipe before training, with its predicted memory and time.

Each audit is a named check with its result and a remedy. If one fails, `spantune plan` exits with 1, and `train` does
not start (except for the audit of memory). Memory and time come from `estimate`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from spantune.core import Config, ConfigError, ModelError, as_config, config, foreign, framed_html, number, table_html
from spantune.data import shared_texts
from spantune.encoding import Encoder, entities_over
from spantune.extraction import refusals
from spantune.models import (
    CausalLM,
    Coverage,
    ModelConfig,
    card_problems,
    check_attention,
    coverage,
    pick_device,
    silenced,
    unmatched_error,
    unranked_error,
)
from spantune.training.doubts import PlanWarning, doubts
from spantune.training.estimate import Estimate, estimate, kept
from spantune.training.layers import compiling
from spantune.training.memory import GIB
from spantune.training.pack_size import pack_size, with_pack_tokens
from spantune.training.preparation import Prepared, overlapping, prepare, splits_with_files
from spantune.training.ranks import require_strategy
from spantune.training.requirements import Audit, requirement_audits

MEMORY = "the run fits into memory"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The audits of a recipe, its predicted memory and time, and warnings of what is unlikely to work."""

    audits: tuple[Audit, ...]
    estimate: Estimate
    warnings: tuple[PlanWarning, ...] = ()

    def __repr__(self) -> str:
        failed = f"{len(self.failed)} of {number(len(self.audits), 'audit')} failed"
        warned = f", {number(len(self.warnings), 'warning')}" if self.warnings else ""
        return f"Plan({failed}{warned}, about {self.estimate.memory.total_gib:.1f} GiB)"

    def _repr_html_(self) -> str:
        rows = [
            (audit.name, "ok" if audit.ok else "waived", audit.found)
            if audit.ok or audit.waived
            else (audit.name, "FAILED", f"{audit.found} → {audit.remedy}")
            for audit in self.audits
        ]
        rows += [(warning.name, "warning", f"{warning.found} → {warning.remedy}") for warning in self.warnings]
        predicted = [(key.replace("_", " "), str(value)) for key, value in self.estimate.as_dict().items()]
        return framed_html(table_html(("audit", "", "found"), rows) + table_html(("predicted", ""), predicted))

    @property
    def failed(self) -> list[Audit]:
        """The audits that fail and that the recipe does not waive."""
        return [audit for audit in self.audits if not audit.ok and not audit.waived]

    def as_dict(self) -> dict[str, object]:
        """Return the plan as one JSON object: `ok`, `audits`, `warnings` and `estimate`."""
        return {
            "ok": not self.failed,
            "audits": [asdict(audit) for audit in self.audits],
            "warnings": [asdict(warning) for warning in self.warnings],
            "estimate": self.estimate.as_dict(),
        }


@silenced()
def plan_recipe(
    recipe: Config | Mapping[str, object] | str | Path, overrides: list[str] | tuple[str, ...] = ()
) -> Plan:
    """Audit a recipe and predict its memory and time; nothing is trained and nothing is written.

        plan = spantune.plan("recipe.yaml")
        print([audit.remedy for audit in plan.failed], plan.estimate.memory.total_gib)

    Args:
        recipe: the path of a recipe file, a Config, or a mapping with the sections of a recipe.
        overrides: values that replace those of the recipe, each as `section.key=value` with the value in YAML, as on
            the command line.

    Raises:
        SpantuneError: the recipe, the data or the model cannot be used.
    """
    return make_plan(prepare(as_config(recipe, overrides)))


def make_plan(prepared: Prepared, *, is_new: bool = True, ranks: int = 1) -> Plan:
    """Audit a prepared recipe and predict its memory and time.

    Args:
        prepared: the recipe with its data and model files.
        is_new: False for a run that is resumed.
        ranks: the number of processes that train together, each on a device like this one.

    Raises:
        ModelError: no causal LM can be made of the model's configuration.
    """
    prepared, model = settled(prepared, ranks), skeleton(prepared.files.config)
    covered, predicted = coverage(model, prepared.recipe.lora), estimate(prepared, model, ranks)
    audits = [
        *requirement_audits(prepared.recipe, is_new=is_new),
        *([_ranks(prepared.recipe, ranks)] if ranks > 1 else []),
        _attention(prepared),
        _targets(prepared.recipe, covered),
        *_start(prepared, covered),
        _card(prepared),
        *([] if prepared.task.reads else [_stop(prepared)]),
        _truncation(prepared),
        _readable(prepared) if prepared.task.reads else _template(prepared),
        _leak("dev shares no text with train", prepared, dev=True),
        _leak("test shares no text with train", prepared, dev=False),
        _window(prepared),
        _extractable(prepared),
        _nesting(prepared),
        _memory(predicted),
        _disk(prepared.recipe, predicted),
    ]
    return Plan(tuple(audits), predicted, tuple(doubts(prepared, predicted)))


def settled(prepared: Prepared, ranks: int = 1) -> Prepared:
    """Return `prepared` with the values filled in that are chosen for this device: `train.pack_tokens`, `train.keep`.

    What layers keep for the backward pass depends on the size of packs, which is therefore chosen first.
    """
    model = skeleton(prepared.files.config)
    prepared = with_pack_tokens(prepared, pack_size(prepared, model, ranks))
    recipe = prepared.recipe
    if recipe.train.keep != "auto":
        return prepared
    keep = kept(prepared, model, ranks) if compiling(recipe, pick_device(recipe.model.device)) else "some"
    return replace(prepared, recipe=recipe.model_copy(update={"train": recipe.train.model_copy(update={"keep": keep})}))


def require(plan: Plan) -> None:
    """Log the warnings of a plan, and check that no audit failed.

    If the audit of memory fails, that is logged as a warning too, since memory is only predicted.

    Raises:
        ModelError: audits failed; the error names all of them.
    """
    failed = [audit for audit in plan.failed if audit.name != MEMORY]
    for audit in (audit for audit in plan.failed if audit.name == MEMORY):
        log.warning("%s is in doubt: %s; if it runs out, %s", audit.name, audit.found, audit.remedy)
    for warning in plan.warnings:
        log.warning("%s", warning)
    if failed:
        raise ModelError("\n".join(f"audit failed: {audit.name}: {audit.found}; {audit.remedy}" for audit in failed))


def skeleton(model_config: ModelConfig) -> CausalLM:
    """Make the model without weights, on the meta device.

    Raises:
        ModelError: transformers cannot make a causal LM of this configuration.
    """
    from transformers import AutoModelForCausalLM

    where = getattr(model_config, "_name_or_path", "") or "the model"
    problem = "no causal language model can be made from config.json"
    with foreign(where, problem, "restore it, or take another model"), torch.device("meta"):
        model: CausalLM = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
    return model


def _targets(recipe: Config, coverage: Coverage) -> Audit:
    name = "every LoRA target matches"
    unmatched, unranked = unmatched_error(coverage), unranked_error(coverage)
    problem = unranked or unmatched
    covered = str(coverage)
    waived = "lora.allow_unmatched" if recipe.lora.allow_unmatched and not unranked else None
    remedy = "mend lora.rank_pattern" if unranked else "set lora.targets=all-linear"
    return Audit(name, problem is None, problem or covered, remedy, waived)


def _attention(prepared: Prepared) -> Audit:
    problem = None
    try:
        check_attention(prepared.files.config)
    except ModelError as error:
        problem = str(error)
    found = problem or "full attention, or with a window"
    return Audit("the model's attention is supported", problem is None, found, "take another model")


def _start(prepared: Prepared, covered: Coverage) -> list[Audit]:
    """Check that the adapter of a warm start is on the modules that the recipe names; no audit without a warm start."""
    start = prepared.start
    if start is None:
        return []
    differing = sorted(set(start.targets) ^ set(covered.matched))
    result = "; ".join(start.notes) or f"{start.folder}: same base model, same task, same shape"
    if differing:
        result = f"{start.folder} is on {', '.join(start.targets)}, and lora.targets differs in {', '.join(differing)}"
    return [Audit("the adapter of train.from fits", not differing, result, "leave lora.targets out")]


def _card(prepared: Prepared) -> Audit:
    problems = card_problems(prepared.files.config, prepared.tokenizer)
    waived = None if prepared.recipe.model.verify else "model.verify"
    result = "; ".join(problems) or "special tokens and RoPE as expected, EOS ≠ PAD"
    return Audit(
        "the model is what its card says", not problems, result, "take the current upload of the model", waived
    )


def _readable(prepared: Prepared) -> Audit:
    """Check that no entity is too long to be read."""
    longest = config.filled(prepared.recipe.spans.longest)
    too_long = [
        (f"{path}: document {document.id!r}, {entity.label} [{entity.start}, {entity.end})", entity.end - entity.start)
        for documents, path in splits_with_files(prepared.recipe, prepared.splits)
        for document, entity in entities_over(documents, longest)
    ]
    found = f"at most {longest} characters"
    if too_long:
        first, more = too_long[0][0], f" and {len(too_long) - 1} more" if len(too_long) > 1 else ""
        found = f"over spans.longest={longest} characters: {first}{more}"
    remedy = f"set spans.longest={max((length for _, length in too_long), default=longest)}"
    return Audit("every entity can be read", not too_long, found, remedy)


def _stop(prepared: Prepared) -> Audit:
    encoder, examples = prepared.encoder, prepared.written
    assert isinstance(encoder, Encoder)
    stop = encoder.stop_id
    missing = sum(example.ids[-1] != stop or example.answer_start >= len(example.ids) for example in examples)
    token = prepared.tokenizer.convert_ids_to_tokens(stop)
    result = f"{missing} of {len(prepared.examples)} samples lack it" if missing else f"{token} ends every sample"
    return Audit("the stop token is in the loss", not missing, result, "remove train.cut_tokens", _cuts(prepared))


def _truncation(prepared: Prepared) -> Audit:
    longest = max(len(example.ids) for example in prepared.examples)
    result = (
        f"{prepared.cut} of {len(prepared.examples)} samples are cut" if prepared.cut else f"longest: {longest} tokens"
    )
    remedy = "data.too_long=split keeps offsets"
    if not prepared.task.reads:
        remedy = f"remove train.cut_tokens; {remedy}"
    return Audit("no truncation", not prepared.cut, result, remedy, _cuts(prepared))


def _cuts(prepared: Prepared) -> str | None:
    return "train.cut_tokens" if prepared.recipe.train.cut_tokens else None


def _template(prepared: Prepared) -> Audit:
    encoder, problems = prepared.encoder, 0
    is_chat = prepared.task.template == "chat"
    waived = None if is_chat else "task.template"
    for document, example in list(zip(prepared.splits.train, prepared.written, strict=True))[:200]:
        problems += tuple(encoder.prompt_ids(document.text))[: len(example.ids)] != example.prompt
    result = "training ids equal serving ids" if not problems else f"{problems} documents differ"
    if not is_chat:
        result = "the tutorial's literal prompt, whose <im_sep> is four ordinary tokens"
    return Audit(
        "the tokenizer's chat template is used", is_chat and not problems, result, "set task.template=chat", waived
    )


def _leak(name: str, prepared: Prepared, dev: bool) -> Audit:
    documents = prepared.splits.dev if dev else prepared.splits.test
    shared = shared_texts(prepared.splits.train, documents)
    result = (
        f"{len(shared)} shared texts, such as {shared[0][:40]!r}"
        if shared
        else f"{number(len(documents), 'document')}, none shared"
    )
    if not dev and prepared.recipe.data.f1_on == "dev":
        result += " (there is no test set: the dev documents)"
    return Audit(name, not shared, result, "remove the shared texts from one side")


def _window(prepared: Prepared) -> Audit:
    window = prepared.files.config.max_position_embeddings
    size, document = max((len(example.ids), example.id) for example in prepared.examples)
    result = f"longest: {size} of {window} tokens"
    if size > window:
        path = config.name_of(prepared.recipe.data.train)
        result = f"{path}: document {document!r} takes {size} tokens, over the window of {window}"
    remedy = f"set train.max_tokens={window} and data.too_long=split"
    return Audit("every example fits the model's window", size <= window, result, remedy)


def _extractable(prepared: Prepared) -> Audit:
    """Check that evaluations can run: dev and test have documents, and extraction refuses none of them."""
    recipe, window = prepared.recipe, prepared.files.config.max_position_embeddings
    held_out = splits_with_files(recipe, prepared.splits)[1:]
    problems = []
    for documents, path in held_out if held_out[0] != held_out[1] else held_out[:1]:
        errors = [error.message for error in refusals(documents, prepared.encoder, recipe.extract, window)]
        if not documents:
            errors.append("no documents; name another corpus, or raise the limit")
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            problems.append(f"{path}: {errors[0]}{more}")
    dev, test = (len(documents) for documents, _ in held_out)
    counts = number(dev, "document of dev", "documents of dev")
    if recipe.data.f1_on == "test":
        counts += f" and {test:,} of test"
    result = "; ".join(problems) or f"{counts}, none refused"
    remedy = "mend these documents or settings: evaluation would end the run there"
    return Audit("every dev and test text can be extracted", not problems, result, remedy)


def _nesting(prepared: Prepared) -> Audit:
    """Check that no gold entities overlap if `task.nested` is false."""
    nested = prepared.task.nested
    found = [(overlapping(documents), path) for documents, path in splits_with_files(prepared.recipe, prepared.splits)]
    with_overlaps = {path: documents for documents, path in found if documents}
    count = sum(map(len, with_overlaps.values()))
    if nested:
        hint = "no entities overlap: task.nested=false would tell the model so, and rule out overlaps in its answers"
        result = f"entities overlap in {count} documents, as they may" if count else hint
    else:
        first = [f"{path}: {len(items)} documents, first {items[0].id!r}" for path, items in with_overlaps.items()]
        result = f"task.nested=false, and entities overlap in {'; '.join(first)}" if count else "no entities overlap"
    remedy = "set task.nested=true, or mend the annotation"
    return Audit("gold is nested only where the task is", nested or not count, result, remedy)


def _ranks(recipe: Config, ranks: int) -> Audit:
    """Check that each of `ranks` processes gets an example of every step, and that the base can be divided."""
    whole, problem, remedy = (
        config.filled(recipe.train.batch_examples),
        "",
        "start fewer, or raise train.batch_examples",
    )
    if ranks > whole:
        problem = f"{number(whole, 'example')} a step for {ranks} ranks"
    else:
        try:
            require_strategy(recipe)
        except ConfigError as error:
            problem, _, remedy = str(error).partition("; ")
    found = f"{ranks} ranks, {recipe.distributed.strategy}, {whole / ranks:.3g} examples a step each"
    return Audit("the ranks can share a step", not problem, problem or found, remedy)


def _memory(predicted: Estimate) -> Audit:
    parts = ", ".join(f"{key.removesuffix('_gib')} {value:.1f}" for key, value in asdict(predicted.memory).items())
    total, free = predicted.memory.total_gib, predicted.available_gib
    result = f"about {total:.1f} GiB ({parts}) of {free:.1f} free on {predicted.device}"
    remedy = "no setting makes it fit; take a smaller model or a larger device"
    if predicted.fitting is not None:
        chosen = predicted.fitting or {"train.keep": "none"}
        remedy = f"set {' '.join(f'{key}={value}' for key, value in chosen.items())}"
    return Audit(MEMORY, predicted.fits, result, remedy)


def _disk(recipe: Config, predicted: Estimate) -> Audit:
    parent = next(
        path for path in [recipe.run_folder.absolute(), *recipe.run_folder.absolute().parents] if path.exists()
    )
    free = shutil.disk_usage(parent).free / GIB
    needed = (
        4 * (predicted.memory.adapters_gib + predicted.memory.optimizer_gib) + 0.1
    )  # adapter, two checkpoints with optimizer state, predictions
    return Audit("disk", free > needed, f"{free:.1f} GiB free, about {needed:.1f} needed", "free some space")
