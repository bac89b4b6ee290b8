"""Audits, memory and time of a recipe before anything is spent.

Each audit is a named check with what was found and a remedy; `plan` exits with 1 when one fails, and
`train` refuses to start. Memory is predicted from the model's config: the weights are exact, the
activations an estimate that the first measured steps are held against.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from spantune.config import Config
from spantune.corpus import shared_texts
from spantune.errors import ModelError
from spantune.load import card_problems, pick_device, pick_dtype
from spantune.lora import Coverage, coverage, unmatched_error
from spantune.loss import HEAD_CHUNK
from spantune.pack import fill
from spantune.prepare import Prepared

GIB = 2**30
MEMORY = "the run fits into memory"


@dataclass(frozen=True)
class Audit:
    """One check: its name, whether it holds, what was found, and what to do when it does not.

    `waived` is the setting by which the recipe asks for the flaw, if it does.
    """

    name: str
    ok: bool
    found: str
    remedy: str
    waived: str | None = None


@dataclass(frozen=True)
class Estimate:
    """Predicted memory in GiB by part, tokens a step and seconds a step."""

    base_gib: float
    adapters_gib: float
    activations_gib: float
    logits_gib: float
    available_gib: float
    tokens_per_step: int
    tokens_unpacked: int
    steps: int
    step_seconds: float

    @property
    def total_gib(self) -> float:
        """Predicted peak."""
        return self.base_gib + self.adapters_gib + self.activations_gib + self.logits_gib

    def as_dict(self) -> dict[str, float]:
        """The figures, rounded."""
        values = asdict(self) | {"total_gib": self.total_gib}
        return {key: value if isinstance(value, int) else round(value, 3) for key, value in values.items()}


@dataclass(frozen=True)
class Plan:
    """The audits and the estimate of a recipe."""

    audits: tuple[Audit, ...]
    estimate: Estimate

    @property
    def failed(self) -> list[Audit]:
        """Audits that do not hold and that the recipe does not waive."""
        return [audit for audit in self.audits if not audit.ok and not audit.waived]

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {
            "ok": not self.failed,
            "audits": [asdict(audit) for audit in self.audits],
            "estimate": self.estimate.as_dict(),
        }


def make_plan(prepared: Prepared) -> Plan:
    """Audit a prepared recipe and predict its memory and time."""
    found = coverage(skeleton(prepared.model_config), prepared.recipe.lora)
    estimate = _estimate(prepared, found)
    audits = [
        _targets(prepared.recipe, found),
        _card(prepared),
        _stop(prepared),
        _truncation(prepared),
        _template(prepared),
        _leak("dev shares no text with train", prepared, dev=True),
        _leak("test shares no text with train", prepared, dev=False),
        _memory(estimate),
        _disk(prepared.recipe, estimate),
    ]
    return Plan(tuple(audits), estimate)


def require(plan: Plan) -> None:
    """Raise ModelError with every failed audit; predicted memory is a warning, since it is an estimate."""
    failed = [audit for audit in plan.failed if audit.name != MEMORY]
    if failed:
        raise ModelError("\n".join(f"audit failed: {audit.name}: {audit.found}; {audit.remedy}" for audit in failed))


def skeleton(model_config: Any) -> Any:
    """The model without weights, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config)


def _targets(recipe: Config, found: Coverage) -> Audit:
    name = "every LoRA target matches"
    problem = unmatched_error(found)
    covered = f"{', '.join(found.matched)}: {found.share:.0%} of the linear weights"
    waived = "lora.allow_unmatched" if recipe.lora.allow_unmatched else None
    return Audit(name, problem is None, problem or covered, "set lora.targets=all-linear", waived)


def _card(prepared: Prepared) -> Audit:
    problems = card_problems(prepared.model_config, prepared.tokenizer)
    waived = None if prepared.recipe.model.verify else "model.verify"
    found = "; ".join(problems) or "special tokens and RoPE as expected, EOS ≠ PAD"
    return Audit("the model is what its card says", not problems, found, "take the current upload of the model", waived)


def _stop(prepared: Prepared) -> Audit:
    stop = prepared.encoder.stop_id
    missing = sum(example.ids[-1] != stop or example.answer_start >= len(example.ids) for example in prepared.examples)
    token = prepared.tokenizer.convert_ids_to_tokens(stop)
    found = f"{missing} of {len(prepared.examples)} samples lack it" if missing else f"{token} ends every sample"
    return Audit("the stop token is in the loss", not missing, found, "remove train.cut_tokens", _cuts(prepared))


def _truncation(prepared: Prepared) -> Audit:
    longest = max(len(example.ids) for example in prepared.examples)
    found = (
        f"{prepared.cut} of {len(prepared.examples)} samples are cut" if prepared.cut else f"longest: {longest} tokens"
    )
    remedy = "remove train.cut_tokens; data.too_long=split keeps offsets"
    return Audit("no truncation", not prepared.cut, found, remedy, _cuts(prepared))


def _cuts(prepared: Prepared) -> str | None:
    return "train.cut_tokens" if prepared.recipe.train.cut_tokens else None


