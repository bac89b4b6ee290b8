"""How good is reading spans, beside writing them and beside published encoders? The study behind docs/quality.md.

    python bench/quality.py data SOURCE FOLDER                    the corpora as native JSONL; never commit them
    python bench/quality.py jobs FOLDER OUT.jsonl --group curve   the runs of a group, one a line
    python bench/quality.py run JOBS.jsonl RESULTS.jsonl --data FOLDER --workers 16 --device cuda
    python bench/quality.py table RESULTS.jsonl                   Markdown tables of the results

A job is a run of `spantune train` in a process of its own, bound to one core. Its recipe is the base of its way of
answering (`BASE`) with the job's `recipe`, a mapping of `section.key` to value. CMeEE V1 has two halves of its dev
split: A, the front 1,250 sentences, chooses checkpoints, thresholds and settings; B, the last 1,250, is reported.
A job with a result is skipped; one that was stopped by `--seconds` goes on from its last checkpoint, if that is still
there. `--base` changes the base of spans, so that the groups `curve`, `final` and `corpora` follow a finalist.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spantune.core import Document, config
from spantune.data import read, read_source, repair_all, write
from spantune.encoding import make_task
from spantune.models import read_files

MODEL = "bundled:gemma3-270m"
SIZES = (100, 300, 1000, 3000, 15000)
SEEDS = {"spans": {15000: 2}, "jsonl": {15000: 1}}
"""Seeds of the curve where they are not three for spans and two for writing."""
EPOCHS = {"spans": (60, 30, 15, 8, 5), "jsonl": (32, 8, 4, 4, 3)}
"""Passes of the curve at each of `SIZES`. Those of writing are twice what a recipe gets that names none, at most 3 at
the largest size."""
BATCH = (8, 8, 16, 16, 32)
"""Examples in a step of spans at each of `SIZES`."""
BASE: dict[str, dict[str, Any]] = {
    "spans": {
        "task.answer": "spans",
        "lora.rank": 64,
        "lora.alpha": 128,
        "train.learning_rate": 5e-4,
        "train.eval_documents": 1250,
        "train.eval_share": 1.0,
    },
    "jsonl": {
        "task.answer": "jsonl",
        "train.loss_on": "choices",
        "train.eval_documents": 100,
        "train.eval_share": 0.5,
        "extract.batch_size": 32,
    },
}
"""What a way of answering sets in every job; writing leaves rate, batch and rank to the product."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "view causal": {"spans.view": "causal"},
    "view twice": {"spans.view": "twice"},
    "instruction": {"spans.instruction": True},
    "no convolution": {"spans.convolution": 0},
    "types learnt": {"spans.types": "learnt"},
    "rank 16": {"lora.rank": 16, "lora.alpha": 32},
    "rank 256": {"lora.rank": 256, "lora.alpha": 512},
    "full, rate 5e-5": {"lora": "full", "train.learning_rate": 5e-5},
    "full, rate 1e-4": {"lora": "full", "train.learning_rate": 1e-4},
    "full, rate 2e-4": {"lora": "full", "train.learning_rate": 2e-4},
    "adapter rate 2e-4": {"train.learning_rate": 2e-4},
    "adapter rate 1e-3": {"train.learning_rate": 1e-3},
    "head rate 3e-4": {"spans.learning_rate": 3e-4},
    "head rate 3e-3": {"spans.learning_rate": 3e-3},
    "dropout 0": {"spans.dropout": 0.0},
    "dropout 0.3": {"spans.dropout": 0.3},
    "5 epochs": {"train.epochs": 5},
    "8 epochs": {"train.epochs": 8},
    "batch 16": {"train.batch_examples": 16},
    "batch 64": {"train.batch_examples": 64},
}
"""What differs from the base. More lines, such as EMA, come from the command line: `--also "EMA: train.ema=0.999"`."""
WEIBO = {"PER": "人名", "ORG": "机构", "GPE": "行政区", "LOC": "地点"}
TASKS: dict[str, dict[str, Any]] = {
    "cmeee_v1": {"preset": "cmeee"},
    "cmeee_v2": {"preset": "cmeee"},
    "bc5cdr": {
        "labels": [
            {"code": "Chemical", "description": "drugs and other chemical substances, abbreviations included"},
            {"code": "Disease", "description": "diseases, syndromes, symptoms and adverse effects"},
        ],
        "nested": False,
    },
    "ncbi_disease": {
        "labels": [
            {"code": "Disease", "description": "diseases, syndromes and classes of them, abbreviations included"}
        ],
        "nested": False,
    },
    "wnut17": {
        "labels": [
            {"code": "person", "description": "names of people"},
            {"code": "location", "description": "places, countries and facilities"},
            {"code": "corporation", "description": "companies"},
            {"code": "group", "description": "bands, teams and organisations that are no companies"},
            {"code": "product", "description": "things that are sold, and services"},
            {"code": "creative-work", "description": "songs, films, books, games and the like"},
        ],
        "nested": False,
    },
    "weibo_ner": {
        "labels": [
            {"code": f"{code}.{kind}", "name": name + word}
            for code, name in WEIBO.items()
            for kind, word in (("NAM", "名称"), ("NOM", "泛指"))
        ],
        "language": "zh",
        "nested": False,
    },
}
EPOCHS_OF_CORPUS = {"cmeee_v2": 10, "bc5cdr": 8, "ncbi_disease": 8, "wnut17": 8, "weibo_ner": 15}
"""Passes of the finalist over the other corpora, as the curve has them at their sizes."""
SPLIT_FILES = {
    "bc5cdr": ("train.tsv", "devel.tsv", "test.tsv"),
    "ncbi_disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
    "weibo_ner": ("weiboNER_2nd_conll.train", "weiboNER_2nd_conll.dev", "weiboNER_2nd_conll.test"),
}
WINDOW = 2048
"""Most tokens of a text that is not split."""
HALF = 1250
"""Sentences in each half of CMeEE V1's dev split."""
GRACE = 25
"""Seconds that a job has to save itself when the time is over."""


