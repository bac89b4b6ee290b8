"""The comparison of a GGUF file with its run: llama.cpp's server computes it, with requests as `extract` sends them.

Token ids of texts, log-probabilities of the next token, and the entities of documents under the grammar are compared.
llama.cpp computes 16-bit weights with 16-bit activations and keys, so numbers differ by more than the order of sums. A
wrong tensor or scale moves log-probabilities by whole units; rounding moves them by hundredths. If two tokens are
nearly equally likely, rounding may change the choice; the number of documents that differ is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spantune.core import Extraction, ModelError, track
from spantune.export.llama_cpp import serving
from spantune.export.merged import ready
from spantune.export.source import Source
from spantune.export.verify import Apart, Differs, Verified, Written, extract_all, extractor_of, sequences_of
from spantune.extraction import GRAMMARS, Server, load_remote
from spantune.models import CausalLM

PLACES = 8
"""The number of places of a document at which the next token is compared."""
TOP = 5
"""The number of most likely tokens that are compared at a place."""
MOST: Mapping[str, float] = {"f32": 0.1, "f16": 0.1, "bf16": 0.5, "q8_0": 0.5}
"""The largest allowed difference of a log-probability, as the median of all places; other types have no bound."""
LEAST: Mapping[str, float] = {"f32": 0.8, "f16": 0.8, "bf16": 0.7, "q8_0": 0.7}
"""The least allowed F1 between the entities of the run and those of the file; other types have no bound.

With a wrong prompt or grammar it is nearly 0. With few documents and an unsure model, rounding alone can lower it to
0.9.
"""
SECONDS = 1800.0
"""The most seconds for an answer of the server; llama.cpp's grammars are slow with large vocabularies."""
SLOTS = 4
"""How many documents the server computes at a time; a pass over four takes little longer than a pass over one."""


@dataclass(frozen=True)
class Run:
    """The side of the run in a comparison.

    Args:
        source: the run.
        model: its merged model in float32.
        sequences: the token ids of some documents.
        places: for each sequence, after how many tokens the next token is compared.
        logprobs: for each sequence, the log-probabilities [places, vocabulary] of the next token.
        extractions: what the run extracts from the documents; empty if llama.cpp has no grammar for the answers.
        weights: the number of weights of the model.
    """

    source: Source
    model: CausalLM = field(repr=False)
    sequences: Sequence[Sequence[int]] = field(repr=False)
    places: Sequence[Sequence[int]] = field(repr=False)
    logprobs: Sequence[Tensor] = field(repr=False)
    extractions: Sequence[Extraction] = field(repr=False)
    weights: int = 0

    @staticmethod
    @torch.inference_mode()
    def of(source: Source, model: CausalLM) -> Run:
        """Compute what the file is compared with, from the merged float32 model of a run."""
        sequences = sequences_of(source.encoder, source.documents)
        places = [torch.linspace(1, len(ids), min(PLACES, len(ids))).long().tolist() for ids in sequences]
        device = next(model.parameters()).device
        logprobs = []
        for ids, some in zip(sequences, places, strict=True):
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
            logprobs.append(logits[torch.tensor(some) - 1].log_softmax(-1))
        extractions: tuple[Extraction, ...] = ()
        if source.documents and _has_grammar(source):
            extractions = extract_all(
                extractor_of(source, ready(source, model, source.adapter)), source.documents, "run"
            )
        weights = sum(weight.numel() for weight in model.parameters())
        return Run(source, model, sequences, places, logprobs, extractions, weights)


def compare(run: Run, weights: Path, kind: str, adapter: Path | None = None) -> Written:
    """Compare what llama.cpp computes from the file `weights`, of the type `kind`, with the run.

    Raises:
        Differs: llama.cpp computes something else. ModelError: the server cannot load the file, or fails.
    """
    context = _context(run.source)
    with serving(weights, context, adapter, SLOTS) as url:
        split_otherwise = _count_split_otherwise(run, url)
        apart = _apart(run, url)
        if not apart.median <= MOST.get(kind, float("inf")):
            raise Differs(
                f"the log-probabilities that llama.cpp computes differ from the run's by {apart.median:.3g} in the "
                f"median, where rounding to {kind} makes at most {MOST[kind]:g}; nothing is exported; please report it "
                "with the model's name"
            )
        extracted = _extract(run, url)
    return _written(run, kind, apart, extracted, split_otherwise)


def read_back(run: Run, place: Path) -> Verified:
    """Check the tensors of a file, for the case that no llama.cpp server is installed to compute them.

    Raises:
        Differs: the number of weights or the embeddings differ from the run's.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(str(place))
    count = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith("rope_"))
    if count != run.weights:
        raise Differs(f"the file has {count:,} weights and the run {run.weights:,}; nothing is exported; report it")
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    rows = torch.from_numpy(dequantize(table.data[:64], table.tensor_type).copy())
    expected = run.model.get_input_embeddings().weight[: len(rows)].float().cpu()
    error = (rows - expected).norm() / expected.norm()
    if not error < 0.2:
        raise Differs(
            f"the embeddings in the file are not the run's ({error:.2g} apart); nothing is exported; report it"
        )
    return Verified(0, 0)


def _context(source: Source) -> int:
    """Return the most tokens that a document's prompt and answer may take together."""
    encoder = source.encoder
    longest = max(len(encoder.prompt_ids(document.text)) for document in source.documents)
    window = int(source.files.config.get_text_config().max_position_embeddings)
    return min(window, max(512, longest + source.recipe.extract.max_new_tokens + 64))


