"""The service under load, against offline extraction by the same run, on this machine.

    python bench/serving.py --run runs/demo --seconds 60 --clients 64

Starts `spantune serve` in a process of its own, asks it over loopback, and compares every answer with what offline
extraction says of the same text: the same spans and labels, scores within 0.01. Measured are: seconds until it
listens; p50 and p99 of a single text, asked one after the other; documents per second of all clients together, against
offline extraction of the same texts before and after, and the time of the processors that a document takes, which
depends less on what else the machine does; the memory of the service; how fast a full queue is answered 429;
and whether SIGTERM under load loses an answer. Takes about `--seconds` and two minutes. With `--json` the last line is
one JSON object. With `--cores 0,1` offline extraction and the service run on those cores alone, and the clients, which
this process is, on all others: otherwise the clients take processor time that the service is then short of.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

QUEUE = 64
OFFLINE = """
import json, sys, time
from spantune.core import Document
from spantune.extraction import load_run
texts = json.loads(sys.stdin.read())
extractor = load_run(sys.argv[1])
documents = [Document(str(index), text) for index, text in enumerate(texts)]
list(extractor.stream(documents[:32]))
began, done, cpu = time.perf_counter(), 0, time.process_time()
while done == 0 or time.perf_counter() - began < float(sys.argv[2]):
    answers = list(extractor.stream(documents))
    done += len(answers)
rate = done / (time.perf_counter() - began)
cpu = 1000 * (time.process_time() - cpu) / done
entities = [[[e.start, e.end, e.label, e.score] for e in answer.document.entities] for answer in answers]
print(json.dumps({"rate": rate, "cpu_ms": cpu, "entities": entities}))
"""


def main() -> None:
    """Measure what the command line asks for."""
    chosen = _options()
    texts = _texts(chosen.data, chosen.texts)
    on = _placed(chosen.cores)
    before = offline(chosen.run, texts, chosen.offline_seconds, on)
    expected = before["entities"]
    with tempfile.TemporaryDirectory() as folder, service(chosen.run, Path(folder), on) as served:
        measured: dict[str, Any] = {"cores": chosen.cores or "all, shared with the clients"}
        measured |= {"cold_start_s": served.cold, "texts": len(texts), "clients": chosen.clients}
        measured |= asyncio.run(measure(served, texts, expected, chosen))
        measured["exit_code"] = served.process.wait(60)
    after = offline(chosen.run, texts, chosen.offline_seconds, on)
    rate = statistics.mean((before["rate"], after["rate"]))
    measured |= {"offline_per_s": [round(before["rate"], 2), round(after["rate"], 2)]}
    measured["offline_cpu_ms_per_document"] = [round(before["cpu_ms"], 1), round(after["cpu_ms"], 1)]
    measured["of_offline"] = round(measured["documents_per_s"] / rate, 3)
    for name, value in measured.items():
        print(f"{name}: {value}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(measured))


def _placed(cores: str) -> list[str]:
    """Move this process off some cores; returns what a command on those cores begins with."""
    if not cores:
        return []
    chosen = {int(core) for core in cores.split(",")}
    os.environ["OMP_NUM_THREADS"] = str(len(chosen))
    os.sched_setaffinity(0, os.sched_getaffinity(0) - chosen or sys.exit("--cores leaves none for the clients"))
    return ["taskset", "--cpu-list", cores]


def offline(run: Path, texts: list[str], seconds: float, on: list[str]) -> dict[str, Any]:
    """Documents per second of offline extraction, and the entities of each text."""
    command = [*on, sys.executable, "-c", OFFLINE, str(run), str(seconds)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Served:
    """The process of the service, its address, and how long it took until it listened."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        began = time.perf_counter()
        self.process, self._log = process, log
        while not (match := re.search(r"http://127\.0\.0\.1:\d+", log.read_text("utf-8"))):
            if process.poll() is not None:
                sys.exit(log.read_text("utf-8"))
            time.sleep(0.02)
        self.url, self.cold = match[0], round(time.perf_counter() - began, 2)

    @property
    def cpu_seconds(self) -> float:
        """The time of the processors that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        """The resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


@contextmanager
def service(run: Path, folder: Path, on: list[str]) -> Iterator[Served]:
    """A service of a run, ended with the block."""
    log = folder / "log"
    with log.open("wb") as file:
        command = [*on, sys.executable, "-m", "spantune", "serve", str(run), "--port", "0", "--max-queue", str(QUEUE)]
        process = subprocess.Popen(command, stderr=file)
        try:
            yield Served(process, log)
        finally:
            process.kill()
            process.wait()


