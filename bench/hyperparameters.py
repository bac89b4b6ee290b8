"""Compare the default hyperparameters with hand-tuned ones, given the same five minutes on two CPU cores.

    python bench/hyperparameters.py jobs FOLDER OUT.jsonl       every run as a line: corpus, size, try and overrides
    python bench/hyperparameters.py run OUT.jsonl RESULTS.jsonl --workers 12 [--device cuda]

FOLDER holds NAME-SIZE.jsonl, NAME-dev.jsonl and NAME-test.jsonl. For each corpus and size there are seven runs that
write answers and seven that read spans. The number of optimizer steps of a run is that which two CPU cores take in five
minutes, by a model of the step time: STEP_SECONDS, and the packed tokens divided by TOKENS_PER_SECOND. These constants
were fitted to runs on two cores. So the runs can be made on any machine, several at a time, and give the F1 that a CPU
would reach.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from spantune.core import config, parse_config
from spantune.data import read
from spantune.encoding import Encoder, SpanEncoder, make_task, shared_prefix
from spantune.models import read_files

MODEL = "bundled:gemma3-270m"
SECONDS, STEP_SECONDS, TOKENS_PER_SECOND, PACK_TOKENS = 300, 0.35, 600, 1024
READ_STEP_SECONDS, READ_TOKENS_PER_SECOND = 0.33, 490
"""The same constants for reading spans, fitted to two runs: 0.62 s for 4 examples of 36 tokens, and 1.76 s for 16
examples of 44 tokens.
"""
CHINESE = ("weibo", "cmeee", "zh")
WRITING: dict[str, dict[str, Any]] = {
    "rate 1e-3, batch 8": {"learning_rate": 1e-3, "batch_examples": 8},
    "rate 5e-4, batch 4": {"learning_rate": 5e-4, "batch_examples": 4},
    "rate 5e-4, batch 8": {"learning_rate": 5e-4, "batch_examples": 8},
    "rate 1e-3, batch 2": {"learning_rate": 1e-3, "batch_examples": 2},
    "rate 1e-3, batch 4": {"learning_rate": 1e-3, "batch_examples": 4},
    "rate 2e-3, batch 8": {"learning_rate": 2e-3, "batch_examples": 8},
    "rate 1e-3, batch 8, grouped": {"learning_rate": 1e-3, "batch_examples": 8, "answer": "grouped"},
}
READING: dict[str, dict[str, Any]] = {
    "read, rate 3e-4, batch 8": {"learning_rate": 3e-4, "batch_examples": 8},
    "read, rate 3e-4, batch 16": {"learning_rate": 3e-4, "batch_examples": 16},
    "read, rate 5e-4, batch 4": {"learning_rate": 5e-4, "batch_examples": 4},
    "read, rate 5e-4, batch 8": {"learning_rate": 5e-4, "batch_examples": 8},
    "read, rate 5e-4, batch 16": {"learning_rate": 5e-4, "batch_examples": 16},
    "read, rate 1e-3, batch 8": {"learning_rate": 1e-3, "batch_examples": 8},
    "read, rate 3e-4, batch 4": {"learning_rate": 3e-4, "batch_examples": 4},
}
"""The first entry of WRITING and of READING is spantune's default for some sizes; the others are compared with it."""


def jobs(folder: Path, out: Path) -> None:
    """Write a line to `out` for every run that the files of `folder` allow."""
    with out.open("w", encoding="utf-8") as file:
        for path in sorted(folder.glob("*-[0-9]*.jsonl")):
            name, _, size = path.stem.rpartition("-")
            documents = read(path).documents
            splits = [
                *documents,
                *read(folder / f"{name}-dev.jsonl").documents,
                *read(folder / f"{name}-test.jsonl").documents,
            ]
            labels = sorted({entity.label for document in splits for entity in document.entities})
            language = "zh" if name in CHINESE else "en"
            lines: list[dict[str, Any]] = []
            for title, settings in WRITING.items():
                task = {"labels": labels, "language": language, "answer": settings.get("answer", "jsonl")}
                steps = step_count(*token_counts(task, documents), settings["batch_examples"])
                lines.append({"try": title, "task": task, "settings": settings, "steps": steps})
            tokens = mean_tokens({"labels": labels, "language": language, "answer": "spans"}, documents)
            longest = max(entity.end - entity.start for document in splits for entity in document.entities)
            for title, settings in READING.items():
                task = {"labels": labels, "language": language, "answer": "spans"}
                seconds = READ_STEP_SECONDS + settings["batch_examples"] * tokens / READ_TOKENS_PER_SECOND
                steps = round(SECONDS / seconds)
                lines.append({"try": title, "task": task, "settings": settings, "steps": steps, "longest": longest})
            for line in lines:
                epochs = line["steps"] * line["settings"]["batch_examples"] / len(documents)
                job = {"corpus": name, "size": int(size), **line, "epochs": round(epochs, 2)}
                file.write(json.dumps(job, ensure_ascii=False) + "\n")


