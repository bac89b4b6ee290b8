"""The study behind docs/quality.md: compare reading spans with writing answers and with published encoders.

    python bench/quality.py data SOURCE FOLDER                    the corpora as native JSONL; never commit them
    python bench/quality.py jobs FOLDER OUT.jsonl --group curve   the runs of a group, one a line
    python bench/quality.py run JOBS.jsonl RESULTS.jsonl --data FOLDER --workers 16 --device cuda
    python bench/quality.py table RESULTS.jsonl                   Markdown tables of the results
    python bench/quality.py vote KEPT OUT.jsonl                   what more than half of the files in KEPT predict

A job is a run of `spantune train` in a process of its own; `--cores` binds each process to one core. Its recipe is the
base of its way of answering (`BASE` in quality_jobs.py) with the job's `recipe`, a mapping of `section.key` to value.

The dev split of CMeEE V1 has two halves. A, the first 1,250 sentences, is for choosing checkpoints, thresholds and
settings. B, the last 1,250, is reported.

A job with a result is skipped. A job that `--seconds` or `--until` has stopped is resumed from its last checkpoint, if
that still exists. A job may resume from the checkpoint of another job (`start`), or average the weights of other jobs
(`members`), and begins when these have ended; the jobs of group `soup` do so.

`--base` changes the settings of every job that reads spans, so that the groups `curve`, `final`, `soup` and `corpora`
follow a finalist. `run --keep KEPT` keeps the final predictions of every job. With the jobs of group `final` these are
the predictions of three seeds of one recipe, which `vote` joins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
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
from quality_jobs import MODEL, TASKS, make_jobs, passes, recipe_of
from quality_tables import tables

from spantune.core import Document, Entity, config
from spantune.data import read, read_source, repair_all, shared_texts, write
from spantune.encoding import make_task
from spantune.models import read_files

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
GROUPS = ("curve", "ablation", "answers", "final", "soup", "corpora")
BESIDE = Path(__file__).parent
GRACE = 25
"""Seconds that a job has to save itself when the time is over."""


def make_data(source: Path, folder: Path) -> None:
    """Write CORPUS-train, -dev and -test.jsonl of every corpus in `source`, and cmeee_v1-devA and -devB.jsonl.

    The training sentences are shuffled once, so that `data.limit` takes nested subsets. Texts that dev or test also has
    are left out of them, because `spantune train` refuses such a corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Document]] = {}
    if (source / "cmeee_v1").is_dir():
        dev = mended(source / "cmeee_v1" / "dev.jsonl")
        splits["cmeee_v1-train"] = shuffled(mended(source / "cmeee_v1" / "train.jsonl"))
        splits |= {"cmeee_v1-devA": dev[:HALF], "cmeee_v1-devB": dev[-HALF:]}
    if (source / "cmeee_v2_few_shot").is_dir():
        v2 = shuffled(mended(source / "cmeee_v2_few_shot" / "cmeee.jsonl"))
        splits |= {"cmeee_v2-train": v2[:2000], "cmeee_v2-dev": v2[2000:2250], "cmeee_v2-test": v2[2250:]}
    for corpus, files in SPLIT_FILES.items():
        if not (source / corpus).is_dir():
            continue
        for split, name in zip(("train", "dev", "test"), files, strict=True):
            documents = mended(source / corpus / name)
            splits[f"{corpus}-{split}"] = shuffled(documents) if split == "train" else documents
    for corpus in (name for name in TASKS if f"{name}-train" in splits):
        train, prefix = f"{corpus}-train", f"{corpus}-"
        held = [document for name in splits if name.startswith(prefix) and name != train for document in splits[name]]
        shared = set(shared_texts(splits[train], held))
        splits[train] = [document for document in splits[train] if document.text not in shared]
        print(f"{corpus}: {len(shared)} texts that dev or test has too are left out of train")
    for name, documents in splits.items():
        write(folder / f"{name}.jsonl", documents)
        describe(name, documents)