def _count_split_otherwise(run: Run, url: str) -> int:
    """Count the documents whose text llama.cpp tokenises differently from the run's tokenizer."""
    tokenizer = run.source.encoder.tokenizer
    count = 0
    for document in run.source.documents:
        body = {"content": document.text, "add_special": False, "parse_special": False}
        own = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        count += list(own) != _ask(url, "tokenize", body)["tokens"]
    return count


def _has_grammar(source: Source) -> bool:
    """Whether llama.cpp's server can be restricted to the answer format of the run."""
    return source.recipe.train.on_choices or source.task.answer in GRAMMARS["llamacpp"]


def _apart(run: Run, url: str) -> Apart:
    """Return the median and the maximum, over all places, of the largest difference among the likely tokens.

    The difference is infinite at a place where the server does not return the run's most likely token.
    """
    differences = []
    for ids, places, expected in zip(run.sequences, run.places, run.logprobs, strict=True):
        for place, row in zip(places, expected, strict=True):
            body = {
                "prompt": list(ids[:place]),
                "n_predict": 1,
                "n_probs": 4 * TOP,
                "temperature": 0,
                "cache_prompt": True,
            }
            answer = _ask(url, "completion", body)["completion_probabilities"][0]["top_logprobs"]
            computed = {entry["id"]: entry["logprob"] for entry in answer}
            likely = row.topk(TOP).indices.tolist()
            apart = [abs(row[index].item() - computed[index]) for index in likely if index in computed]
            differences.append(max(apart, default=float("inf")) if likely[0] in computed else float("inf"))
    return Apart(float(torch.tensor(differences).median()), max(differences)) if differences else Apart(0.0, 0.0)


def _extract(run: Run, url: str) -> Sequence[Extraction]:
    """Extract with the server as `spantune extract` does, without calibration."""
    source = run.source
    if not run.extractions:
        return ()
    server = Server(f"{url}/v1", grammar="llamacpp", timeout=SECONDS)
    extractor = load_remote(source.folder.path, server, accept_changes=source.settings.accept_changes)
    extractor.calibration = None
    return tuple(track(extractor.stream(source.documents, strict=False), "llama.cpp", len(source.documents)))


def _written(run: Run, kind: str, apart: Apart, extracted: Sequence[Extraction], split_otherwise: int) -> Written:
    """Compare the entities, and report the result.

    Raises:
        Differs: the entities differ by more than rounding explains.
    """
    notes = []
    if split_otherwise:
        notes.append(
            f"llama.cpp splits {split_otherwise} of {len(run.source.documents)} texts into other tokens than the run; "
            "`spantune extract` sends token ids, so that only other clients, which send text, are affected"
        )
    if not extracted:
        answer = run.source.task.answer
        if run.source.documents and not _has_grammar(run.source):
            notes.append(f"entities were not compared: llama.cpp has no grammar of answers of the format {answer}")
        return Written(Verified(0, 0, logprobs=apart), tuple(notes))
    pairs = [(_entities(one), _entities(other)) for one, other in zip(run.extractions, extracted, strict=True)]
    expected, found = sum(len(one) for one, _ in pairs), sum(len(other) for _, other in pairs)
    same = sum(len(one & other) for one, other in pairs)
    f1 = 2 * same / (expected + found) if expected + found else 1.0
    differing = sum(one != other for one, other in pairs)
    if f1 < LEAST.get(kind, 0.0):
        raise Differs(
            f"the entities of {differing} of {len(pairs)} documents differ from the run's (F1 {f1:.3f} between them), "
            f"by more than rounding to {kind} explains; nothing is exported; please report it with the model's name"
        )
    if differing:
        notes.append(f"entities differ in {differing} of {len(pairs)} documents, since llama.cpp rounds to 16 bits")
    return Written(Verified(len(pairs), expected, logprobs=apart, f1=f1), tuple(notes))


def _entities(extraction: Extraction) -> set[tuple[int, int, str]]:
    return {(entity.start, entity.end, entity.label) for entity in extraction.document.entities}


def _ask(url: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    """Send a request to the server and return its answer.

    Raises:
        ModelError: the server refuses the request, or has ended.
    """
    import httpx2 as httpx

    try:
        answer = httpx.post(f"{url}/{path}", json=body, timeout=600)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise ModelError(f"llama.cpp's server fails at the file: {error}; nothing is exported; report it") from None
    parsed: dict[str, Any] = answer.json()
    return parsed
