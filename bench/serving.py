"""Measure the service under load, and compare it with offline extraction by the same run on this machine.

    python bench/serving.py --run runs/demo --seconds 60 --clients 64

The bench starts `spantune serve` in a process of its own and sends requests over loopback. Every answer is compared
with the offline extraction of the same text: spans and labels must be equal, scores within 0.01. It measures:
- the seconds until the service listens;
- p50 and p99 of single texts, sent one after the other;
- documents per second of all clients together, against offline extraction of the same texts before and after, and the
  CPU time per document of the service and of the clients;
- the memory of the service;
- how fast a request is answered with 429 while the queue is full;
- what happens to requests at SIGTERM: answered with 200, refused with 503, connection not accepted, or connection
  closed before or after the service has read the request.

It takes `--seconds` and about two minutes. With `--json` the last line is one JSON object.

The clients are asyncio connections in this process; answers are compared after the load has ended. With `--cores 0,1`
offline extraction and the service run on those cores only, and the clients on all others, as if they were on another
machine. Without `--cores`, the clients take CPU time from the service. Give a run with `model.base: fp32`. In bf16,
which `auto` may choose on a CPU, an answer also depends on the other texts of its batch.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
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

QUEUE = 64
_HEAD = "POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


def machine_cpu_seconds() -> float:
    """Return the CPU seconds that all processes of this machine have used since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        used = [int(field) for field in file.readline().split()[1:9]]
    return (sum(used) - used[3] - used[4]) / 100  # without idle time and time waiting for a disk


OFFLINE = f"""
{inspect.getsource(machine_cpu_seconds)}
import json, sys, time
from spantune.core import Document
from spantune.extraction import load_run
texts = json.loads(sys.stdin.read())
extractor = load_run(sys.argv[1])
documents = [Document(str(index), text) for index, text in enumerate(texts)]
list(extractor.stream(documents[:32]))
began, done, cpu, all_cpu = time.perf_counter(), 0, time.process_time(), machine_cpu_seconds()
while done == 0 or time.perf_counter() - began < float(sys.argv[2]):
    answers = list(extractor.stream(documents))
    done += len(answers)
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
others = (machine_cpu_seconds() - all_cpu - cpu) / seconds
entities = [[[e.start, e.end, e.label, e.score] for e in answer.document.entities] for answer in answers]
print(json.dumps(dict(rate=done / seconds, cpu_ms=1000 * cpu / done, others=others, entities=entities)))
"""


