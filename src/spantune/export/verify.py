"""The comparison of an export with its run: logits, and the entities of dev documents.

Both sides compute in float32 with the same numbers, so they differ only by the order of sums. The run is computed by
spantune, with its adapter beside the base if the export is not rounded. The export is loaded from its folder with
transformers or PEFT alone. Weights that are exported in bf16 are compared with the run's weights rounded to bf16, under
the same bound, since again only the order of sums differs. How far the rounding itself moves the logits is reported
too.
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
"""The largest allowed difference between a logit of an export and that of its run."""
LOGIT_DOCUMENTS = 8
"""The number of documents whose logits are compared."""
LOGIT_PLACES = 16
"""The number of tokens of a document, evenly spaced, whose logits are compared."""


class Differs(ModelError):
    """An export computes something else than its run."""


@dataclass(frozen=True)
class Apart:
    """How far log-probabilities of the next token differ from the run's: the median and the largest difference."""

    median: float
    most: float


@dataclass(frozen=True)
class Verified:
    """The result of a comparison.

    Args:
        documents: the number of documents whose entities were compared.
        entities: the number of their entities. For GGUF it is that of the run; for other forms both sides have the same
            entities.
        logits: the largest difference of a logit; None if logits were not compared.
        rounding: the largest change of a logit by rounding the weights to bf16; None if nothing was rounded.
        logprobs: the differences of log-probabilities, which llama.cpp's server returns; only for GGUF.
        f1: the F1 between the entities of the run and those of the file, from 0 to 1; only for GGUF.
    """

    documents: int
    entities: int
    logits: float | None = None
    rounding: float | None = None
    logprobs: Apart | None = None
    f1: float | None = None


@dataclass(frozen=True)
class Written:
    """The report of a writer on the files that it wrote.

    `verified` is None if the export was not compared. `notes` are sentences for the user.
    """

    verified: Verified | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What an export must compute: logits [places, vocabulary] for each of some token sequences, and extractions."""

    logits: Sequence[Tensor] = field(repr=False)
    extractions: Sequence[Extraction]


def sequences_of(encoder: TextEncoder, documents: Sequence[Document]) -> list[list[int]]:
    """Return the token ids of the first LOGIT_DOCUMENTS documents: prompt and gold answer, or the ids to read."""
    some = documents[:LOGIT_DOCUMENTS]
    if isinstance(encoder, Encoder):
        return [[*encoder.prompt_ids(document.text), *encoder.answer_ids(document)] for document in some]
    return [encoder.prompt_ids(document.text) for document in some]


@torch.inference_mode()
def logits_of(model: CausalLM, sequences: Iterable[Sequence[int]]) -> list[Tensor]:
    """Return the logits [places, vocabulary] of each sequence at up to LOGIT_PLACES places, in float32 on the CPU."""
    device = next(model.parameters()).device
    found = []
    for ids in sequences:
        places = torch.linspace(0, len(ids) - 1, min(LOGIT_PLACES, len(ids)), device=device).long()
        output = model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        found.append(output.logits[0, places].float().cpu())
    return found


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest |Δ| between two lists of logits; infinity if shapes differ or a difference is NaN."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    largest = max(((a - b).abs().max().item() for a, b in zip(expected, found, strict=True)), default=0.0)
    return largest if largest == largest else float("inf")


def extractor_of(source: Source, model: CausalLM, encoder: TextEncoder | None = None) -> Extractor:
    """Return an Extractor for `model` with the run's settings, without calibration."""
    recipe = source.recipe
    return Extractor(model, encoder or source.encoder, recipe.extract, on_choices=recipe.train.on_choices)


def extract_all(extractor: Extractor, documents: Sequence[Document], description: str) -> tuple[Extraction, ...]:
    """Extract from `documents`, with a progress bar; a document that cannot be cut becomes a `refused` Extraction."""
    return tuple(track(extractor.stream(documents, strict=False), description, len(documents)))


def require_close(difference: float, what: str) -> None:
    """Check that the largest difference of logits is at most `MOST`; `what` names the logits in the error.

    Raises:
        Differs: it is larger.
    """
    if not difference <= MOST:
        raise Differs(
            f"{what} differ from the run's by up to {difference:.3g}, where at most {MOST:g} is the order of sums; "
            "nothing is exported; please report it with the model's name and the versions in environment.json"
        )


def require_same(expected: Sequence[Extraction], found: Sequence[Extraction]) -> int:
    """Check that all documents have the same entities, and return the number of entities.

    Raises:
        Differs: a document has other entities.
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