def mended(path: Path) -> list[Document]:
    """Return the documents of a corpus file; faults with one clear correction are repaired, others left out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        (repaired,) = repair_all([read_source(path)], copy)
        if repaired.dropped:
            print(f"{path}: {len(repaired.dropped)} entities or documents without one right answer left out")
        return list(read(copy, repaired.format).documents)


def shuffled(documents: Iterable[Document]) -> list[Document]:
    """Return the documents in random order; the order is the same at every call."""
    order = list(documents)
    random.Random(0).shuffle(order)
    return order


def describe(name: str, documents: list[Document]) -> None:
    """Print the documents, entities and long texts of a file, and the labels that its task does not have."""
    corpus = name.rpartition("-")[0]
    tokenizer, labels = read_files(MODEL).tokenizer, make_task(config.Task(**TASKS[corpus])).labels
    long = [length for document in documents if (length := len(tokenizer(document.text)["input_ids"])) > WINDOW]
    counts = Counter(entity.label for document in documents for entity in document.entities)
    unknown = set(counts) - {label.code for label in labels}
    print(f"{name}: {len(documents)} documents, {sum(counts.values())} entities of {len(counts)} types", end="")
    print(f", longer than {WINDOW} tokens: {long or 'none'}", f", UNKNOWN LABELS {unknown}" if unknown else "", sep="")


@dataclass
class Study:
    """Jobs that run several at a time until none is left or the time is over."""

    pending: list[dict[str, Any]]
    results: Path
    data: Path
    runs: Path
    device: str
    end: float
    extra: tuple[str, ...] = ()
    keep: Path | None = None
    retry: dict[str, Any] = field(default_factory=dict)
    past: list[dict[str, Any]] = field(default_factory=list)
    workers: int = 1
    running: dict[str, int] = field(default_factory=dict)
    """The places that each running job takes, by its name; there are as many places as workers."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def work(self, core: int | None) -> None:
        """Run one job after another; this is the main function of a thread.

        `core` is the core to which the thread and the processes of its jobs are bound, or None.
        """
        if core is not None:
            os.sched_setaffinity(0, {core})
        while (job := self._next()) is not None:
            try:
                result = job | self._run(job)
            finally:
                with self.changed:
                    del self.running[job["name"]]
                    self.changed.notify_all()
            with self.changed:
                if "error" in result and self.retry.items() - job["recipe"].items():
                    again = {"name": f"{job['name']}, tried again", "recipe": job["recipe"] | self.retry}
                    self.pending.insert(0, job | again)
                self.past.append(result)
                with self.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
            unfinished = "done" if "done" in result else f"unfinished, dev {result.get('dev')}"
            shown = result.get("f1", result.get("error", unfinished))
            print(f"{result['seconds']:6.0f} s  {job['name']}: {shown}", flush=True)

    def _next(self) -> dict[str, Any] | None:
        """Return the next job that can begin now and end in time.

        If a job may be able to begin later, wait for it; return None if there will be none.
        """
        with self.changed:
            while True:
                for place, job in enumerate(self.pending):
                    if self._can_begin(job):
                        self.running[job["name"]] = self._places(job)
                        return self.pending.pop(place)
                if not self.running:
                    return None
                self.changed.wait()

    def _can_begin(self, job: dict[str, Any]) -> bool:
        """Whether the jobs that this job needs have ended, enough places are free, and the job can end in time."""
        awaited = {other["name"] for other in self.pending} | self.running.keys()
        return (
            awaited.isdisjoint(needed(job))
            and sum(self.running.values()) + self._places(job) <= self.workers
            and self._longest(job) <= self.end - time.monotonic() - GRACE
        )

    def _places(self, job: dict[str, Any]) -> int:
        """Return how many places the job takes, at most the number of workers."""
        return min(self.workers, job.get("places", 1))

    def _longest(self, job: dict[str, Any]) -> float:
        """Return the seconds that the job will take at most, by finished jobs of the same size and way of answering.

        Their seconds are scaled by the passes over the data. Without such a job, return the job's `expected`.
        """
        like = [past for past in self.past if "f1" in past and (past["size"], past["way"]) == (job["size"], job["way"])]
        return max(
            (past["seconds"] * max(1.0, passes(job) / passes(past)) for past in like), default=job.get("expected", 1.0)
        )

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Train and measure a job in a process of its own; return its figures, or why there are none."""
        folder, started = self._folder(job["name"]), time.monotonic()
        run, is_late = folder / "run", False
        command = self._command(job, folder)
        with (folder / "output.txt").open("w", encoding="utf-8") as output:
            added = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
            added["SPANTUNE_TRICKS"] = job.get("tricks", "")
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | added, process_group=0
            )
            try:
                process.wait(max(0.0, self.end - GRACE - time.monotonic()))
            except subprocess.TimeoutExpired:
                is_late = True
                stop(process)
        seconds = {"seconds": round(time.monotonic() - started, 1)}
        if process.returncode == 0:
            figures = soup_figures(folder) if "members" in job else figures_of(run)
            if self.keep:
                self.keep.mkdir(parents=True, exist_ok=True)
                newest = max((run / "predictions").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
                shutil.copy(newest, self.keep / f"{folder.name}.jsonl")
            self._discard(job, folder)
            return figures | seconds
        if is_late:
            return {"unfinished": True, "dev": dev_figures(run), **soup_figures(folder)} | seconds
        if "stops" in job and process.returncode == 128 + signal.SIGTERM:
            return {"done": True} | seconds
        error = (folder / "output.txt").read_text(encoding="utf-8")[-800:]
        measured = soup_figures(folder)
        shutil.rmtree(folder)
        return {"error": error, **measured} | seconds

    def _folder(self, name: str) -> Path:
        """Return the folder of the job with this name."""
        return self.runs / "".join(letter if letter.isalnum() else "-" for letter in name)

    def _command(self, job: dict[str, Any], folder: Path) -> list[str]:
        """Prepare the folder of a job (recipe, or the run to resume from), and return the job's command."""
        if "members" in job:
            folder.mkdir(parents=True, exist_ok=True)
            halves = [str(self.data / f"{job['corpus']}-dev{half}.jsonl") for half in ("A", job["report"])]
            runs = [str(self._folder(name) / "run") for name in job["members"]]
            return [sys.executable, str(BESIDE / "quality_soup.py"), str(folder), *halves, *runs]
        run = folder / "run"
        if not (run / "checkpoints").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            start = self._folder(job["start"]) / "run" if "start" in job else None
            if start is not None and start.is_dir():
                shutil.copytree(start, run)
        if "start" in job or run.is_dir():
            arguments = ["--resume", str(run)]
        else:
            text = yaml.safe_dump(recipe_of(job, self.data, folder, self.device), allow_unicode=True)
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
            arguments = [str(folder / "recipe.yaml"), *self.extra]
        program = [str(BESIDE / "quality_tricks.py")] if "tricks" in job else ["-m", "spantune"]
        return [sys.executable, *program, "train", *arguments]

    def _discard(self, job: dict[str, Any], folder: Path) -> None:
        """Remove the folder of a job that has ended, unless a pending job needs it."""
        with self.changed:
            if not any(job["name"] in needed(other) for other in self.pending):
                shutil.rmtree(folder)