@cache
def files() -> Any:
    """Return the files of the model, with its tokenizer."""
    return read_files(MODEL)


def mean_tokens(task: dict[str, Any], documents: Any) -> float:
    """Return the mean number of tokens of an example that is read."""
    section = parse_config({"model": {"source": MODEL}, "task": task, "data": {"train": "x"}}).task
    settings = config.Spans(longest=1000)
    encoder = SpanEncoder(files().tokenizer, make_task(section), settings, 2048)
    return statistics.fmean(len(encoder.example(document).ids) for document in documents)


def token_counts(task: dict[str, Any], documents: Any) -> tuple[int, float]:
    """Return the tokens of the shared prefix, and the mean number of the other tokens of an example."""
    section = parse_config({"model": {"source": MODEL}, "task": task, "data": {"train": "x"}}).task
    encoder = Encoder(files().tokenizer, make_task(section), None)
    examples = [encoder.example(document) for document in documents]
    prefix = shared_prefix(examples)
    return prefix, statistics.fmean(len(example.ids) - prefix for example in examples)


def step_count(prefix: int, rest: float, batch: int) -> int:
    """Return the number of optimizer steps that fit into SECONDS."""
    packs = -(-batch * rest // (PACK_TOKENS - prefix))
    return round(SECONDS / (STEP_SECONDS + (batch * rest + packs * prefix) / TOKENS_PER_SECOND))


def run(job: dict[str, Any], data: Path, device: str) -> dict[str, Any]:
    """Train and measure one job in a process of its own; return the job with its F1, or with its error."""
    settings = {key: value for key, value in job["settings"].items() if key != "answer"}
    name, size, reads = job["corpus"], job["size"], job["task"]["answer"] == "spans"
    rank = 64 if reads else 16
    recipe = {
        "run": {"name": "run"},
        "model": {"source": MODEL, "device": device, "base": "bf16" if device == "cuda" else "auto"},
        "task": job["task"],
        "data": {"train": str(data / f"{name}-{size}.jsonl"), "dev": str(data / f"{name}-dev.jsonl"),
                 "test": str(data / f"{name}-test.jsonl"), "dev_limit": 100 if reads else 8, "test_limit": 200,
                 "too_long": "split"},
        "lora": {"rank": rank, "alpha": 2 * rank},
        "train": {"compile": "off", "gradient_checkpointing": "off", **settings}
        | {"max_steps": job["steps"], "eval_before": False, "eval_documents": 100 if reads else 8, "log_steps": 50},
        "track": {"swanlab": "off"},
    }  # fmt: skip
    if reads:
        recipe["spans"] = {"longest": job["longest"]}
    else:
        recipe["train"]["loss_on"] = "choices"
        recipe["extract"] = {"batch_size": 32, "max_new_tokens": 512}
    recipe["train"]["eval_steps"] = job["steps"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recipe["run"]["folder"] = folder
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "spantune", "train", str(path)], capture_output=True, text=True)
    if done.returncode:
        return job | {"error": done.stderr[-600:]}
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    kept = {key: figures[key] for key in ("f1", "f1_low", "f1_high")}
    return job | kept | {"seconds": round(time.perf_counter() - started, 1)}


def run_all(source: Path, out: Path, workers: int, device: str) -> None:
    """Run the jobs of `source` that have no result in `out`, `workers` at a time."""
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    finished = {(job["corpus"], job["size"], job["try"]) for job in done}
    pending = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    pending = [job for job in pending if (job["corpus"], job["size"], job["try"]) not in finished]
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def bind() -> None:
        """Bind this thread and its child processes to one core, else each would start one process per core."""
        os.sched_setaffinity(0, {next(cores)})

    with ThreadPoolExecutor(workers, initializer=bind) as pool, out.open("a", encoding="utf-8") as file:
        for future in as_completed([pool.submit(run, job, source.parent, device) for job in pending]):
            result = future.result()
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
            print(result["corpus"], result["size"], result["try"], result.get("f1", result.get("error")), flush=True)


def main() -> None:
    """Make the jobs, or run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["jobs", "run"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    if chosen.what == "jobs":
        jobs(chosen.source, chosen.out)
    else:
        run_all(chosen.source, chosen.out, chosen.workers, chosen.device)


if __name__ == "__main__":
    main()
