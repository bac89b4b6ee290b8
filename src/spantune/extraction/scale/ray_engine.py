"""Extraction on Ray: workers on one machine or several, each with the model, write the parts of a corpus.

Ray Data distributes the parts of the plan to a pool of actors, keeps parts back while all actors are busy, and restarts
an actor that dies. An actor reads its part from the file itself, so that texts do not travel through Ray, and writes
the part as a whole. So each document has exactly one result, whichever actor dies at whatever time. If a completions
server is given, such as vLLM, the actors hold no model and send requests to the server.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spantune.core import (
    Cluster,
    DataError,
    Resources,
    RunError,
    SpantuneError,
    config,
    connected,
    keep_for_good,
    number,
    require_extra,
    resources_of,
    say,
    track,
    waiting,
    worker_errors,
)
from spantune.extraction.outputs import Tally
from spantune.extraction.remote.client import Server
from spantune.extraction.scale.parts import Folder, Plan, To
from spantune.extraction.scale.shards import Shard, Survey, part_size, read, require_unique, shards_of, survey
from spantune.extraction.scale.sources import Source, find_sources
from spantune.metrics import Calibration
from spantune.models import hash_files
from spantune.runs import RunFolder, trained_files

if TYPE_CHECKING:  # this process loads no model
    from spantune.extraction.chunked import Engine

RETRIES = 5
"""How often a part is started again after its worker died."""
SMALL_BYTES, FEW_FILES = 64 << 20, 32
"""Up to this number of bytes and of files the survey is made in this process, since starting others takes longer."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is extracted, and by what.

    Args:
        run: the run folder, which every machine must see under the same path.
        inputs: files, folders, globs and URLs.
        settings: the section `extract` of a recipe.
        format: the format of all inputs; None takes it from their suffixes.
        min_score: as in `load_run`.
        device: as in `load_run`.
        accept_changes: as in `load_run`.
        server: the server that computes the answers, which every worker must reach; its `concurrency` is that of all
            workers together. None if the workers hold the model.
    """

    run: Path
    inputs: tuple[str, ...]
    settings: config.Extract
    format: str | None = None
    min_score: float | None = None
    device: str = "auto"
    accept_changes: bool = False
    server: Server | None = None

    def terms(self) -> dict[str, object]:
        """Check the run, and return everything besides the inputs that the results depend on, for the plan.

        Raises:
            ConfigError: `min_score` is not a probability.
            RunError: as `load_run`.
        """
        folder = RunFolder(self.run)
        folder.adapter_task(accept_changes=self.accept_changes)
        calibration = Calibration.load(self.run)
        if self.min_score is not None:
            calibration = (calibration or Calibration()).with_min_score(self.min_score)
        return {
            "adapter": hash_files(folder.adapter, [path.name for path in trained_files(folder.adapter)]),
            "calibration": repr(calibration),
            "extract": self.settings.model_dump(mode="json"),
            "server": self.server and f"{self.server.model or 'its only model'}, --grammar {self.server.grammar}",
        }

    def load(self) -> Engine:
        """Load the engine: the model, or the run's tokenizer and the connection to the server.

        Raises:
            ConfigError, ModelError, RunError: as `load_run` and `load_remote`.
        """
        if self.server is not None:
            from spantune.extraction.remote.extractor import load_remote

            return load_remote(self.run, self.server, self.settings, self.min_score, accept_changes=self.accept_changes)
        from spantune.extraction.loading import load_run

        return load_run(self.run, self.device, self.settings, self.min_score, accept_changes=self.accept_changes)

    def for_workers(self, workers: int) -> Task:
        """Return the task for each of `workers` workers; the requests at a time are divided among them."""
        if self.server is None or self.server.concurrency is None:
            return self
        return replace(self, server=replace(self.server, concurrency=max(1, self.server.concurrency // workers)))


@dataclass
class Outcome:
    """The result of a part: how many documents it has, what was counted, or the error that ends the extraction."""

    documents: int
    tally: Tally = field(default_factory=Tally)
    error: str | None = None


def extract_on_ray(task: Task, cluster: Cluster, out: str, to: To, tally: Tally, *, resume: bool = False) -> Plan:
    """Extract from `task.inputs` and write the parts into the folder `out`; return the plan.

    Args:
        task: the run, the inputs and the settings.
        cluster: the Ray cluster, and the number of workers.
        out: the folder, local or a URL; every machine must see it.
        to: the format of the parts: native JSONL or Parquet.
        tally: counts the documents of this call; documents of parts that were done before are added to `documents`
        only. resume: whether to continue an interrupted call.

    Raises:
        ConfigError: Ray is not installed, its address does not answer, or there are fewer GPUs than asked for; or as
            `load_run` and `find_sources`.
        DataError: a file cannot be read or written, an id is repeated, or an interrupted call had other terms or files.
        ModelError, RunError: as `load_run`; or workers died more than `RETRIES` times while they computed one part.
    """
    require_extra("--engine ray", "ray", ("ray", "pyarrow", "pandas"))
    folder = Folder(out if "://" in out else os.path.abspath(out), to)
    plan = folder.begin(resume=resume)
    terms = {**task.terms(), "to": to}
    sources = find_sources(task.inputs, task.format)
    if plan is not None:
        _require_same(plan, terms, sources, out)
    surveys = _surveys_here(sources) if plan is None else None
    if task.server is not None:
        task = _asked(task, task.server)
        cluster = replace(cluster, workers=cluster.workers or 1, gpus_per_worker=0)
    with connected(cluster.address) as ray:
        resources = resources_of(ray, cluster, "cpu" if task.server is not None else task.device)
        if plan is None:
            plan = _planned(terms, sources, resources.workers, surveys or _surveys_of(sources))
            folder.save(plan)
        done = folder.done() if resume else set()
        left = [shard for shard in plan.shards if folder.part(shard.number) not in done]
        before = plan.documents - sum(shard.documents for shard in left)
        if before:
            say(f"{number(before, 'document')} were done")
            tally.documents += before
        if left:
            say(f"{number(len(left), 'part')}, {number(resources.workers, 'worker')} …")
            worker = (task.for_workers(resources.workers), folder, len(sources) > 1, resources)
            for _ in track(_ended(_outcomes(left, worker), tally), "extract", plan.documents - before, "documents"):
                pass
    folder.clean()
    return plan


def _asked(task: Task, server: Server) -> Task:
    """Ask the server what it serves, before anything else; return the task with the concurrency that suits the server.

    Raises:
        ConfigError, ModelError: as `load_remote`.
    """
    from spantune.extraction.remote.extractor import load_remote

    remote = load_remote(task.run, server, task.settings, task.min_score, accept_changes=task.accept_changes)
    return replace(task, server=remote.server)


def _ended(outcomes: Iterable[Outcome], tally: Tally) -> Iterator[None]:
    """Add each finished part to `tally`, and yield once for each of its documents.

    Raises:
        RunError: a worker met an error that ends the extraction.
    """
    for outcome in outcomes:
        if outcome.error is not None:
            raise RunError(f"{outcome.error} (the parts that are done are kept: go on with --resume)")
        tally.add_counts(outcome.tally)
        yield from (None for _ in range(outcome.documents))


def _outcomes(shards: Sequence[Shard], worker: tuple[Task, Folder, bool, Resources]) -> Iterator[Outcome]:
    """Yield the outcomes of parts, as the parts end.

    Raises:
        RunError: a worker died too often.
    """
    import ray
    from ray.data import ActorPoolStrategy

    task, folder, several, resources = worker
    dataset = ray.data.from_items([{"part": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.64 changes how retries are given; the extra excludes that version
        results = dataset.map_batches(
            Worker,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(resources.workers, len(shards)), max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={"task": task, "folder": folder, "several": several, "threads": resources.cpus},
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},
        )
    with worker_errors(ray, "; the parts that are done are kept: go on with --resume"):
        for row in results.iter_rows():
            outcome = pickle.loads(row["outcome"])
            assert isinstance(outcome, Outcome)
            yield outcome


class Worker:
    """A Ray actor with the engine (the model, or the connection to a server), which it loads for its first part."""

    def __init__(self, task: Task, folder: Folder, several: bool, threads: int):
        self._task, self._folder, self._several, self._threads = task, folder, several, threads
        self._engine: Engine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Extract from the one part in `batch` and write it; return the pickled Outcome."""
        shard = pickle.loads(batch["part"][0])
        try:
            outcome = self._extract(shard)
        except SpantuneError as error:
            outcome = Outcome(0, error=str(error))
        return {"outcome": [pickle.dumps(outcome)]}

    def _extract(self, shard: Shard) -> Outcome:
        engine = self._engine = self._engine or self._load()
        outcome = Outcome(shard.documents)
        documents = read(shard, outcome.tally.notes, several=self._several)
        self._folder.write(shard.number, outcome.tally.counted(engine.stream(documents, strict=False)))
        return outcome

    def _load(self) -> Engine:
        import torch

        torch.set_num_threads(self._threads)
        engine = self._task.load()
        keep_for_good()
        return engine


