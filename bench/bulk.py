"""Measure the memory and speed of `spantune extract` over many documents.

    python bench/bulk.py [--documents 12000 24000] [--run RUN] [--folder FOLDER] [--json]

Each number of documents is extracted by a process of its own, so that the memory peaks are independent. The documents
are short sentences of the bundled clinical corpus with a number appended, so that all are different. Without `--run`,
a model of two small layers is trained for a few seconds. Its answers are cut short, so that the bench measures the work
around the model. Memory is constant if the last column stays near 0. Compare from 10,000 documents on: the tokenizer
caches the first 10,000 words that it has seen. With the toy model, whose words are whole prompts, this cache takes
about 50 MiB. Prints a Markdown table, or one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from spantune.data import formats


def make_run(folder: Path) -> None:
    """Train a toy model; the finished run is written to `folder`/toy."""
    from helpers.fakes import MERGES, save_model
    from spantune.core import parse_config
    from spantune.training import train

    documents = sorted(formats.read("bundled:clinical-zh-train").documents, key=lambda document: len(document.text))
    formats.write(folder / "train.jsonl", documents[:24])
    formats.write(folder / "dev.jsonl", documents[24:30])
    labels = sorted({entity.label for document in documents for entity in document.entities})
    recipe: dict[str, Any] = {
        "run": {"name": "toy", "folder": str(folder)},
        "model": {"source": str(save_model(folder / "model", "phi3", MERGES)), "base": "fp32"},
        "task": {"labels": labels, "instruction": "Find entities."},
        "data": {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")},
        "train": {"max_steps": 12, "batch_examples": 6, "learning_rate": 0.02, "loss_on": "choices"},
        "extract": {"max_new_tokens": 16},
        "track": {"swanlab": "off"},
    }
    train(parse_config(recipe))


def write_texts(path: Path, count: int) -> None:
    """Write `count` lines of text to `path`, all different."""
    texts = sorted((document.text for document in formats.read("bundled:clinical-zh-train").documents), key=len)[:50]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f"{texts[number % len(texts)]}{number}\n")


def measure(run: Path, source: Path, out: Path) -> tuple[float, float, int]:
    """Run `spantune extract` once; return its seconds, its peak of resident memory in MiB and the lines written."""
    command = [sys.executable, "-m", "spantune", "extract", str(run), str(source), "--out", str(out)]
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"failed: {' '.join(command)}")
    with out.open("rb") as file:
        return seconds, usage.ru_maxrss / 1024, sum(1 for _ in file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", type=int, default=[12000, 24000])
    parser.add_argument("--run", type=Path, help="a finished run; a toy is trained without it")
    parser.add_argument("--folder", type=Path, help="where files are written; one that is removed without it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_run(arguments.make)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        run = arguments.run or folder / "toy"
        if arguments.run is None:  # train in another process: the children of this process inherit its memory peak
            subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True, stdout=subprocess.DEVNULL)
        rows = []
        for count in sorted(arguments.documents):
            write_texts(folder / "in.txt", count)
            seconds, peak, lines = measure(run, folder / "in.txt", folder / "out.jsonl")
            assert lines == count, f"{lines} lines of {count} documents"
            rows.append({"documents": count, "seconds": round(seconds, 1), "peak_mib": round(peak, 1)})
    for row in rows:
        row["more_mib"] = round(row["peak_mib"] - rows[0]["peak_mib"], 1)
    if arguments.json:
        print(json.dumps({"rows": rows}))
        return
    print("| documents | seconds | documents/s | peak MiB | more than the first |\n|---|---|---|---|---|")
    for row in rows:
        rate = row["documents"] / row["seconds"]
        print(f"| {row['documents']:,} | {row['seconds']} | {rate:.0f} | {row['peak_mib']} | {row['more_mib']:+} |")


if __name__ == "__main__":
    main()
