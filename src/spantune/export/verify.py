"""The comparison of an export with the run that it was made of: logits, and entities of dev documents.

Both sides compute in float32 with the same numbers, so that they differ by the order of sums only. The run is computed
by spantune, with its adapter beside the base where the export is not rounded; the export is loaded from its folder by
transformers or PEFT alone. Weights that are exported in bf16 are compared with the run's weights rounded to bf16, under
the same bound: what is left is again the order of sums. How far the rounding itself moves the logits is reported too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spantune.core import Document, Extraction, ModelError, track
from spantune.encoding import Encoder, TextEncoder
from spantune.export.source import Source
from spantune.extraction import Extractor
from spantune.models import CausalLM

MOST = 1e-3
"""The most that a logit of an export may differ from the run's."""
LOGIT_DOCUMENTS = 8
"""The documents whose logits are compared."""
LOGIT_PLACES = 16
"""The places of a document at which they are, evenly over its tokens."""


class Differs(ModelError):
    """An export that does not compute what its run computes."""


@dataclass(frozen=True)
class Apart:
    """How far log-probabilities of the next token are from the run's, over some places: the median, and the most."""

    median: float
    most: float


@dataclass(frozen=True)
class Verified:
    """What a comparison found.

    Args:
        documents: whose entities were compared.
        entities: how many entities they have; in a GGUF file as the run has them, otherwise the same in both.
        logits: the largest difference of a logit; None where logits were not compared.
        rounding: how far the rounding to bf16 moved a logit at most; None where nothing was rounded.
        logprobs: how far log-probabilities differ, which are what llama.cpp's server tells; None of other exports.
        f1: the F1 between the entities of the run and of a GGUF file; None of other exports, which have the same.
    """

    documents: int
    entities: int
    logits: float | None = None
    rounding: float | None = None
    logprobs: Apart | None = None
    f1: float | None = None


@dataclass(frozen=True)
class Written:
    """What a writer says of the files that it wrote.

    `verified` is None where the export was not compared; `notes` are sentences for the user.
    """

    verified: Verified | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What an export must compute: the logits [places, vocabulary] of some prompts, and the entities of documents."""

    logits: Sequence[Tensor] = field(repr=False)
    extractions: Sequence[Extraction]


def sequences_of(encoder: TextEncoder, documents: Sequence[Document]) -> list[list[int]]:
    """Return the token ids of the first documents: prompt and gold answer, or what is read."""
    some = documents[:LOGIT_DOCUMENTS]
    if isinstance(encoder, Encoder):
        return [[*encoder.prompt_ids(document.text), *encoder.answer_ids(document)] for document in some]
    return [encoder.prompt_ids(document.text) for document in some]


@torch.inference_mode()
def logits_of(model: CausalLM, sequences: Iterable[Sequence[int]]) -> list[Tensor]:
    """Return the logits [places, vocabulary] of each sequence at a few places, in float32 on the CPU."""
    device = next(model.parameters()).device
    found = []
    for ids in sequences:
        places = torch.linspace(0, len(ids) - 1, min(LOGIT_PLACES, len(ids)), device=device).long()
        output = model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        found.append(output.logits[0, places].float().cpu())
    return found


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest |Δ| of two lists of logits; infinity where their shapes differ or one is not finite."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    largest = max(((a - b).abs().max().item() for a, b in zip(expected, found, strict=True)), default=0.0)
    return largest if largest == largest else float("inf")


def extractor_of(source: Source, model: CausalLM, encoder: TextEncoder | None = None) -> Extractor:
    """Return what extracts with `model` as the run does, without its calibration."""
    recipe = source.recipe
    return Extractor(model, encoder or source.encoder, recipe.extract, on_choices=recipe.train.on_choices)


def extract_all(extractor: Extractor, documents: Sequence[Document], description: str) -> tuple[Extraction, ...]:
    """Extract from `documents`, with progress; a document that cannot be extracted from is a failed Extraction."""
    return tuple(track(extractor.stream(documents, strict=False), description, len(documents)))


def require_close(difference: float, what: str) -> None:
    """Check that logits differ by no more than `MOST`.

    Raises:
        Differs: they do.
    """
    if not difference <= MOST:
        raise Differs(
            f"{what} differ from the run's by up to {difference:.3g}, where at most {MOST:g} is the order of sums; "
            "nothing is exported; please report it with the model's name and the versions in environment.json"
        )


def require_same(expected: Sequence[Extraction], found: Sequence[Extraction]) -> int:
    """Check that the documents have the same entities, and return how many they are.

    Raises:
        Differs: a document has others.
    """
    differing = [
        one.document.id for one, other in zip(expected, found, strict=True) if _entities(one) != _entities(other)
    ]
    if differing:
        raise Differs(
            f"the entities of {len(differing)} of {len(expected)} documents differ from the run's, first of "
            f"{differing[0]!r}; nothing is exported; compare with --keep, or report it"
        )
    return sum(len(extraction.document.entities) for extraction in expected)


def _entities(extraction: Extraction) -> set[tuple[int, int, str]]:
    return {(entity.start, entity.end, entity.label) for entity in extraction.document.entities}
