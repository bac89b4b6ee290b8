"""How well do the chosen defaults learn beside hand-tuned tries, with the same five minutes of two CPU cores?

    python bench/hyperparameters.py jobs FOLDER OUT.jsonl       every run as a line: corpus, size, try and overrides
    python bench/hyperparameters.py run OUT.jsonl RESULTS.jsonl --workers 12 [--device cuda]

FOLDER holds NAME-SIZE.jsonl, NAME-dev.jsonl and NAME-test.jsonl. A run takes as many optimizer steps as two CPU cores
take in five minutes, by a model of a step's time that was fitted to runs there: STEP_SECONDS, and the packed tokens
divided by TOKENS_PER_SECOND. So a run can be made on any machine, several at once, and gives the F1 that a CPU would
reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from spantune.core import parse_config
from spantune.data import read
from spantune.encoding import Encoder, make_task, shared_prefix
from spantune.models import read_files

MODEL = "bundled:gemma3-270m"
SECONDS, STEP_SECONDS, TOKENS_PER_SECOND, PACK_TOKENS = 300, 0.35, 600, 1024
CHINESE = ("weibo", "cmeee", "zh")
TUNED: dict[str, dict[str, Any]] = {
    "rate 5e-4, batch 4": {"learning_rate": 5e-4, "batch_examples": 4},
    "rate 5e-4, batch 8": {"learning_rate": 5e-4, "batch_examples": 8},
    "rate 1e-3, batch 4": {"learning_rate": 1e-3, "batch_examples": 4},
    "rate 1e-3, batch 8": {"learning_rate": 1e-3, "batch_examples": 8},
    "rate 2e-3, batch 8": {"learning_rate": 2e-3, "batch_examples": 8},
    "rate 1e-3, batch 8, grouped": {"learning_rate": 1e-3, "batch_examples": 8, "answer": "grouped"},
}
MORE: dict[str, dict[str, Any]] = {
    "rate 1e-3, batch 2": {"learning_rate": 1e-3, "batch_examples": 2},
    "rate 1e-3, batch 16": {"learning_rate": 1e-3, "batch_examples": 16},
    "rate 2e-3, batch 16": {"learning_rate": 2e-3, "batch_examples": 16},
    "rate 2e-3, batch 4": {"learning_rate": 2e-3, "batch_examples": 4},
    "rate 2e-3, batch 8, grouped": {"learning_rate": 2e-3, "batch_examples": 8, "answer": "grouped"},
    "rate 1e-3, batch 4, grouped": {"learning_rate": 1e-3, "batch_examples": 4, "answer": "grouped"},
    "rate 1e-3, batch 8, rank 8": {"learning_rate": 1e-3, "batch_examples": 8, "rank": 8},
    "rate 1e-3, batch 8, rank 32": {"learning_rate": 1e-3, "batch_examples": 8, "rank": 32},
    "rate 1e-3, batch 8, answer loss": {"learning_rate": 1e-3, "batch_examples": 8, "loss_on": "answer"},
    "rate 1e-3, batch 4, half": {"learning_rate": 1e-3, "batch_examples": 4, "share": 0.5},
    "rate 1e-3, batch 4, quarter": {"learning_rate": 1e-3, "batch_examples": 4, "share": 0.25},
}


def jobs(folder: Path, out: Path) -> None:
    """Write a line for every run that the files of `folder` allow."""
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
            counted: dict[str, tuple[int, float]] = {}
            for title, settings in (TUNED | MORE).items():
                task = {"labels": labels, "language": language, "answer": settings.get("answer", "jsonl")}
                if task["answer"] not in counted:
                    counted[task["answer"]] = token_counts(task, documents)
                steps = step_count(*counted[task["answer"]], settings["batch_examples"], settings.get("share", 1.0))
                job = {"corpus": name, "size": int(size), "try": title, "tuned": title in TUNED, "task": task}
                job |= {
                    "settings": settings,
                    "steps": steps,
                    "epochs": steps * settings["batch_examples"] / len(documents),
                }
                file.write(json.dumps(job, ensure_ascii=False) + "\n")


def token_counts(task: dict[str, Any], documents: Any) -> tuple[int, float]:
    """The tokens of the shared prefix, and the mean number of the other tokens of an example."""
    section = parse_config({"model": {"source": MODEL}, "task": task, "data": {"train": "x"}}).task
    encoder = Encoder(read_files(MODEL).tokenizer, make_task(section), None)
    examples = [encoder.example(document) for document in documents]
    prefix = shared_prefix(examples)
    return prefix, statistics.fmean(len(example.ids) - prefix for example in examples)


def step_count(prefix: int, rest: float, batch: int, share: float) -> int:
    """The optimizer steps that fit into the time."""
    packs = -(-batch * rest // (PACK_TOKENS - prefix))
    return round(share * SECONDS / (STEP_SECONDS + (batch * rest + packs * prefix) / TOKENS_PER_SECOND))


def run(job: dict[str, Any], data: Path, device: str) -> dict[str, Any]:
    """Train and measure one job in a process of its own; returns it with its figures."""
    settings = {key: value for key, value in job["settings"].items() if key not in ("answer", "rank", "share")}
    name, size = job["corpus"], job["size"]
    recipe = {
        "run": {"name": "run"},
        "model": {"source": MODEL, "device": device, "base": "bf16" if device == "cuda" else "auto"},
        "task": job["task"],
        "data": {"train": str(data / f"{name}-{size}.jsonl"), "dev": str(data / f"{name}-dev.jsonl"),
                 "test": str(data / f"{name}-test.jsonl"), "dev_limit": 8, "test_limit": 200, "too_long": "split"},
        "lora": {"rank": job["settings"].get("rank", 16), "alpha": 2 * job["settings"].get("rank", 16)},
        "train": {"loss_on": "choices", "compile": "off", "gradient_checkpointing": "off", **settings}
        | {"max_steps": job["steps"], "eval_before": False, "eval_documents": 8, "log_steps": 50},
        "extract": {"batch_size": 32, "max_new_tokens": 512},
        "track": {"swanlab": "off"},
    }  # fmt: skip
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
    """Run the jobs that have no result yet, several at once."""
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    finished = {(job["corpus"], job["size"], job["try"]) for job in done}
    pending = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    pending = [job for job in pending if (job["corpus"], job["size"], job["try"]) not in finished]
    with ThreadPoolExecutor(workers) as pool, out.open("a", encoding="utf-8") as file:
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
