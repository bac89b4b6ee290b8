"""Measure extraction by one process on each of several GPUs: documents per second, and the ratio to one process.

    python bench/devices.py --run runs/demo --data bundled:clinical-zh-test --device cpu --devices 1 2
    python bench/random_phi4.py FOLDER                                     # Phi-4's shape, random weights, 29 GB
    python bench/devices.py --make FOLDER --run runs/random --data cmeee.jsonl --devices 1 2 4

This measures the code of `spantune extract --devices`. Each number in `--devices` is a number of processes. Every
process extracts `--documents` documents, so that the work of a process does not depend on their number. The time until
every process has loaded the model is reported separately (`ready_s`); the rate counts from then until the last result.

`--make FOLDER` first writes the run folder: an adapter that changes nothing, over the model in FOLDER. With
`--answer spans` the run also has a head, set to about eight candidates per document. Random weights write random text
of the document as the answer; `--tokens` limits its length. The first processes on a machine also compile kernels.
`--devices 1 1 2` therefore measures one process twice and uses the second result.

A line of JSON is printed for each number of processes, as soon as it is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from spantune.core import Document, Extraction, TaskSpec, config, parse_config
from spantune.data import formats
from spantune.encoding import SpanEncoder, longest_allowed, make_task
from spantune.extraction import DeviceEngine, DeviceSettings
from spantune.models import attach, attach_head, copy_trained, load, make_head, save_trained
from spantune.runs import BestAdapter, RunFolder, write_card

HERE = Path(__file__).parent


def main() -> None:
    """Measure each number of processes, and print the ratios to the first one."""
    chosen = _options()
    if chosen.make is not None and not chosen.run.exists():
        began = time.perf_counter()
        _make_run(chosen)
        print(json.dumps({"made_run_s": round(time.perf_counter() - began, 1)}), flush=True)
    documents = [document for document in formats.read(chosen.data).documents if 0 < len(document.text) <= 400]
    rows: dict[int, dict[str, Any]] = {}
    for count in chosen.devices:
        some = _repeated(documents, count * chosen.documents)
        rows[count] = _measured(chosen, count, some)
        first = rows[chosen.devices[0]]
        rows[count]["times"] = round(rows[count]["documents_per_s"] / first["documents_per_s"], 3)
        print(json.dumps(rows[count]), flush=True)
    columns = ("ready_s", "documents_per_s", "times", "entities_per_document", "problems")
    print(f"| processes | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for count, row in rows.items():
        print(f"| {count} | {' | '.join(str(row[name]) for name in columns)} |")


@dataclass
class _Clock:
    """Yields documents and records when the first is requested, which is when all processes have loaded the model."""

    documents: Sequence[Document]
    ready: float = field(default=0.0)

    def __iter__(self) -> Iterator[Document]:
        self.ready = time.perf_counter()
        yield from self.documents


def _measured(chosen: argparse.Namespace, count: int, documents: Sequence[Document]) -> dict[str, Any]:
    """Extract `documents` with `count` processes; return the rate, and what is needed to compare the results."""
    settings = RunFolder(chosen.run).config().extract
    if chosen.tokens:
        settings = settings.model_copy(update={"max_new_tokens": chosen.tokens})
    device = "cpu" if chosen.device == "cpu" else "cuda"
    devices = tuple("cpu" if device == "cpu" else f"cuda:{number}" for number in range(count))
    engine = DeviceEngine(DeviceSettings(chosen.run, settings), devices)
    clock, began = _Clock(documents), time.perf_counter()
    extractions: list[Extraction] = []
    seconds: list[float] = []
    for extraction in engine.stream(clock, strict=False):
        extractions.append(extraction)
        seconds.append(time.perf_counter() - clock.ready)
    assert [e.document.id for e in extractions] == [d.id for d in documents], "not in order"
    spans = [[(e.start, e.end, e.label) for e in extraction.document.entities] for extraction in extractions]
    size = min(chosen.documents, len(spans))
    return {
        "processes": count,
        "documents": len(documents),
        "ready_s": round(clock.ready - began, 1),
        "seconds": round(seconds[-1], 2),
        "documents_per_s": round(len(documents) / seconds[-1], 2),
        "first_result_s": round(seconds[0], 2),
        "entities_per_document": round(sum(map(len, spans)) / len(spans), 2),
        "problems": sum(bool(extraction.problems) for extraction in extractions),
        "first_documents_sha256": hashlib.sha256(json.dumps(spans[:size]).encode()).hexdigest()[:12],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def _repeated(documents: Sequence[Document], count: int) -> list[Document]:
    some = itertools.islice(itertools.cycle(documents), count)
    return [replace(document, id=str(number), entities=()) for number, document in enumerate(some)]


def _make_run(chosen: argparse.Namespace) -> None:
    """Write a finished run over the model in the folder `--make`, without training."""
    task = make_task(config.Task(preset="cmeee", answer=chosen.answer))
    device = "cpu" if chosen.device == "cpu" else "cuda"
    base: config.Base = "auto" if device == "cpu" else "bf16"
    recipe = parse_config(
        {
            "run": {"name": chosen.run.name, "folder": str(chosen.run.parent)},
            "model": {"source": str(chosen.make), "base": base, "device": device},
            "task": {"preset": "cmeee", "answer": chosen.answer},
            "data": {"train": str(chosen.data)},
        }
    )
    chosen.run.mkdir(parents=True)
    recipe.save(chosen.run)
    task.save(chosen.run)
    (chosen.run / "environment.json").write_text("{}\n", encoding="utf-8")
    loaded = load(recipe.model)
    tokenizer = loaded.tokenizer
    model, _ = attach(loaded.model, config.Lora(rank=8, alpha=16))
    if task.reads:
        _add_head(chosen, model, tokenizer, task)

    def complete(adapter: Path) -> None:
        tokenizer.save_pretrained(str(adapter))
        task.save(adapter)
        write_card(adapter, task, "random weights")

    best = BestAdapter(chosen.run, model, complete, save_trained, copy_trained)
    best.offer(1, {"f1": 0.5, "f1_low": 0.25, "f1_high": 0.75})
    del model, loaded, best
    if device == "cuda":  # free the memory for the processes that extract
        torch.cuda.empty_cache()


def _add_head(chosen: argparse.Namespace, model: Any, tokenizer: Any, task: TaskSpec) -> None:
    sys.path.insert(0, str(HERE))
    from span_extract import raise_bias

    from spantune.extraction.reading import LOWEST_LOGIT

    settings = config.Spans()
    settings = settings.model_copy(update={"longest": longest_allowed([], settings)})
    head = make_head(model, tokenizer, task, settings)
    attach_head(model, head.eval())
    model.eval()
    documents = _repeated(formats.read(chosen.data).documents, 64)
    raise_bias(model, head, SpanEncoder(tokenizer, task, settings, 2048), documents, LOWEST_LOGIT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", default="bundled:clinical-zh-test")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--documents", type=int, default=1000, help="of each process")
    parser.add_argument("--tokens", type=int, help="of an answer, at the most; as the run says if not given")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="a model folder to make the run folder over")
    parser.add_argument("--answer", default="jsonl", help="of the run that is made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
