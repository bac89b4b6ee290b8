"""Merged weights: the base model with the run's training in its weights, which any engine can load.

The adapter is added in float32, and the sum is rounded once. If the base was quantised for training (FP8, NF4, int8),
it is read again from its own files, so that no quantisation error is exported.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spantune.core import foreign, waiting
from spantune.encoding import Encoder, TextEncoder, make_encoder
from spantune.export.card import write_card
from spantune.export.source import DTYPES, Source
from spantune.export.verify import (
    Differs,
    Expected,
    Verified,
    Written,
    extract_all,
    extractor_of,
    largest_difference,
    logits_of,
    require_close,
    require_same,
    sequences_of,
)
from spantune.models import NAME, CausalLM, load_adapter, load_head, load_tokenizer, pick_device


@dataclass(frozen=True)
class Merged:
    """A base model with the run's training merged into its float32 weights.

    `logits` are those of the run with its adapter unmerged, one tensor [places, vocabulary] for each sequence; empty if
    the export is not compared.
    """

    model: CausalLM
    logits: Sequence[Tensor] = field(repr=False, default=())


def write_merged(source: Source, out: Path) -> Written:
    """Write the merged model of a run into the folder `out`, and compare it with the run.

    Raises:
        ModelError: the base or the adapter cannot be loaded; Differs: the export computes something else than the run.
        DataError: the documents for the comparison cannot be read.
        OSError, SafetensorError: the files cannot be written.
    """
    sequences = sequences_of(source.encoder, source.documents)
    merged = merge(source, sequences)
    save_model(source, merged.model, out)
    write_card(source, "merged", out)
    if not source.documents:
        return Written()
    expected, rounding = _expected(source, merged, sequences)
    del merged
    return Written(_compare(source, out, expected, rounding))


def merge(source: Source, sequences: Sequence[Sequence[int]] = ()) -> Merged:
    """Load the base model and merge what the run trained; first compute the logits of `sequences` unmerged.

    Raises:
        ModelError: the base or the adapter cannot be loaded.
    """
    with waiting("merging …"):
        model = source.load_base()
        logits: list[Tensor] = []
        if sequences:
            apart = load_adapter(model, source.adapter)
            logits = logits_of(apart, sequences)
            model = apart if apart is model else apart.unload()
        return Merged(load_adapter(model, source.adapter, merge=True), logits)


def save_model(source: Source, model: CausalLM, out: Path) -> None:
    """Write weights, configuration and tokenizer of a float32 model into `out`; round the weights to `source.dtype`.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    from transformers import GenerationConfig

    for weight in model.parameters():  # in place, so that tied weights stay tied; buffers are not rounded
        weight.data = weight.data.to(DTYPES[source.dtype])
    model.config.use_cache = True
    encoder, tokenizer = source.encoder, source.files.tokenizer
    stop = encoder.stop_id if isinstance(encoder, Encoder) else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=source.recipe.extract.max_new_tokens,
    )
    with waiting("writing the weights …"):
        model.save_pretrained(str(out), max_shard_size=source.settings.shard_size)
    tokenizer.save_pretrained(str(out))
    source.task.save(out)
    copy_terms(source, out)


def copy_terms(source: Source, out: Path) -> None:
    """Copy the files with the licence and terms of the base model into `out`."""
    for path in source.terms:
        shutil.copyfile(path, out / path.name)


def as_float(model: CausalLM) -> CausalLM:
    """Convert the rounded weights of a model back to float32, in place, so that it computes in float32; return it."""
    for weight in model.parameters():
        weight.data = weight.data.float()
    model.config.use_cache = False
    return model


def ready(source: Source, model: CausalLM, folder: Path) -> CausalLM:
    """Prepare `model` for an Extractor: set the attention, and load the head in `folder` if the run reads spans."""
    model.set_attn_implementation(NAME)
    if source.task.reads:
        load_head(model, folder, source.task)
    return model


@torch.inference_mode()
def _expected(source: Source, merged: Merged, sequences: Sequence[Sequence[int]]) -> tuple[Expected, float | None]:
    """Return what the export must compute, and how far rounding moved a logit at most (None if nothing was rounded).

    Raises:
        Differs: the merged weights compute something else than base and adapter.
    """
    logits, rounding = written_logits(source, merged, sequences)
    extractions = extract_all(extractor_of(source, merged.model), source.documents, "run")
    return Expected(merged.logits if rounding is None else logits, extractions), rounding


def written_logits(
    source: Source, merged: Merged, sequences: Sequence[Sequence[int]]
) -> tuple[list[Tensor], float | None]:
    """Return the logits of the weights as they were written, and how far rounding moved a logit at most.

    The second value is None if the weights were not rounded.

    Raises:
        Differs: weights that were not rounded compute something else than base and adapter.
    """
    logits = logits_of(as_float(merged.model), sequences)
    moved = largest_difference(merged.logits, logits)
    if source.dtype != "fp32":
        return logits, moved
    require_close(moved, "the logits of the merged weights")
    return logits, None


def _compare(source: Source, out: Path, expected: Expected, rounding: float | None) -> Verified:
    """Load the export without spantune's loader, and compare it with the run.

    Raises:
        Differs: its tokenizer, logits or entities differ from the run's.
    """
    model, encoder = load_plain(source, out), encoder_of(source, out)
    sequences = sequences_of(encoder, source.documents)
    if sequences != sequences_of(source.encoder, source.documents):
        raise Differs("the exported tokenizer makes other token ids than the run's; nothing is exported; report it")
    difference = largest_difference(expected.logits, logits_of(model, sequences))
    require_close(difference, "the logits of the export")
    found = extract_all(extractor_of(source, ready(source, model, out), encoder), source.documents, "export")
    entities = require_same(expected.extractions, found)
    return Verified(len(source.documents), entities, difference, rounding)


def load_plain(source: Source, folder: Path) -> CausalLM:
    """Load a model folder with transformers alone, in float32.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    with waiting("loading the export …"), foreign(folder, "it cannot be loaded by transformers", "report it"):
        model: CausalLM = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    loaded: CausalLM = model.to(pick_device(source.settings.device)).eval()
    return loaded


def encoder_of(source: Source, out: Path) -> TextEncoder:
    """Return the run's encoder with the exported tokenizer."""
    encoder = source.encoder
    spans = source.recipe.spans if isinstance(encoder, Encoder) else encoder.settings
    return make_encoder(load_tokenizer(out), source.task, spans, source.recipe.train.max_tokens)