def _template(prepared: Prepared) -> Audit:
    encoder, problems = prepared.encoder, 0
    own = prepared.task.template == "chat"
    waived = None if own else "task.template"
    for document, example in list(zip(prepared.splits.train, prepared.examples, strict=True))[:200]:
        problems += tuple(encoder.prompt_ids(document.text))[: len(example.ids)] != example.prompt
    found = "training ids equal serving ids" if not problems else f"{problems} documents differ"
    if not own:
        found = "the tutorial's literal prompt, whose <im_sep> is four ordinary tokens"
    return Audit("the tokenizer's chat template is used", own and not problems, found, "set task.template=chat", waived)


def _leak(name: str, prepared: Prepared, dev: bool) -> Audit:
    other = prepared.splits.dev if dev else prepared.splits.test
    shared = shared_texts(prepared.splits.train, other)
    found = (
        f"{len(shared)} shared texts, such as {shared[0][:40]!r}" if shared else f"{len(other)} documents, none shared"
    )
    return Audit(name, not shared, found, "remove the shared texts from one side")


def _memory(estimate: Estimate) -> Audit:
    fits = estimate.total_gib < estimate.available_gib
    found = f"about {estimate.total_gib:.1f} GiB of {estimate.available_gib:.1f}"
    return Audit(
        MEMORY, fits, found, "lower train.pack_tokens, set train.gradient_checkpointing=on, or a smaller model"
    )


def _disk(recipe: Config, estimate: Estimate) -> Audit:
    parent = next(
        path for path in [recipe.run_folder.absolute(), *recipe.run_folder.absolute().parents] if path.exists()
    )
    free = shutil.disk_usage(parent).free / GIB
    needed = 4 * estimate.adapters_gib + 0.1  # adapter, two checkpoints with optimizer state, predictions
    return Audit("disk", free > needed, f"{free:.1f} GiB free, about {needed:.1f} needed", "free some space")


def _estimate(prepared: Prepared, found: Coverage) -> Estimate:
    recipe, model_config = prepared.recipe, prepared.model_config
    device = pick_device(recipe.model.device)
    width = 2 if pick_dtype(recipe.model.base, device) == torch.bfloat16 else 4
    model = skeleton(model_config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    adapters = _adapter_weights(model, found, recipe.lora.rank)
    budget = prepared.pack_tokens(device.type)
    prefix = len(prepared.prefix)
    rest = [len(example.ids) - prefix for example in prepared.examples]
    batch = min(recipe.train.batch_examples, len(rest))
    share = batch / len(rest)
    packs = len(fill(rest, budget - prefix))
    packed = round((sum(rest) + packs * prefix) * share)
    per_token = model_config.hidden_size * model_config.num_hidden_layers
    kept = 1 if checkpointing(recipe, device) else 16  # hidden states kept per layer and token; 16 is a rule of thumb
    working = 8 * model_config.hidden_size + 4 * model_config.intermediate_size
    steps = recipe.train.max_steps or round(recipe.train.epochs * -(-len(rest) // recipe.train.batch_examples))
    flops = (4 + 2 * checkpointing(recipe, device)) * found.total * packed
    return Estimate(
        base_gib=weights * width / GIB,
        adapters_gib=adapters * 16 / GIB,  # fp32 weight, gradient and two moments
        activations_gib=budget * (per_token * kept + working * 2) * width / GIB,
        logits_gib=HEAD_CHUNK * model_config.vocab_size * (width + 8) / GIB,
        available_gib=_available(device) / GIB,
        tokens_per_step=packed,
        tokens_unpacked=round(sum(len(example.ids) for example in prepared.examples) * share),
        steps=steps,
        step_seconds=flops / _rate(device, width),
    )


def compiling(recipe: Config, device: torch.device) -> bool:
    """Whether the decoder layers are compiled for training; bitsandbytes' are not, unless asked for."""
    settings = recipe.train
    able = device.type == "cuda" and settings.pack == "shared" and recipe.model.base not in ("nf4", "int8")
    return settings.compile == "on" or (settings.compile == "auto" and able)


def checkpointing(recipe: Config, device: torch.device) -> bool:
    """Whether whole layers are recomputed in the backward pass."""
    return not compiling(recipe, device) and _checkpointing(recipe, device)


def _checkpointing(recipe: Config, device: torch.device) -> bool:
    return recipe.train.gradient_checkpointing == "on" or (
        recipe.train.gradient_checkpointing == "auto" and device.type == "cuda"
    )


def _adapter_weights(model: Any, found: Coverage, rank: int) -> int:
    head = model.get_output_embeddings()
    return sum(
        rank * sum(module.weight.shape)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in found.matched and isinstance(module, torch.nn.Linear) and module is not head
    )


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 8 * GIB


def _rate(device: torch.device, width: int, size: int = 2048) -> float:
    """FLOP/s of a matrix product on this device, half of which a training step is taken to reach."""
    dtype = torch.bfloat16 if width == 2 else torch.float32
    left = torch.randn(size if device.type == "cuda" else 512, 1024, device=device).to(dtype)
    right = torch.randn(1024, 1024, device=device).to(dtype)
    for timed in (False, True):
        start = time.perf_counter()
        for _ in range(8):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        if timed:
            return 0.5 * 8 * 2 * left.shape[0] * 1024 * 1024 / (time.perf_counter() - start)
    raise AssertionError