def make_data(source: Path, folder: Path) -> None:
    """Write CORPUS-train, -dev and -test.jsonl of every corpus of `source`, and cmeee_v1-devA and -devB.jsonl.

    Training sentences are shuffled once, so that `data.limit` takes nested subsets of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dev = mended(source / "cmeee_v1" / "dev.jsonl")
    v2 = shuffled(mended(source / "cmeee_v2_few_shot" / "cmeee.jsonl"))
    splits = {
        "cmeee_v1-train": shuffled(mended(source / "cmeee_v1" / "train.jsonl")),
        "cmeee_v1-devA": dev[:HALF],
        "cmeee_v1-devB": dev[-HALF:],
        "cmeee_v2-train": v2[:2000],
        "cmeee_v2-dev": v2[2000:2250],
        "cmeee_v2-test": v2[2250:],
    }
    for corpus, files in SPLIT_FILES.items():
        for split, name in zip(("train", "dev", "test"), files, strict=True):
            documents = mended(source / corpus / name)
            splits[f"{corpus}-{split}"] = shuffled(documents) if split == "train" else documents
    for name, documents in splits.items():
        write(folder / f"{name}.jsonl", documents)
        describe(name, documents)


def mended(path: Path) -> list[Document]:
    """The documents of a corpus file, with what has exactly one right answer repaired; the rest would be refused."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        (repaired,) = repair_all([read_source(path)], copy)
        if repaired.dropped:
            print(f"{path}: {len(repaired.dropped)} entities or documents without one right answer left out")
        return list(read(copy, repaired.format).documents)


def shuffled(documents: Iterable[Document]) -> list[Document]:
    """The documents in an order that is the same at every call."""
    order = list(documents)
    random.Random(0).shuffle(order)
    return order


def describe(name: str, documents: list[Document]) -> None:
    """Print how many documents, entities, labels and long texts a file has, and which labels its task lacks."""
    corpus = name.rpartition("-")[0]
    tokenizer, labels = read_files(MODEL).tokenizer, make_task(config.Task(**TASKS[corpus])).labels
    long = [length for document in documents if (length := len(tokenizer(document.text)["input_ids"])) > WINDOW]
    counts = Counter(entity.label for document in documents for entity in document.entities)
    unknown = set(counts) - {label.code for label in labels}
    print(f"{name}: {len(documents)} documents, {sum(counts.values())} entities of {len(counts)} types", end="")
    print(f", longer than {WINDOW} tokens: {long or 'none'}", f", UNKNOWN LABELS {unknown}" if unknown else "", sep="")