def needed(job: dict[str, Any]) -> list[str]:
    """Return the names of the jobs that must end before this job begins."""
    return [*job.get("members", ()), *([job["start"]] if "start" in job else ())]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a run to stop and save itself; after GRACE - 5 seconds, kill it and its processes."""
    process.terminate()
    try:
        process.wait(GRACE - 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


def figures_of(run: Path) -> dict[str, Any]:
    """Return the figures of a finished run, from its metrics.jsonl."""
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


def soup_figures(folder: Path) -> dict[str, Any]:
    """Return the figures of the first average in `folder`, and those of all averages as `soups`."""
    file = folder / "soups.jsonl"
    soups = read_lines(file) if file.exists() else []
    return soups[0] | {"soups": soups} if soups else {}


def dev_figures(run: Path) -> dict[int, float]:
    """Return F1 on dev by step, of the evaluations that a run has made so far."""
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    return {line["step"]: line["f1"] for line in lines if line["split"] == "dev"}


def run_all(chosen: argparse.Namespace) -> None:
    """Run the jobs of `chosen.source` that have no result in `chosen.out` yet."""
    past = read_lines(chosen.out) if chosen.out.exists() else []
    finished = {line["name"] for line in past if "f1" in line or "done" in line}
    pending = [job for job in read_lines(chosen.source) if job["name"] not in finished]
    end = time.monotonic() + min(chosen.seconds, chosen.until - time.time())
    study = Study(
        pending, chosen.out, chosen.data.resolve(), chosen.runs, chosen.device, end,
        tuple(chosen.set), chosen.keep, settings_of(chosen.retry), past, chosen.workers,
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


def vote(folder: Path, out: Path) -> None:
    """Write the entities that are in more than half of the prediction files in `folder`, of the same documents."""
    corpora = [read(path).documents for path in sorted(folder.glob("*.jsonl"))]
    joined = []
    for documents in zip(*corpora, strict=True):
        counts = Counter((e.start, e.end, e.label) for document in documents for e in document.entities)
        kept = tuple(Entity(*span) for span, count in sorted(counts.items()) if 2 * count > len(corpora))
        joined.append(Document(documents[0].id, documents[0].text, kept))
    write(out, joined)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings_of(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the settings of `section.key=value` arguments; the values are parsed as YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def main() -> None:
    """Run the command: write the data or the jobs, run the jobs, join predictions, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "jobs", "run", "table", "vote"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--group", choices=GROUPS, default="curve")
    parser.add_argument("--base", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all jobs of spans")
    parser.add_argument("--also", action="append", default=[], metavar='"NAME: KEY=VALUE …"', help="ablation lines")
    parser.add_argument("--data", type=Path, default=Path(), help="the folder that `data` wrote")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "quality-runs")
    parser.add_argument("--keep", type=Path, help="folder that gets the final predictions of every job")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cores", action="store_true", help="bind each job to one core")
    parser.add_argument("--seconds", type=float, default=1e9, help="in how many the last job must have ended")
    parser.add_argument("--until", type=float, default=1e12, help="the same as a time, in seconds since 1970")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every job, for a trial")
    parser.add_argument("--retry", nargs="*", default=[], metavar="KEY=VALUE", help="try failed jobs again with these")
    chosen = parser.parse_args()
    if chosen.what == "data":
        make_data(chosen.source, chosen.out)
    elif chosen.what == "jobs":
        also = {name: settings_of(rest.split()) for name, _, rest in (line.partition(": ") for line in chosen.also)}
        jobs = make_jobs(chosen.source, chosen.group, settings_of(chosen.base), also)
        jobs.sort(key=lambda job: -job["size"] * passes(job))  # long jobs first, so that the workers end together
        chosen.out.write_text("".join(json.dumps(job, ensure_ascii=False) + "\n" for job in jobs), encoding="utf-8")
    elif chosen.what == "run":
        run_all(chosen)
    elif chosen.what == "vote":
        vote(chosen.source, chosen.out)
    else:
        tables(read_lines(chosen.source))


if __name__ == "__main__":
    main()
