"""Extraction on Ray by one single-threaded worker and by several, on this machine: documents a second, and CPU time.

    python bench/ray_rate.py --run runs/demo --documents 1600 --workers 1 2

Each number of workers extracts the same documents, in turns. The rate counts from the moment at which every worker has
written a part, so that starting Ray and loading the model are left out, to the last part. On a machine that does other
things too, look at the milliseconds of a processor that a document takes: `times` is what they allow with a core for
each worker, if nothing else holds them up. Prints a line of JSON for each turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spantune.data import formats
from spantune.extraction import Task
from spantune.extraction.scale.cluster import Resources, connected
from spantune.extraction.scale.parts import Folder
from spantune.extraction.scale.ray_engine import _outcomes
from spantune.extraction.scale.shards import part_size, shards_of, survey
from spantune.extraction.scale.sources import find_sources
from spantune.runs import RunFolder

TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure each number of workers, `--turns` times."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--data", default="bundled:clinical-zh-test")
    options.add_argument("--documents", type=int, default=1600)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--turns", type=int, default=1)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as work, connected(None):
        texts = itertools.islice(itertools.cycle(formats.read(chosen.data).documents), chosen.documents)
        lines = [json.dumps({"id": str(number), "text": document.text}) for number, document in enumerate(texts)]
        (Path(work) / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
        cpu_ms: dict[int, float] = {}
        for turn, workers in itertools.product(range(chosen.turns), chosen.workers):
            row = _measured(chosen, Path(work), turn, workers)
            cpu_ms[workers] = row["cpu_ms_per_document"]
            first = chosen.workers[0]
            row["times"] = round(workers / first * cpu_ms[first] / cpu_ms[workers], 3)
            print(json.dumps(row), flush=True)


def _measured(chosen: argparse.Namespace, work: Path, turn: int, workers: int) -> dict[str, Any]:
    """The rate and the CPU time of a document, from the first part of each worker on."""
    sources = find_sources([str(work / "in.jsonl")])
    shards = shards_of(sources, [survey(sources[0], False).marks], part_size(chosen.documents, max(chosen.workers)))
    settings = RunFolder(chosen.run).config().extract
    task = Task(chosen.run.resolve(), (), settings, device="cpu")
    folder = Folder(str(work / f"out-{turn}-{workers}"), "native")
    before, seen, done = _cpu_seconds(), 0, 0
    began, started, cpu, at_start = time.perf_counter(), 0.0, 0.0, 0
    for outcome in _outcomes(shards, (task, folder, False, Resources(workers, 1, 0.0))):
        seen, done = seen + 1, done + outcome.documents
        _cpu_seconds()  # of workers that end before the last part too
        if seen == 2 * workers:  # every one has loaded the model
            started, cpu, at_start = time.perf_counter(), _cpu_seconds(), done
    counted = done - at_start
    seconds = time.perf_counter() - started
    return {
        "workers": workers,
        "documents_per_s": round(counted / seconds, 1),
        "cpu_ms_per_document": round(1000 * (_cpu_seconds() - cpu) / counted, 2),
        "ready_s": round(started - began, 1),
        "ready_cpu_s": round(cpu - before, 1),
    }


_lives: dict[int, float] = {}


def _cpu_seconds() -> float:
    """The processor seconds of all workers of this machine so far, those that have ended included."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::MapWorker" in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                _lives[int(process.name)] = (int(fields[11]) + int(fields[12])) / TICK
    return sum(_lives.values())


if __name__ == "__main__":
    main()
