"""Kill an extraction on Ray repeatedly with SIGKILL, resume it each time, and compare it with a single process.

    nice -n 15 python bench/ray_kills.py --kills 20 --documents 20000

A tiny model that reads spans extracts from `--documents` short texts, in files of `--of-a-file` texts each, with two
workers on this machine. At random moments a worker or the command itself is killed. Ray restarts a killed worker; a
killed command is called again with `--resume`. If an extraction ends before all kills are made, another one is started.

The bench counts results that are missing, repeated or different from those of a single process (spans and labels must
be equal, scores within 1e-4), incomplete parts under a final name, temporary files that are left, and workers that
still run 30 seconds after their command has ended. Agents of Ray that still run are counted too, but are no failure:
they hold no model and write nothing. Prints a line for each kill to stderr, then one JSON object. The exit code is 1 if
anything was wrong.
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
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for the tiny model and the run folder of the tests' helpers
MARK = "SPANTUNE_BENCH_LIFE"
PATIENCE = 30.0
"""Seconds that Ray's processes have to end after their command has ended."""
WRONG = ("missing", "repeated", "different", "torn_parts", "temporary_files_left", "workers_left")
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def main() -> int:
    """Kill `--kills` times and print the counts; return 1 if anything was wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--of-a-file", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="ray-kills-"))
    started = time.monotonic()
    try:
        counts = _kill(work, chosen, random.Random(chosen.seed))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps({"seed": chosen.seed, "seconds": round(time.monotonic() - started), **counts}))
    return 1 if any(counts[name] for name in WRONG) else 0


def _kill(work: Path, chosen: argparse.Namespace, chance: random.Random) -> dict[str, int]:
    expected = _prepared(work, chosen.documents, chosen.of_a_file)
    names = (
        "workers_killed",
        "commands_killed",
        "resumed",
        "extractions",
        "documents",
        "results",
        "agents_left",
        *WRONG,
    )
    counts = dict.fromkeys(names, 0)
    while counts["workers_killed"] + counts["commands_killed"] < chosen.kills:
        counts["extractions"] += 1
        out = work / f"out{counts['extractions']}"
        _extract(work, out, counts, chosen.kills, chance)
        found = results(sorted(out.glob("part-*.jsonl")))
        counts["documents"] += len(expected)
        counts["results"] += len(found)
        of_id = Counter(row["id"] for row in found)
        counts["missing"] += sum(row["id"] not in of_id for row in expected)
        counts["repeated"] += sum(count - 1 for count in of_id.values())
        counts["different"] += sum(not _same(*pair) for pair in zip(found, expected, strict=False))
        counts["temporary_files_left"] += len(list(out.glob(".*")))
        shutil.rmtree(out)
    return counts


def _prepared(work: Path, documents: int, of_a_file: int) -> list[dict[str, Any]]:
    """Write the run and the files; return what a single process extracts from them."""
    from helpers.fakes import save_model
    from helpers.run_folders import READING, save_run
    from spantune.core import config
    from spantune.extraction import load_run
    from spantune.extraction.inputs import Texts
    from spantune.extraction.resumable import json_line

    save_run(work / "run", save_model(work / "model", "phi3"), READING)
    (work / "in").mkdir()
    for first in range(0, documents, of_a_file):
        rows = ({"id": f"d{number}", "text": _text(number)} for number in range(first, first + of_a_file))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / "in" / f"{first:06d}.jsonl").write_text(lines, encoding="utf-8")
    files = sorted(map(str, (work / "in").iterdir()))
    settings = config.Extract(max_new_tokens=40)
    stream = load_run(work / "run", "cpu", settings).stream(Texts.open(files, "native").read(Counter()), strict=False)
    (work / "expected.jsonl").write_bytes(b"".join(map(json_line, stream)))
    return results([work / "expected.jsonl"])


def _text(number: int) -> str:
    return f"疹{number}肺炎患者咳嗽"[: 3 + number % 11]


def _extract(work: Path, out: Path, counts: dict[str, int], kills: int, chance: random.Random) -> None:
    """Extract from all files, killing as long as kills are left; resume after each kill of the command."""
    while True:
        counts["resumed"] += out.is_dir()
        life = str(random.getrandbits(48))
        command = _started(work, out, life)
        try:
            _live(command, life, out, counts, kills, chance)
        finally:
            if command.poll() is None:
                command.kill()
        code = command.wait()
        left = _outlived(life)
        counts["agents_left"] += len(left) - (workers := sum(not title.startswith(AGENTS) for title in left))
        counts["workers_left"] += workers
        counts["torn_parts"] += sum(not _whole(part) for part in out.glob("part-*.jsonl"))
        if code != -signal.SIGKILL:
            assert code == 0, f"it failed by itself: {(work / 'stderr').read_text()[-2000:]}"
            return


def _live(
    command: subprocess.Popen[bytes], life: str, out: Path, counts: dict[str, int], kills: int, chance: random.Random
) -> None:
    """Kill workers and perhaps, at last, the command; return when the command has ended or was killed."""
    while counts["workers_killed"] + counts["commands_killed"] < kills:
        kind = chance.choice(("workers_killed", "commands_killed"))
        after_workers = chance.random() < 0.8  # else while Ray or the workers start
        parts = len(list(out.glob("part-*"))) + chance.randint(0, 3)
        while command.poll() is None and after_workers and len(list(out.glob("part-*"))) < parts:
            time.sleep(0.02)
        _sleep(command, chance.uniform(0, 1 if after_workers else 15))
        while command.poll() is None and kind == "workers_killed" and not _workers(life):
            time.sleep(0.05)
        if command.poll() is not None:
            return
        workers = _workers(life)
        if kind == "workers_killed" and workers:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
                counts[kind] += 1
        elif kind == "commands_killed":
            command.kill()
            counts[kind] += 1
        done = len(list(out.glob("part-*")))
        print(f"{kind.split('_')[0]}, {len(workers)} workers, {done} parts done", file=sys.stderr, flush=True)
        if kind == "commands_killed":
            return
    command.wait()


def _sleep(command: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        command.wait(seconds)


def _started(work: Path, out: Path, life: str) -> subprocess.Popen[bytes]:
    call = [sys.executable, "-m", "spantune", "extract", str(work / "run"), str(work / "in"), "--engine", "ray"]
    call += ["--device", "cpu", "--workers", "2", "--out", str(out), *(["--resume"] if out.is_dir() else [])]
    with (work / "stderr").open("wb") as errors:
        return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {MARK: life})


def _workers(life: str) -> list[int]:
    """Return the process ids of the Ray actors that the command of this life has started."""
    return [pid for pid, title in _processes(life) if title.startswith(b"ray::MapWorker")]


def _processes(life: str) -> list[tuple[int, bytes]]:
    """Return the process id and the title of the command of this life and of each process that it has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={life}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((int(process.name), (process / "cmdline").read_bytes()))
    return found


def _outlived(life: str) -> list[bytes]:
    """Wait at most PATIENCE for the processes of this life to end; kill those that remain, and return their titles."""
    end = time.monotonic() + PATIENCE
    while (left := _processes(life)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid, title in left:
        print(f"left running: {title.rstrip(bytes(1)).decode()}", file=sys.stderr, flush=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [title for _, title in left]


def _whole(part: Path) -> bool:
    content = part.read_bytes()
    try:
        return content.endswith(b"\n") and all(map(json.loads, content.splitlines()))
    except ValueError:
        return False


def results(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the objects of the JSON-lines files, in order."""
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results are equal, with scores within 1e-4."""
    scores = [[entity.get("score", 0.0) for entity in one["entities"]] for one in (row, other)]
    rest = [{**one, "entities": [{**entity, "score": None} for entity in one["entities"]]} for one in (row, other)]
    return rest[0] == rest[1] and all(abs(a - b) <= 1e-4 for a, b in zip(*scores, strict=True))


if __name__ == "__main__":
    sys.exit(main())