def _planned(terms: dict[str, object], sources: Sequence[Source], workers: int, surveys: Sequence[Survey]) -> Plan:
    """Divide the files into parts.

    Raises:
        DataError: there is no document.
    """
    documents = sum(found.marks[-1].documents for found in surveys)
    if not documents:
        raise DataError("there is no document; expected at least one: check the files", path=sources[0].name)
    shards = shards_of(sources, [found.marks for found in surveys], part_size(documents, workers))
    return Plan(terms, tuple(sources), tuple(shards))


def _surveys_here(sources: Sequence[Source]) -> list[Survey] | None:
    """Survey the files in this process; return None if they are many or large.

    Raises:
        DataError: as `_surveys_of`.
    """
    if len(sources) > FEW_FILES or sum(source.size for source in sources) > SMALL_BYTES:
        return None
    surveys = [survey(source, len(sources) > 1) for source in sources]
    require_unique(sources, surveys)
    return surveys


def _surveys_of(sources: Sequence[Source]) -> list[Survey]:
    """Survey all files, on all machines.

    Raises:
        DataError: a file cannot be read, or an id is repeated.
    """
    import ray

    several = len(sources) > 1
    with waiting("looking through the files …"):
        rows = [{"number": index, "source": pickle.dumps(source)} for index, source in enumerate(sources)]
        blocks = ray.data.from_items(rows, override_num_blocks=min(len(rows), 200))
        surveys: dict[int, Survey] = {}
        for row in blocks.map(_surveyed, fn_kwargs={"several": several}, num_cpus=1).iter_rows():
            found = pickle.loads(row["survey"])
            if isinstance(found, str):
                raise DataError(found)
            surveys[row["number"]] = found
        ordered = [surveys[index] for index in range(len(sources))]
        require_unique(sources, ordered)
    return ordered


