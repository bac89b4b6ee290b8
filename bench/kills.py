"""Kill a training run repeatedly with SIGKILL, resume it each time, and compare it with an undisturbed run.

A tiny model is trained in separate processes, which report their events through a pipe. Each process is killed at a
random moment: while it trains, writes a checkpoint or evaluates, or at any time. The bench counts finished steps that
are missing from metrics.jsonl after a kill, incomplete checkpoints under a final name, and resumed checkpoints whose
weights or optimizer state differ from those of the undisturbed run at the same step. At the end, every line of
metrics.jsonl must equal that of the undisturbed run.

    nice -n 19 python bench/kills.py --kills 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for the tiny model of the tests' helpers

from spantune.core import (  # noqa: E402
    Config,
    parse_config,
    sha256_of,
)
from spantune.runs import (  # noqa: E402
    RunFolder,
    read_metrics,
    step_of,
    torn,
)
from spantune.training import job  # noqa: E402

SERVER = multiprocessing.get_context("forkserver")
STEPS = 20
PHASES = ("step", "write", "evaluate")  # also the names of their events
NAMES = {"step": "training", "write": "checkpointing", "evaluate": "evaluating", "": "elsewhere"}
OF_THE_CLOCK = (
    "time",
    "examples_per_s",
    "step_ms",
    "evaluation_seconds",
    "training_seconds",
    "tokens_per_s",
    "peak_gib",
    "peak_rss_gib",
)
STATE = ("adapter_model.safetensors", "optimizer.pt", "random_state.pt")


@dataclass
class Life:
    """What one training process reported.

    Its events as (event, step, seconds since the start), the checkpoint it resumed from as (step, hashes), and whether
    the run has ended.
    """

    events: list[tuple[str, int, float]] = field(default_factory=list)
    taken: tuple[int, list[str]] | None = None
    finished: bool = False

    def steps(self, event: str) -> list[int]:
        """Return the steps at which `event` was reported, in order."""
        return [step for name, step, _ in self.events if name == event]

    @property
    def phase(self) -> str:
        """The phase of the last event; empty if it belongs to none of PHASES."""
        last = self.events[-1][0].replace("step done", "step") if self.events else ""
        return last if last in PHASES else ""

    def durations(self, phase: str) -> list[float]:
        """Return the seconds of each occurrence of a phase, measured until the next event."""
        times = [*self.events, ("", 0, self.events[-1][2])]
        return [times[i + 1][2] - at for i, (name, _, at) in enumerate(self.events) if name == phase]


@dataclass
class Reference:
    """The undisturbed run.

    Its lines, the hashes of its checkpoints by step, the longest seconds of each phase, and the seconds of the run.
    """

    lines: list[dict[str, Any]]
    states: dict[int, list[str]]
    durations: dict[str, float]
    seconds: float


def main() -> int:
    """Kill `--kills` times, print a table and a line of JSON; return 1 if anything was lost, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    SERVER.set_forkserver_preload(["spantune.training.job", "kills"])
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        counts, phases, seconds = _kill(work, options.kills, random.Random(options.seed))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("| killed while | kills |\n|---|---|")
    print("\n".join(f"| {NAMES[phase]} | {phases[phase]} |" for phase in (*PHASES, "")))
    found = {"seed": options.seed, "seconds": round(seconds, 1), **counts}
    print(json.dumps(found))
    return 1 if any(counts[name] for name in FAILURES) else 0


FAILURES = ("lost_steps", "torn_checkpoints", "wrong_checkpoints_taken", "runs_that_differ")


def _kill(work: Path, kills: int, chance: random.Random) -> tuple[dict[str, int], Counter[str], float]:
    """Train and kill; return the counts, the kills by phase and the seconds that all took."""
    started = time.monotonic()
    recipe = _recipe(work)
    reference = _undisturbed(recipe(name="undisturbed", keep=1000))
    counts = dict.fromkeys(("kills", "not_resumed", "resumes", "runs", *FAILURES), 0)
    phases: Counter[str] = Counter()

    def moment() -> tuple[str, int, float] | None:
        """Return when to kill next, or None if there were enough kills.

        A kill before the run folder exists, or after the run's end, is followed by no resume, so one more is made.
        """
        left = kills - counts["kills"] + counts["not_resumed"]
        return _moment(chance, reference) if left > 0 else None

    while counts["resumes"] < kills:
        counts["runs"] += 1
        settings = recipe(name=f"run{counts['runs']}", keep=2)
        folder, life = settings.run_folder, Life()
        while not life.finished:
            resume = folder.is_dir()
            life = _live(settings, resume, moment())
            counts["resumes"] += resume
            counts["wrong_checkpoints_taken"] += _took_wrong(life, reference)
            if not life.finished:
                counts["kills"] += 1
                life.finished = RunFolder(folder).is_finished  # killed after its last file was written
                counts["not_resumed"] += life.finished or not folder.is_dir()
                phases[life.phase] += 1
                counts["lost_steps"] += _lost_steps(folder, life)
                counts["torn_checkpoints"] += sum(torn(path) is not None for path in _checkpoints(folder))
        counts["runs_that_differ"] += lines_of(folder) != reference.lines
        shutil.rmtree(folder)
        print(f"{time.monotonic() - started:.0f} s {counts}", file=sys.stderr)
    return counts, phases, time.monotonic() - started


