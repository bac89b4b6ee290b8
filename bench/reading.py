"""Measure the speed and memory of reading corpora of 10 MB to 1 GB.

    python bench/reading.py [--formats native few_shot cmeee conll] [--megabytes 10 100 1000] [--folder /tmp/reading]
    python bench/reading.py --recognise [--megabytes 1 3 30]

Each file is read by a process of its own, so that the memory peaks are independent. The files repeat the bundled
clinical corpus. Prints a Markdown table. The column `ratio` divides MB/s by the MB/s of the same format's first file in
the same run. `--recognise` measures only how long it takes to recognise the format, with the slowest kind of file: a
JSON array on one line, of texts without annotations, which must be read to its end.
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
    """Yield documents of the bundled corpus, repeated until they take about `size` bytes in `format`."""
    corpus = formats.read("bundled:clinical-zh-train").documents
    sample = Path(f"/tmp/reading-sample-{format}{SUFFIX.get(format, '.jsonl')}")
    formats.write(sample, corpus, format, OPTIONS)
    rounds = max(1, round(size / sample.stat().st_size))
    sample.unlink()
    for number in range(rounds):
        for document in corpus:
            yield replace(document, id=f"{document.id}-{number}")


def measure(path: str, format: str) -> None:
    """Read `path` and print the documents, the seconds and the peak of resident memory in MiB as JSON."""
    began = time.perf_counter()
    count = sum(1 for _ in formats.stream(path, format, Counter()))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"documents": count, "seconds": seconds, "peak": peak}))


def write_unannotated(path: Path, megabytes: int) -> None:
    """Write about `megabytes` MB of the corpus's texts, without entities, as a JSON array on one line."""
    texts = [document.text for document in formats.read("bundled:clinical-zh-train").documents]
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            record = json.dumps({"text": f"{texts[number % len(texts)]}{number}", "entities": []}, ensure_ascii=False)
            file.write(("," if number else "[") + record)
            written, number = written + len(record.encode()), number + 1
        file.write("]")


def recognise(folder: Path, sizes: list[int]) -> None:
    """Print how long it takes to recognise the format of files of `sizes` MB."""
    print("| MB | s | MB/s | ratio |\n|---|---|---|---|")
    first = 0.0
    for megabytes in sizes:
        path = folder / "unannotated.json"
        write_unannotated(path, megabytes)
        began = time.perf_counter()
        formats.detect(path)
        seconds = time.perf_counter() - began
        speed = path.stat().st_size / 1e6 / seconds
        first = first or speed
        print(f"| {megabytes} | {seconds:.2f} | {speed:.2f} | {speed / first:.2f} |", flush=True)
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["native", "few_shot", "cmeee", "conll"])
    parser.add_argument("--megabytes", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/reading"))
    parser.add_argument("--recognise", action="store_true", help="only recognise the format")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "FORMAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.recognise:
        recognise(arguments.folder, arguments.megabytes)
        return
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
