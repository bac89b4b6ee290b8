"""Run training jobs in two real processes that train together over gloo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from helpers.forked import SERVER

SECONDS = 120


def run_jobs(jobs: list[dict[str, Any]], folder: Path, ranks: int = 2) -> list[tuple[int, list[dict[str, Any]], str]]:
    """Run `jobs` in new processes; return exit code, outcomes of the jobs and stderr of each rank.

    A job is a mapping. `recipe` has the recipe as plain values, or `resume` names a run folder. Optional keys:
    - `rank_1`: overrides for rank 1 only;
    - `copy`: folder to which the run folder is copied before it is resumed;
    - `event`: (event, step), which happens on rank 1: `oom`, `stop` or `kill`;
    - `command`: run the job through the command line, which ends the process.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in (launched | place).items()}
        processes.append(SERVER.Process(target=_rank, args=(str(folder), environment)))
        processes[-1].start()
    for process in processes:
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()  # so that the rank's stderr so far can be read
            process.join()
    codes = [process.exitcode or 0 for process in processes]
    outcomes = [json.loads((folder / f"outcomes-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    texts = [(folder / f"stderr-{rank}").read_text(encoding="utf-8") for rank in range(ranks)]
    return list(zip(codes, outcomes, texts, strict=True))


def _rank(folder: str, environment: dict[str, str]) -> None:
    """Set the environment that torchrun would set, redirect stderr to a file, and run the jobs."""
    os.environ.update(environment)
    errors = os.open(Path(folder) / f"stderr-{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    _script(Path(folder))


def _script(folder: Path) -> None:
    from spantune.core import SpantuneError, Stopped, parse_config
    from spantune.training import StepRunner, train

    originals = StepRunner.run, StepRunner._part_loss
    rank = int(os.environ["RANK"])
    counts = _counted()
    outcomes: list[dict[str, Any]] = []
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        counts.clear()
        if rank == 1:
            _arrange(originals, *job.get("event", (None, 0)))
        if "copy" in job and rank == 0:
            shutil.copytree(job["resume"], job["copy"])
        (folder / f"outcomes-{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")
        if job.get("command"):
            _command(folder, job["recipe"])
        try:
            if "resume" in job:
                result = train(resume=job["resume"])
            else:
                result = train(parse_config(job["recipe"], overrides=job.get("rank_1", []) if rank == 1 else []))
            outcomes.append({"f1": result.scores.micro.f1, "extracted": sum(counts)})
        except (SpantuneError, Stopped) as error:
            outcomes.append({"error": str(error)})
    (folder / f"outcomes-{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")


def _counted() -> list[int]:
    """Return a list that gets the number of documents of each extraction of this process."""
    from spantune.extraction import Extractor

    counts: list[int] = []
    stream = Extractor.stream

    def counting(self: Any, documents: Any, **options: Any) -> Any:
        some = list(documents)
        counts.append(len(some))
        return stream(self, some, **options)

    Extractor.stream = counting  # type: ignore[method-assign]
    return counts


def _command(folder: Path, recipe: dict[str, Any]) -> None:
    import yaml

    from spantune.cli import main

    path = folder / f"recipe-{os.environ['RANK']}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sys.argv = ["spantune", "train", str(path)]
    main()


def _arrange(originals: tuple[Any, Any], event: str | None, at: int) -> None:
    """Let `event` happen in the step with number `at` of the next job."""
    import torch

    from spantune.training import StepRunner

    run, part_loss = originals
    pending = [event]

    def with_event(self: Any, batch: Any, step: int, *more: Any) -> Any:
        if step == at and event == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if step == at and event == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.is_short = step == at and event == "oom"
        return run(self, batch, step, *more)

    def short_of_memory(self: Any, part: Any, weight: int) -> Any:
        if self.is_short and pending:
            pending.clear()
            raise torch.OutOfMemoryError("made up")
        return part_loss(self, part, weight)

    StepRunner.run = with_event  # type: ignore[method-assign]
    StepRunner._part_loss = short_of_memory  # type: ignore[method-assign]