def make_jobs(data: Path, group: str, base: dict[str, Any], also: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs of a group; `base` is set in every job of spans, and `also` are further lines of the ablation."""
    if group == "curve":
        return [job for way in BASE for job in curve(way, base)]
    if group == "ablation":
        lines = ABLATIONS | also
        return [
            spans_job(group, title, "cmeee_v1", 42, {"train.epochs": 3, "train.batch_examples": 32} | base | line)
            for title, line in lines.items()
        ]
    if group == "final":
        settings = {"train.epochs": 5, "train.batch_examples": 32} | base
        return [spans_job(group, "finalist", "cmeee_v1", seed, settings, report="B") for seed in (42, 43, 44)]
    jobs = []
    for corpus, epochs in EPOCHS_OF_CORPUS.items():
        size = sum(1 for _ in (data / f"{corpus}-train.jsonl").open(encoding="utf-8"))
        settings = base | {"train.epochs": epochs, "train.batch_examples": 16}
        jobs.append(spans_job(group, "finalist", corpus, 42, settings, size=size, report="test"))
    return jobs


def spans_job(group: str, title: str, corpus: str, seed: int, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A job that reads spans."""
    job = {"group": group, "title": title, "corpus": corpus, "way": "spans", "size": 15000, "seed": seed, "report": "A"}
    job |= more | {"recipe": settings}
    return {"name": f"{group}, {title}, {corpus}, {job['size']}, seed {seed}, on {job['report']}"} | job


def curve(way: str, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The jobs of the learning curve of a way of answering, the largest first."""
    jobs = []
    for size, epochs, batch in reversed(list(zip(SIZES, EPOCHS[way], BATCH, strict=True))):
        seeds = SEEDS[way].get(size, 3 if way == "spans" else 2)
        settings = (
            base | {"train.epochs": epochs, "train.batch_examples": batch}
            if way == "spans"
            else {"train.epochs": epochs}
        )
        for seed in range(42, 42 + seeds):
            job = spans_job("curve", way, "cmeee_v1", seed, settings, size=size, report="B", way=way)
            jobs.append(job)
    return jobs


def recipe_of(job: dict[str, Any], data: Path, folder: Path, device: str) -> dict[str, Any]:
    """The recipe of a job, in sections; the run is written to `folder`/run."""
    corpus = job["corpus"]
    on_gpu: dict[str, Any] = {"model.base": "bf16", "train.pack_tokens": 8192} if device == "cuda" else {}
    dev, test = ("devA", f"dev{job['report']}") if corpus == "cmeee_v1" else ("dev", "test")
    settings = {
        "run": {"name": "run", "folder": str(folder), "seed": job["seed"]},
        "model": {"source": MODEL, "device": device},
        "task": TASKS[corpus],
        "data.train": str(data / f"{corpus}-train.jsonl"),
        "data.dev": str(data / f"{corpus}-{dev}.jsonl"),
        "data.test": str(data / f"{corpus}-{test}.jsonl"),
        "data.limit": job["size"],
        "data.too_long": "split",
        "train.compile": "off",
        "train.gradient_checkpointing": "off",
        "train.eval_before": False,
        "train.log_steps": 50,
        "train.keep_checkpoints": 1,
        "track.swanlab": "off",
    }
    recipe: dict[str, Any] = {}
    for key, value in (settings | on_gpu | BASE[job["way"]] | job["recipe"]).items():
        section, _, name = key.partition(".")
        if name and recipe.get(section) != "full":
            recipe[section] = {**recipe.get(section, {}), name: value}
        elif not name:
            recipe[section] = value
    return recipe


@dataclass
class Study:
    """Jobs that are run several at once until none is left, or the time is over."""

    pending: list[dict[str, Any]]
    results: Path
    data: Path
    runs: Path
    device: str
    end: float
    extra: tuple[str, ...] = ()
    keep: Path | None = None
    past: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, core: int | None) -> None:
        """Run one job after another; called in a thread of its own, whose core is that of its processes."""
        if core is not None:
            os.sched_setaffinity(0, {core})
        while (job := self._next()) is not None:
            result = {key: value for key, value in job.items()} | self._run(job)
            with self.lock:
                self.past.append(result)
                with self.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
            shown = result.get("f1", result.get("error", "unfinished"))
            print(f"{result['seconds']:6.0f} s  {job['name']}: {shown}", flush=True)

    def _next(self) -> dict[str, Any] | None:
        """The next job that can end in time, and None if there is none."""
        with self.lock:
            for place, job in enumerate(self.pending):
                if self._longest(job) <= self.end - time.monotonic() - GRACE:
                    return self.pending.pop(place)
        return None

    def _longest(self, job: dict[str, Any]) -> float:
        """Seconds that the longest finished job of this size and way took, scaled by the passes over the data."""
        like = [past for past in self.past if "f1" in past and (past["size"], past["way"]) == (job["size"], job["way"])]
        return max((past["seconds"] * max(1.0, passes(job) / passes(past)) for past in like), default=1.0)

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Train and measure a job in a process of its own; returns its figures, or why there are none."""
        folder = self.runs / "".join(letter if letter.isalnum() else "-" for letter in job["name"])
        run, started = folder / "run", time.monotonic()
        if not (run / "checkpoints").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            text = yaml.safe_dump(recipe_of(job, self.data, folder, self.device), allow_unicode=True)
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
            arguments = [str(folder / "recipe.yaml"), *self.extra]
        else:
            arguments = ["--resume", str(run)]
        with (folder / "output.txt").open("w", encoding="utf-8") as output:
            command = [sys.executable, "-m", "spantune", "train", *arguments]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | threads, process_group=0
            )
            is_late = False
            try:
                process.wait(max(0.0, self.end - GRACE - time.monotonic()))
            except subprocess.TimeoutExpired:
                is_late = True
                stop(process)
        seconds = {"seconds": round(time.monotonic() - started, 1)}
        if process.returncode == 0:
            figures = figures_of(run)
            if self.keep:
                self.keep.mkdir(parents=True, exist_ok=True)
                newest = max((run / "predictions").glob("test-*.jsonl"), key=lambda path: path.stat().st_mtime)
                shutil.copy(newest, self.keep / f"{folder.name}.jsonl")
            shutil.rmtree(folder)
            return figures | seconds
        if is_late:
            return {"unfinished": True} | seconds
        error = (folder / "output.txt").read_text(encoding="utf-8")[-800:]
        shutil.rmtree(folder)
        return {"error": error} | seconds


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let a run save itself, and end it and its processes where it does not."""
    process.terminate()
    try:
        process.wait(GRACE - 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


def passes(job: dict[str, Any]) -> float:
    """The passes over the training data that a job makes."""
    return float(job["recipe"].get("train.epochs", 1))


def figures_of(run: Path) -> dict[str, Any]:
    """The figures of a finished run, from its metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    test = next(line for line in reversed(lines) if line["split"] == "test")
    dev = [line["f1"] for line in lines if line["split"] == "dev" and line["f1"] is not None]
    train = [line for line in lines if line["split"] == "train"]
    kept = ("f1", "f1_low", "f1_high", "precision", "recall", "macro_f1", "documents")
    return {
        **{key: test.get(key) for key in kept},
        "dev_f1": max(dev, default=None),
        "types": {key.removeprefix("f1/"): value for key, value in test.items() if key.startswith("f1/")},
        "steps": test["step"],
        "training_seconds": test.get("training_seconds"),
        "examples_per_s": train[-1].get("examples_per_s") if train else None,
        "peak_gib": train[-1].get("peak_gib") if train else None,
        "documents_per_s": round(test["documents"] / max(test["evaluation_seconds"], 1e-3), 1),
    }


def run_all(chosen: argparse.Namespace) -> None:
    """Run the jobs of `chosen.source` that have no result yet."""
    past = read_lines(chosen.out) if chosen.out.exists() else []
    finished = {line["name"] for line in past if "f1" in line}
    pending = [job for job in read_lines(chosen.source) if job["name"] not in finished]
    study = Study(
        pending, chosen.out, chosen.data.resolve(), chosen.runs, chosen.device, time.monotonic() + chosen.seconds,
        tuple(chosen.set), chosen.keep, past,
    )  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    places = [cores[number % len(cores)] if chosen.cores else None for number in range(chosen.workers)]
    threads = [threading.Thread(target=study.work, args=(core,)) for core in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in study.pending:
        print(f"not started: {job['name']}", flush=True)


def tables(lines: list[dict[str, Any]]) -> None:
    """Print the tables of the study."""
    results = list({line["name"]: line for line in lines if "f1" in line}.values())
    curve_table([line for line in results if line["group"] == "curve"])
    ablation_table([line for line in results if line["group"] == "ablation"])
    for group, title in (("final", "The finalist"), ("corpora", "Other corpora")):
        final_table(title, [line for line in results if line["group"] == group])
    done = {line["name"] for line in results}
    for line in {line["name"]: line for line in lines if line["name"] not in done}.values():
        print(f"- no result: {line['name']}: {(line.get('error') or 'unfinished').strip().splitlines()[-1]}")


def curve_table(results: list[dict[str, Any]]) -> None:
    """Print F1 by size of both ways: the mean over seeds, and the least and the greatest."""
    if not results:
        return
    print("### Learning curves\n\n| sentences | reading spans | seeds | writing | seeds | reading - writing |")
    print("|---|---|---|---|---|---|")
    for size in sorted({line["size"] for line in results}):
        cells, means = [], {}
        for way in BASE:
            values = [line["f1"] for line in results if (line["size"], line["way"]) == (size, way)]
            if values:
                means[way] = statistics.fmean(values)
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            single = [with_interval(line) for line in results if (line["size"], line["way"]) == (size, way)]
            cells += [(f"{means[way]:.3f}{spread}" if spread else single[0]) if values else "–", str(len(values))]
        gap = f"{means['spans'] - means['jsonl']:+.3f}" if len(means) == 2 else "–"
        print(f"| {size:,} | {' | '.join(cells)} | {gap} |")
    print()


def ablation_table(results: list[dict[str, Any]]) -> None:
    """Print each line of the ablation, the best first, with its distance to the base."""
    if not results:
        return
    base = next((line["f1"] for line in results if line["title"] == "base"), None)
    print(
        "### Ablations\n\n| changed | F1 (95 % interval) | to the base | precision | recall | train s | documents/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in sorted(results, key=lambda line: -line["f1"]):
        gap = f"{line['f1'] - base:+.3f}" if base is not None else "–"
        cells = [line["title"], with_interval(line), gap, f"{line['precision']:.3f}", f"{line['recall']:.3f}"]
        print(f"| {' | '.join(cells)} | {line['training_seconds']:.0f} | {line['documents_per_s']:.0f} |")
    print()


def final_table(title: str, results: list[dict[str, Any]]) -> None:
    """Print a line for each result, with its weakest and strongest type."""
    if not results:
        return
    print(f"### {title}\n\n| corpus | seed | reported on | F1 (95 % interval) | dev F1 | F1 by type |")
    print("|---|---|---|---|---|---|")
    for line in results:
        types = ", ".join(f"{name} {value:.2f}" for name, value in line["types"].items() if value is not None)
        cells = [line["corpus"], str(line["seed"]), line["report"], with_interval(line), f"{line['dev_f1']:.3f}", types]
        print(f"| {' | '.join(cells)} |")
    print()


def with_interval(line: dict[str, Any]) -> str:
    """F1 with its interval."""
    return f"{line['f1']:.3f}" + (
        f" ({line['f1_low']:.3f}–{line['f1_high']:.3f})" if line["f1_low"] is not None else ""
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings_of(pairs: Iterable[str]) -> dict[str, Any]:
    """The settings of `section.key=value` arguments, whose values are YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def main() -> None:
    """Make the data or the jobs, run them, or print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "jobs", "run", "table"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--group", choices=["curve", "ablation", "final", "corpora"], default="curve")
    parser.add_argument("--base", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all jobs of spans")
    parser.add_argument("--also", action="append", default=[], metavar='"NAME: KEY=VALUE …"', help="ablation lines")
    parser.add_argument("--data", type=Path, default=Path(), help="the folder that `data` wrote")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "quality-runs")
    parser.add_argument("--keep", type=Path, help="folder that gets the final predictions of every job")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cores", action="store_true", help="bind each job to one core")
    parser.add_argument("--seconds", type=float, default=1e9, help="when the last job must have ended")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every job, for a trial")
    chosen = parser.parse_args()
    if chosen.what == "data":
        make_data(chosen.source, chosen.out)
    elif chosen.what == "jobs":
        also = {name: settings_of(rest.split()) for name, _, rest in (line.partition(": ") for line in chosen.also)}
        jobs = make_jobs(chosen.source, chosen.group, settings_of(chosen.base), also)
        chosen.out.write_text("".join(json.dumps(job, ensure_ascii=False) + "\n" for job in jobs), encoding="utf-8")
    elif chosen.what == "run":
        run_all(chosen)
    else:
        tables(read_lines(chosen.source))


if __name__ == "__main__":
    main()