def _recipe(work: Path) -> Callable[..., Config]:
    from helpers.fakes import save_model
    from spantune.data import formats

    model = save_model(work / "model", "phi3")
    train = sorted(formats.read("bundled:clinical-zh-train").documents, key=lambda document: len(document.text))[:40]
    for name, documents in {"train": train[:24], "dev": train[24:32], "test": train[32:]}.items():
        formats.write(work / f"{name}.jsonl", documents)

    def make(name: str, keep: int) -> Config:
        return parse_config(
            {
                "run": {"name": name, "folder": str(work / "runs")},
                "model": {"source": str(model), "base": "fp32", "device": "cpu"},
                "task": {"preset": "cmeee", "instruction": "Find entities."},
                "data": {key: str(work / f"{key}.jsonl") for key in ("train", "dev", "test")},
                "lora": {"rank": 8, "dropout": 0.1},
                "train": {"max_steps": STEPS, "batch_examples": 5, "eval_steps": 5, "save_steps": 3,
                          "loss_on": "choices", "keep_checkpoints": keep, "eval_before": False},
                "extract": {"max_new_tokens": 24},
                "track": {"swanlab": "off"},
            }
        )  # fmt: skip

    return make


def _undisturbed(settings: Config) -> Reference:
    life = _live(settings, False, None)
    assert life.finished, "the undisturbed run failed"
    folder = settings.run_folder
    states = {step_of(path): _state(path) for path in _checkpoints(folder)}
    durations = {phase: max(life.durations(phase)) for phase in PHASES}
    return Reference(lines_of(folder), states, durations, life.events[-1][2])


def _moment(chance: random.Random, reference: Reference) -> tuple[str, int, float]:
    """Draw when to kill: (phase, number of its event, seconds after it); an empty phase means after the start."""
    phase = chance.choice((*PHASES, ""))
    if not phase:
        return "", 0, chance.uniform(0, reference.seconds)
    return phase, chance.randint(1, 12 if phase == "step" else 3), chance.uniform(0, reference.durations[phase])


def _live(settings: Config, resume: bool, moment: tuple[str, int, float] | None) -> Life:
    """Train in a process until it ends or is killed at `moment`; return what it reported."""
    told, tells = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(settings.model_dump(mode="json"), resume, tells))
    process.start()
    tells.close()
    life, started = Life(), time.monotonic()
    phase, left, delay = moment or ("never", 0, 0.0)
    deadline = started + delay if phase == "" else None
    while True:
        try:
            if deadline is not None and not told.poll(max(0.0, deadline - time.monotonic())):
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                deadline = None
            event, step, state = told.recv()
        except (EOFError, OSError):  # the process has ended, or was killed while it sent a message
            break
        if state:
            life.taken = step, state
        life.events.append((event, step, time.monotonic() - started))
        if event == phase and deadline is None and left > 0:
            left -= 1
            deadline = time.monotonic() + delay if left == 0 else None
    process.join()
    life.finished = process.exitcode == 0
    assert process.exitcode in (0, -signal.SIGKILL), f"it failed by itself: exit code {process.exitcode}"
    return life


def _work(tree: dict[str, Any], resume: bool, tells: Connection) -> None:
    """Train, and report each step, checkpoint and evaluation when it begins and ends; runs in the child process."""
    from spantune.runs import Checkpoints, resume_recipe
    from spantune.training import StepRunner, TrainingLoop

    module = sys.modules["spantune.training.job"]

    def telling(owner: Any, method: str, event: str, step: Callable[..., int]) -> None:
        original = getattr(owner, method)

        @wraps(original)
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            tells.send((event, step(self, *args), []))
            result = original(self, *args, **kwargs)
            tells.send((f"{event} done", step(self, *args), []))
            return result

        setattr(owner, method, told)

    telling(StepRunner, "run", "step", lambda self, batch, step, *_: step)
    telling(TrainingLoop, "_evaluate", "evaluate", lambda self: self.step)
    telling(Checkpoints, "write", "write", lambda self, step, *_: step)
    rewind = module._Job.rewind

    def going_on(self: Any) -> Path | None:
        checkpoint: Path | None = rewind(self)
        if checkpoint:
            tells.send(("going on", step_of(checkpoint), _state(checkpoint)))
        return checkpoint

    module._Job.rewind = going_on
    settings = parse_config(tree)
    folder = settings.run_folder
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    job.train(resume_recipe(folder) if resume else settings, resume=folder if resume else None)
    tells.send(("end", STEPS, []))


def _lost_steps(folder: Path, life: Life) -> int:
    """Return how many steps are missing from metrics.jsonl although the next step had begun before the kill."""
    begun = life.steps("step")
    if not begun:
        return 0
    recorded = {line["step"] for line in read_metrics(folder) if line["split"] == "train"}
    return len(set(range(1, max(begun))) - recorded)


def _took_wrong(life: Life, reference: Reference) -> bool:
    """Whether the process resumed from another state than the undisturbed run had at that step."""
    return life.taken is not None and reference.states.get(life.taken[0]) != life.taken[1]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/checkpoint-*"))


def _state(checkpoint: Path) -> list[str]:
    return [sha256_of(checkpoint / name) for name in STATE]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the plan and without values that depend on the clock or the memory."""
    lines = [line for line in read_metrics(folder) if line["split"] != "plan"]
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