def main() -> None:
    """Measure what the command line asks for, and print it."""
    chosen = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for offline extraction too, as `spantune` sets it
    texts = _texts(chosen.data, chosen.texts)
    on = _placed(chosen.cores)
    before = offline(chosen.run, texts, chosen.offline_seconds, on)
    expected = before["entities"]
    stops: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, service(chosen.run, Path(folder), on) as served:
        measured: dict[str, Any] = {"cores": chosen.cores or "all, shared with the clients"}
        measured |= {"cold_start_s": served.cold, "texts": len(texts), "clients": chosen.clients}
        if chosen.seconds > 0:
            measured |= asyncio.run(measure(served, texts, expected, chosen))
        stops.update(stopped(served, texts, expected, chosen.clients))
    for number in range(1, chosen.stops):
        with tempfile.TemporaryDirectory() as folder, service(chosen.run, Path(folder), on) as served:
            stops.update(stopped(served, texts, expected, chosen.clients))
        print(f"stopped {number + 1} times: {dict(stops)}", file=sys.stderr, flush=True)
    measured["sigterm"] = dict(stops)
    if chosen.seconds > 0:
        measured |= _against_offline(measured, before, offline(chosen.run, texts, chosen.offline_seconds, on))
    for name, value in measured.items():
        print(f"{name}: {value}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(measured))


def _against_offline(measured: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    rate = statistics.mean((before["rate"], after["rate"]))
    return {
        "offline_per_s": [round(before["rate"], 2), round(after["rate"], 2)],
        "offline_cpu_ms_per_document": [round(before["cpu_ms"], 1), round(after["cpu_ms"], 1)],
        "busy_cores_of_others_offline": [round(before["others"], 2), round(after["others"], 2)],
        "of_offline": round(measured["documents_per_s"] / rate, 3),
    }


def _placed(cores: str) -> list[str]:
    """Move this process to the cores not in `cores`; return the start of a command that runs on `cores`."""
    if not cores:
        return []
    chosen = {int(core) for core in cores.split(",")}
    os.environ["OMP_NUM_THREADS"] = str(len(chosen))
    os.sched_setaffinity(0, os.sched_getaffinity(0) - chosen or sys.exit("--cores leaves none for the clients"))
    return ["taskset", "--cpu-list", cores]


def offline(run: Path, texts: list[str], seconds: float, on: list[str]) -> dict[str, Any]:
    """Extract offline; return documents per second (`rate`), CPU times, and the entities of each text."""
    command = [*on, sys.executable, "-c", OFFLINE, str(run), str(seconds)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Served:
    """The process of the service, its port, and the seconds until it listened."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        began = time.perf_counter()
        self.process, self.log = process, log
        while not (match := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text("utf-8"))):
            if process.poll() is not None:
                sys.exit(log.read_text("utf-8"))
            time.sleep(0.02)
        self.port, self.cold = int(match[1]), round(time.perf_counter() - began, 2)

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        """The resident memory of the process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


@contextmanager
def service(run: Path, folder: Path, on: list[str]) -> Iterator[Served]:
    """Start the service of a run; it is killed at the end of the block."""
    log = folder / "log"
    with log.open("wb") as file:
        command = [*on, sys.executable, "-m", "spantune", "serve", str(run), "--port", "0", "--max-queue", str(QUEUE)]
        process = subprocess.Popen(command, stderr=file)
        try:
            yield Served(process, log)
        finally:
            process.kill()
            process.wait()


class Connection(asyncio.Protocol):
    """A client's HTTP connection, with as little CPU time as possible: real clients are on other machines."""

    def __init__(self) -> None:
        self.is_closed = False
        self._transport: asyncio.Transport
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body of its answer.

        Raises:
            ConnectionResetError: the connection was closed before the answer was complete.
        """
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length is not None and len(body) >= int(length[1]) and self._answer is not None:
            if b"\r\nconnection: close" in head.lower():
                self.is_closed = True
                self._transport.close()
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())


class Load:
    """The requests of a load and their answers; a client keeps its connection until the service closes it."""

    def __init__(self, name: str, served: Served, texts: list[str]):
        self.name, self.served = name, served
        self.bodies = [json.dumps({"text": text}).encode() for text in texts]
        self.asked = 0
        self.seconds: dict[int, list[float]] = {200: [], 429: [], 503: []}
        self.answers: list[Counter[bytes]] = [Counter() for _ in texts]
        self.refused = 0
        self.lost: list[str] = []
        """The ids of the requests whose connection was closed before they were answered."""

    async def ask(self, connection: Connection) -> int:
        """Send the next text; return the status, or 0 if the connection was closed."""
        index, request_id = self.asked % len(self.bodies), f"{self.name}-{self.asked}"
        self.asked += 1
        body = self.bodies[index]
        request = f"{_HEAD}Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n".encode() + body
        began = time.perf_counter()
        try:
            status, answer = await connection.ask(request)
        except OSError:
            self.lost.append(request_id)
            return 0
        self.seconds.setdefault(status, []).append(time.perf_counter() - began)
        if status == 200:
            self.answers[index][answer] += 1
        return status

    async def run(self, clients: int, seconds: float, *, until_refused: bool = False, pause: float = 0) -> float:
        """Let `clients` clients send requests for `seconds`; return the seconds that it took.

        Args:
            clients: number of clients.
            seconds: no request is sent after this time.
            until_refused: stop a client when it gets a 503 or its connection is closed.
            pause: seconds that a client waits after each answer.
        """
        began = time.perf_counter()
        loop = asyncio.get_running_loop()

        async def client() -> None:
            connection = None
            while time.perf_counter() - began < seconds:
                if connection is None or connection.is_closed:
                    try:
                        _, connection = await loop.create_connection(Connection, "127.0.0.1", self.served.port)
                    except OSError:
                        self.refused += 1
                        return
                if await self.ask(connection) in (0, 503) and until_refused:
                    return
                if pause:
                    await asyncio.sleep(pause)

        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began

    def differing(self, expected: list[list[list[Any]]]) -> int:
        """Return how many answers differ from offline extraction; called after the load, because it takes time."""
        return sum(
            count
            for answers, entities in zip(self.answers, expected, strict=True)
            for answer, count in answers.items()
            if not _same(json.loads(answer)["entities"], entities)
        )


async def measure(served: Served, texts: list[str], expected: list[Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure a running service; return all figures."""
    loads = warm, alone, load, filling, full = [
        Load(name, served, texts) for name in ("warm", "alone", "load", "filling", "full")
    ]
    await warm.run(chosen.clients, 5)
    await alone.run(1, chosen.single_seconds)
    start = served.megabytes
    memory: list[float] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(chosen.seconds / 6)
            memory.append(served.megabytes)

    watching = asyncio.create_task(watch())
    served_cpu, clients_cpu, all_cpu = served.cpu_seconds, time.process_time(), machine_cpu_seconds()
    seconds = await load.run(chosen.clients, chosen.seconds)
    served_cpu, clients_cpu = served.cpu_seconds - served_cpu, time.process_time() - clients_cpu
    others_cpu = machine_cpu_seconds() - all_cpu - served_cpu - clients_cpu
    watching.cancel()
    await asyncio.gather(filling.run(QUEUE + 8, 10), full.run(1, 10, pause=0.02))
    answers = max(1, len(load.seconds[200]))
    return {
        "single_ms": _percentiles(alone.seconds[200]),
        "documents_per_s": round(answers / seconds, 2),
        "cpu_ms_per_document": round(1000 * served_cpu / answers, 1),
        "clients_cpu_ms_per_document": round(1000 * clients_cpu / answers, 2),
        "busy_cores": {
            "service": round(served_cpu / seconds, 2),
            "clients": round(clients_cpu / seconds, 2),
            "others": round(others_cpu / seconds, 2),
        },
        "loaded_ms": _percentiles(load.seconds[200]),
        "answers": len(load.seconds[200]),
        "statuses": {status: len(each) for status, each in load.seconds.items() if each},
        "differing": sum(each.differing(expected) for each in loads),
        "lost": sum(len(each.lost) + each.refused for each in loads),
        "megabytes": [start, *memory],
        "overload_429": len(full.seconds[429]),
        "overload_429_ms": _percentiles(full.seconds[429]),
    }


def stopped(served: Served, texts: list[str], expected: list[Any], clients: int) -> Counter[str]:
    """Send SIGTERM while clients send requests, and count what they get.

    A request whose connection was closed is looked up in the log of the service, which has the id of every request
    that it has read.
    """
    load = Load("ending", served, texts)

    async def ask() -> None:
        loaded = asyncio.create_task(load.run(clients, 60, until_refused=True))
        await asyncio.sleep(2)
        served.process.send_signal(signal.SIGTERM)
        await loaded

    asyncio.run(ask())
    exit_code = served.process.wait(90)
    log = served.log.read_text("utf-8")
    read = sum(f'"id": "{request_id}"' in log for request_id in load.lost)
    counts = Counter({str(status): len(each) for status, each in load.seconds.items()})
    counts["read and not answered"] = read
    counts["closed before it was read"] = len(load.lost) - read
    counts["not accepted"] = load.refused
    counts["differs"] = load.differing(expected)
    counts[f"exit code {exit_code}"] = 1
    return counts


def _same(answered: list[dict[str, Any]], expected: list[list[Any]]) -> bool:
    """Whether an answer has the spans and labels of offline extraction, and scores within 0.01."""
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
    parser.add_argument("--seconds", type=float, default=60, help="of the load; 0: only --stops")
    parser.add_argument("--single-seconds", type=float, default=20, help="of single texts one after the other")
    parser.add_argument("--offline-seconds", type=float, default=20, help="of offline extraction, twice")
    parser.add_argument("--stops", type=int, default=1, help="how many services are ended by SIGTERM under load")
    parser.add_argument("--cores", default="", help="cores of offline extraction and the service, such as 0,1")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