class Load:
    """What clients ask and get."""

    def __init__(self, client: httpx2.AsyncClient, texts: list[str], expected: list[list[list[Any]]]):
        self.client, self.texts, self.expected = client, texts, expected
        self.next = 0
        self.seconds: dict[int, list[float]] = {200: [], 429: [], 503: []}
        self.wrong: Counter[str] = Counter()

    async def ask(self) -> int:
        """Ask for the next text, compare, and return the status."""
        index = self.next % len(self.texts)
        self.next += 1
        began = time.perf_counter()
        try:
            answer = await self.client.post("/v1/extract", json={"text": self.texts[index]})
        except httpx2.HTTPError as error:
            self.wrong[type(error).__name__] += 1
            return 0
        self.seconds.setdefault(answer.status_code, []).append(time.perf_counter() - began)
        if answer.status_code == 200 and not _same(answer.json()["entities"], self.expected[index]):
            self.wrong["differs"] += 1
        return answer.status_code

    async def run(self, clients: int, seconds: float, *, until_refused: bool = False, pause: float = 0) -> float:
        """Let so many clients ask for so long; returns the seconds that it took."""
        began = time.perf_counter()

        async def one() -> None:
            while time.perf_counter() - began < seconds:
                if await self.ask() in (0, 503) and until_refused:
                    return
                await asyncio.sleep(pause)

        await asyncio.gather(*(one() for _ in range(clients)))
        return time.perf_counter() - began


async def measure(served: Served, texts: list[str], expected: list[Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """All figures of a service that listens; it is told to end at last."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=served.url, timeout=90, limits=limits) as client:
        warm, alone, load, filling, full, ending = (Load(client, texts, expected) for _ in range(6))
        await warm.run(chosen.clients, 5)
        await alone.run(1, chosen.single_seconds)
        start = served.megabytes
        memory: list[float] = []

        async def watch() -> None:
            while True:
                await asyncio.sleep(chosen.seconds / 6)
                memory.append(served.megabytes)

        watching = asyncio.create_task(watch())
        cpu = served.cpu_seconds
        seconds = await load.run(chosen.clients, chosen.seconds)
        cpu = served.cpu_seconds - cpu
        watching.cancel()
        await asyncio.gather(filling.run(QUEUE + 8, 10), full.run(1, 10, pause=0.02))
        loaded = asyncio.create_task(ending.run(chosen.clients, 60, until_refused=True))
        await asyncio.sleep(2)
        served.process.send_signal(signal.SIGTERM)
        await loaded
    return {
        "single_ms": _percentiles(alone.seconds[200]),
        "documents_per_s": round(len(load.seconds[200]) / seconds, 2),
        "cpu_ms_per_document": round(1000 * cpu / max(1, len(load.seconds[200])), 1),
        "loaded_ms": _percentiles(load.seconds[200]),
        "answers": len(load.seconds[200]),
        "statuses": {status: len(each) for status, each in load.seconds.items() if each},
        "wrong": dict(warm.wrong + alone.wrong + load.wrong + filling.wrong + full.wrong),
        "megabytes": [start, *memory],
        "overload_429": len(full.seconds[429]),
        "overload_429_ms": _percentiles(full.seconds[429]),
        "sigterm": {status: len(each) for status, each in ending.seconds.items() if each},
        "sigterm_lost": {name: count for name, count in ending.wrong.items() if name != "ConnectError"},
    }


def _same(answered: list[dict[str, Any]], expected: list[list[Any]]) -> bool:
    """Whether an answer has the spans and labels of the offline one, and scores within 0.01."""
    pairs = list(zip(answered, expected, strict=False))
    return len(answered) == len(expected) and all(
        [entity["start"], entity["end"], entity["label"]] == other[:3] and abs(entity["score"] - other[3]) <= 0.01
        for entity, other in pairs
    )


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return None
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(1000 * cuts[49], 1), "p99": round(1000 * cuts[98], 1), "max": round(1000 * max(seconds), 1)}


def _texts(data: str, limit: int) -> list[str]:
    from spantune.data import formats

    texts = [document.text for document in formats.read(data).documents if document.text.strip()]
    return texts[:limit]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run, such as that of spantune demo")
    parser.add_argument("--data", default="bundled:clinical-zh-test", help="the texts to ask for")
    parser.add_argument("--texts", type=int, default=256, help="how many of them")
    parser.add_argument("--clients", type=int, default=64, help="clients at a time")
    parser.add_argument("--seconds", type=float, default=60, help="of the load")
    parser.add_argument("--single-seconds", type=float, default=20, help="of single texts one after the other")
    parser.add_argument("--offline-seconds", type=float, default=20, help="of offline extraction, twice")
    parser.add_argument("--cores", default="", help="cores of offline extraction and the service, such as 0,1")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
