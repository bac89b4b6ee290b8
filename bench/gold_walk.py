"""Measure how long it takes to find the choices in gold answers: one process, all cores, and from the cache.

    python bench/gold_walk.py --data cmeee.jsonl --documents 2000

A choice is an answer token at which the grammar allows more than one token. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from spantune.core import load_config
from spantune.data import read
from spantune.encoding import Encoder, make_task
from spantune.extraction import gold_walk
from spantune.models import load_config_of, load_tokenizer, resolve

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "cmeee-small.yaml"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--model", default="bundled:gemma3-270m")
    options.add_argument("--documents", type=int, default=15_000)
    options.add_argument("--serial", type=int, default=200, help="documents that are walked in one process")
    chosen = options.parse_args()
    folder = resolve(chosen.model)
    vocabulary = load_config_of(folder).vocab_size
    encoder = Encoder(load_tokenizer(folder, chosen.model), make_task(load_config(RECIPE).task))
    documents = read(chosen.data).documents[: chosen.documents]
    examples = [encoder.example(document) for document in documents]
    answers = [(d.text, e.ids[e.answer_start :]) for e, d in zip(examples, documents, strict=True)]
    sample = answers[:: max(1, len(answers) // chosen.serial)]
    list(gold_walk.walk(sample[:1], encoder, vocabulary))  # build the constraint once, before timing
    started = time.perf_counter()
    list(gold_walk.walk(sample, encoder, vocabulary))
    figures: dict[str, float] = {"documents": len(documents), "cores": len(os.sched_getaffinity(0))}
    figures["serial_ms_each"] = round(1000 * (time.perf_counter() - started) / len(sample), 2)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("parallel_seconds", "cached_seconds"):
            started = time.perf_counter()
            marked = gold_walk.mark_choices(examples, documents, encoder, vocabulary, Path(cache))
            figures[name] = round(time.perf_counter() - started, 2)
        figures["cache_mib"] = round(sum(file.stat().st_size for file in Path(cache).iterdir()) / 2**20, 2)
    figures["choices"] = sum(len(example.choices or ()) for example in marked)
    figures["sets"] = len({id(ids) for example in marked for ids in (example.choices or {}).values()})
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
