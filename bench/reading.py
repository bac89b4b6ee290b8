"""Speed and memory of reading corpora from 10 MB to 1 GB, one process a file so that each peak is its own.

    python bench/reading.py [--formats native few_shot cmeee conll] [--megabytes 10 100 1000] [--folder /tmp/reading]

Files are made of the bundled clinical corpus, over and over. Prints a Markdown table; a ratio is MB/s against those of
the format's smallest file in the same run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spantune.core import Document
from spantune.data import Options, formats

SUFFIX = {"cmeee": ".json", "conll": ".bio", "chip": ".txt", "marked": ".txt", "table": ".csv", "label_studio": ".json"}
OPTIONS = Options(nested="outermost")


def repeated(size: int, format: str) -> Iterator[Document]:
    """Documents of the bundled corpus until about `size` bytes are written in `format`."""
    corpus = formats.read("bundled:clinical-zh-train").documents
    sample = Path(f"/tmp/reading-sample-{format}{SUFFIX.get(format, '.jsonl')}")
    formats.write(sample, corpus, format, OPTIONS)
    rounds = max(1, round(size / sample.stat().st_size))
    sample.unlink()
    for number in range(rounds):
        for document in corpus:
            yield replace(document, id=f"{document.id}-{number}")


def measure(path: str, format: str) -> None:
    """Read `path` and print documents, seconds and the peak of resident memory in MiB as JSON."""
    began = time.perf_counter()
    count = sum(1 for _ in formats.stream(path, format, Counter()))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"documents": count, "seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["native", "few_shot", "cmeee", "conll"])
    parser.add_argument("--megabytes", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/reading"))
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "FORMAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print("| format | MB | documents | s | MB/s | ratio | peak MiB |\n|---|---|---|---|---|---|---|")
    for format in arguments.formats:
        first = 0.0
        for megabytes in arguments.megabytes:
            path = arguments.folder / f"corpus{SUFFIX.get(format, '.jsonl')}"
            formats.write(path, repeated(megabytes * 1_000_000, format), format, OPTIONS)
            size = path.stat().st_size / 1e6
            command = [sys.executable, __file__, "--measure", str(path), format]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            speed = size / found["seconds"]
            first = first or speed
            row = [format, f"{size:.0f}", found["documents"], f"{found['seconds']:.2f}", f"{speed:.1f}"]
            print("|", " | ".join(map(str, [*row, f"{speed / first:.2f}", f"{found['peak']:.0f}"])), "|", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
