"""Measure the speed and memory of `spantune data check` and `data split` on large corpora, with several process counts.

    python bench/corpus_work.py [--megabytes 10 100] [--workers 1 2] [--before SRC] [--corpus FILE …] [--json]
    python bench/corpus_work.py --megabytes 1000 --workers 2

The corpus is made from real sentences, by default those that come with spantune. In each sentence, half of the
characters outside of entities are replaced by random characters of the corpus. 1 % of the texts repeat an earlier text,
and 2 % are an earlier text with one more character at the end. `--before` also measures the code of another checkout,
given by its folder `src`.

Each command runs in a process of its own. A row is printed as soon as it is measured: seconds, CPU seconds of all
processes, and the sum of the memory peaks of these processes. 10 and 100 MB take about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from spantune.core import Document, to_json, to_record
from spantune.data import formats

CHANGED, REPEATED, EXTENDED = 0.5, 0.01, 0.02
RECENT = 2000
Row = dict[str, object]


def varied(sentences: Sequence[Document], seed: int = 0) -> Iterator[Document]:
    """Yield sentences made from `sentences`, without end: most are varied, some repeat or extend an earlier one."""
    chance = random.Random(seed)
    signs = "".join(document.text for document in sentences)
    recent: list[Document] = []
    number = 0
    while True:
        kind = chance.random()
        if recent and kind < REPEATED + EXTENDED:
            document = chance.choice(recent)
            document = replace(
                document, text=document.text + ("" if kind < REPEATED else chance.choice("甲乙丙丁abcd"))
            )
        else:
            document = chance.choice(sentences)
            inside = {place for entity in document.entities for place in range(entity.start, entity.end)}
            text = (
                sign if place in inside or chance.random() > CHANGED else chance.choice(signs)
                for place, sign in enumerate(document.text)
            )
            document = replace(document, text="".join(text))
        if len(recent) < RECENT:
            recent.append(document)
        else:
            recent[chance.randrange(RECENT)] = document
        yield replace(document, id=f"d{number}")
        number += 1


def write(path: Path, sentences: Sequence[Document], megabytes: int) -> int:
    """Write about `megabytes` MB of varied sentences to `path`; return the number of documents."""
    written = documents = 0
    with path.open("wb") as file:
        for document in varied(sentences):
            if written >= megabytes * 1_000_000:
                break
            written += file.write(f"{to_json(to_record(document))}\n".encode())
            documents += 1
    return documents


def tree_of(pid: int) -> list[int]:
    """Return the process ids of `pid` and of all its descendants."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def peak_of(pid: int) -> float:
    """Return the peak of resident memory of a process so far, in MiB; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(arguments: Sequence[str], source: Path) -> Row:
    """Run `spantune data` with the code in the folder `source`; return its seconds, CPU seconds and memory in MiB."""
    peaks: dict[int, float] = {}
    before = os.times()
    began = time.perf_counter()
    places = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", "spantune", "data", *arguments, "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for pid in tree_of(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), peak_of(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode not in (0, 1) or not printed.startswith(b"{"):  # 1: errors in the corpus, or a traceback
        raise SystemExit(f"failed: {' '.join(arguments)}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(sum(peaks.values())),
    }


def main() -> None:
    """Measure the commands, sizes and process counts of the command line, and print each row when it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--commands", nargs="+", choices=["check", "split"], default=["check", "split"])
    parser.add_argument("--before", type=Path, help="the folder src of another checkout, measured too")
    parser.add_argument("--corpus", nargs="+", default=["bundled:clinical-zh-train", "bundled:biomedical-en-train"])
    parser.add_argument("--json", action="store_true", help="print one JSON object a row instead of a table")
    arguments = parser.parse_args()
    here = Path(__file__).parents[1] / "src"
    sentences = [document for name in arguments.corpus for document in formats.read(name).documents]
    if not arguments.json:
        print("| command | MB | documents | code | s | CPU s | MB/s | peak MiB |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        file, folder = Path(temporary, "corpus.jsonl"), Path(temporary, "splits")
        for megabytes in arguments.megabytes:
            print(f"writing {megabytes} MB …", file=sys.stderr)
            documents = write(file, sentences, megabytes)
            runs = [(f"{count} processes", here, ["--workers", str(count)]) for count in arguments.workers]
            if arguments.before:
                runs.insert(0, ("before", arguments.before, []))
            for command in arguments.commands:
                for name, source, options in runs:
                    print(f"data {command}, {megabytes} MB, {name} …", file=sys.stderr)
                    more = [] if command == "check" else ["--to", str(folder)]
                    row = measure([command, str(file), *more, *options], source)
                    shutil.rmtree(folder, ignore_errors=True)
                    report({"command": command, "megabytes": megabytes, "documents": documents, "code": name, **row},
                           is_json=arguments.json)  # fmt: skip


def report(row: Row, *, is_json: bool) -> None:
    """Print one row: as JSON, or as a row of the Markdown table."""
    if is_json:
        print(json.dumps(row), flush=True)
        return
    speed = float(str(row["megabytes"])) / float(str(row["seconds"]))
    cells = [*list(row.values())[:-1], f"{speed:.2f}", row["peak_mib"]]
    print("|", " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells), "|", flush=True)


if __name__ == "__main__":
    main()
