"""Compare extraction on Ray by one single-threaded worker and by several on this machine: CPU time per document.

    python bench/ray_rate.py --run runs/demo --documents 1600 --workers 1 2

Each number of workers extracts the same documents, in turns. Loading the model and the first part of each worker are
left out. `times` is the speed-up that the CPU time per document allows if every worker has a core of its own. On a
machine that does other work too, it says more than documents per second, which count from the moment when every worker
has finished its first part. Prints a line of JSON for each turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

from spantune.core import Resources, connected
from spantune.data import formats
from spantune.extraction import Task
from spantune.extraction.scale import ray_engine
from spantune.extraction.scale.parts import Folder
from spantune.extraction.scale.ray_engine import Worker, _outcomes
from spantune.extraction.scale.shards import part_size, shards_of, survey
from spantune.extraction.scale.sources import find_sources
from spantune.runs import RunFolder


def main() -> None:
    """Measure each number of workers, `--turns` times."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--data", default="bundled:clinical-zh-test")
    options.add_argument("--documents", type=int, default=1600)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--turns", type=int, default=1)
    chosen = options.parse_args()
    ray_engine.Worker = TimedWorker  # type: ignore[misc]
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


class TimedWorker(Worker):
    """A worker that adds its CPU time, in microseconds, to the notes of each part except its first."""

    is_warm = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Extract a part as `Worker` does, and add the note `cpu_us`."""
        began = time.process_time()
        outcome = pickle.loads(super().__call__(batch)["outcome"][0])
        if self.is_warm:
            outcome.tally.notes["cpu_us"] = round(1e6 * (time.process_time() - began))
        self.is_warm = True
        return {"outcome": [pickle.dumps(outcome)]}


def _measured(chosen: argparse.Namespace, work: Path, turn: int, workers: int) -> dict[str, Any]:
    """Extract with this many workers; return CPU ms per document, documents per second and all seconds."""
    sources = find_sources([str(work / "in.jsonl")])
    shards = shards_of(sources, [survey(sources[0], False).marks], part_size(chosen.documents, max(chosen.workers)))
    settings = RunFolder(chosen.run).config().extract
    task = Task(chosen.run.resolve(), (), settings, device="cpu")
    folder = Folder(str(work / f"out-{turn}-{workers}"), "native")
    began, timed, cpu_us = time.perf_counter(), 0, 0
    loaded, ready, after = 0, began, 0
    for outcome in _outcomes(shards, (task, folder, False, Resources(workers, 1, 0.0))):
        if (of_part := outcome.tally.notes["cpu_us"]) > 0:
            timed, cpu_us = timed + outcome.documents, cpu_us + of_part
            after += outcome.documents if loaded == workers else 0
        else:
            loaded, ready, after = loaded + 1, time.perf_counter(), 0
    end = time.perf_counter()
    return {
        "workers": workers,
        "documents": timed,
        "cpu_ms_per_document": round(cpu_us / 1000 / timed, 2),
        "documents_per_s": round(after / (end - ready), 2),
        "seconds": round(end - began, 1),
    }


if __name__ == "__main__":
    main()