def _surveyed(row: dict[str, Any], several: bool) -> dict[str, Any]:
    try:
        found: Survey | str = survey(pickle.loads(row["source"]), several)
    except SpantuneError as error:
        found = str(error)
    return {"number": row["number"], "survey": pickle.dumps(found)}


def _require_same(plan: Plan, terms: dict[str, object], sources: Sequence[Source], out: str) -> None:
    """Check that an interrupted extraction can be continued.

    Raises:
        DataError: it was begun with another run, other settings or other files.
    """
    for name, value in terms.items():
        if plan.terms.get(name) != value:
            what = {
                "adapter": "another run",
                "extract": "other settings",
                "to": "another --to",
                "server": "another engine, --model or --grammar",
            }.get(name, name)
            raise DataError(
                f"was begun with {what}: {name} was {plan.terms.get(name)} and is {value}; go on as it was begun, or "
                "name another folder",
                path=out,
            )
    before = {source.path: source for source in plan.sources}
    for source in sources:
        if source.path not in before:
            raise DataError("is not among the files that this extraction was begun with", path=source.name)
        if before.pop(source.path) != source:
            raise DataError(
                f"has changed since the extraction to {out} was begun; begin anew in another folder", path=source.name
            )
    if before:
        raise DataError(f"{min(before)} is missing, with which this extraction was begun; name it too", path=out)
