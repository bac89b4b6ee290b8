"""Memory and speed of `spantune extract` over many documents, one process a count so that each peak is its own.

    python bench/bulk.py [--documents 12000 24000] [--run RUN] [--folder FOLDER] [--json]

Documents are short sentences of the bundled clinical corpus, numbered so that all differ. Without a run, a model of
two small layers is trained on some of them for seconds: its answers are cut short, so that the work around the model is
what is measured. Memory is constant when the last column stays near 0, from 10,000 documents on: so many texts a
tokenizer keeps, some 50 MiB with the toy's, whose words are whole prompts. Prints a Markdown table, or one JSON object.
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
    """Train `folder`/toy, a finished run of a toy model."""
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
    """`count` different lines of text."""
    texts = sorted((document.text for document in formats.read("bundled:clinical-zh-train").documents), key=len)[:50]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f"{texts[number % len(texts)]}{number}\n")


def measure(run: Path, source: Path, out: Path) -> tuple[float, float, int]:
    """Seconds, peak of resident memory in MiB, and lines written by one call of the command line."""
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
        if arguments.run is None:  # in a process of its own: what this one takes would count as its children's
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
