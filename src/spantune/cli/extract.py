"""The command `spantune extract`.

Results go to stdout or a file, messages to stderr.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import names
from spantune.cli.libraries import quiet, quiet_children
from spantune.cli.options import (
    READING,
    AcceptChanges,
    Column,
    Device,
    Encoding,
    Force,
    Joiner,
    MinScore,
    Run,
    Sets,
    parts_read,
    reading_options,
    split_overrides,
)
from spantune.cli.tally import close_tally, report_tally
from spantune.core import Cluster, ConfigError, keep_for_good, log_crashes_into, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Config, Extraction, Prediction
    from spantune.extraction import Engine, Task
    from spantune.metrics import Calibration


SERVER = "Asking a server"
"""The section of the help page for options about a server, which `--engine openai` and `--engine ray` may use."""

MANY = "Many processes"
"""The section of the help page for options about several processes, with `--devices` or `--engine ray`."""

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def extract(
    run: Run,
    files: Annotated[
        list[str],
        typer.Argument(
            help="Text files (a document on each line), corpus files, or - for text on stdin. extract.KEY=VALUE "
            "changes a setting of the run's recipe."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None,
    to: Annotated[
        str, typer.Option(help="Format of the output, with --out.", autocompletion=names.written_formats)
    ] = "native",
    nested: Annotated[
        Literal["error", "outermost", "innermost"],
        typer.Option(
            help="Which of overlapping entities to keep where the format of --to has one tag a token. error: stop."
        ),
    ] = "error",
    uncertain: Annotated[
        int | None,
        typer.Option(help="Keep only the N documents that the model is least sure of, those first.", min=1),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page that shows the results.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of the input: text, or that of a corpus. Detected from its content if not given.",
            autocompletion=names.read_formats,
            rich_help_panel=READING,
        ),
    ] = None,
    whole_file: Annotated[
        bool,
        typer.Option(
            "--whole-file", help="Read each text file as one document, not line by line.", rich_help_panel=READING
        ),
    ] = False,
    column: Column = None,
    joiner: Joiner = None,
    encoding: Encoding = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted extraction to the same --out.")
    ] = False,
    force: Force = False,
    min_score: MinScore = None,
    accept_changes: AcceptChanges = False,
    batch_size: Annotated[int | None, typer.Option(help="How many documents to decode together.", min=1)] = None,
    sets: Sets = None,
    device: Device = "auto",
    engine: Annotated[
        Literal["local", "openai", "ray"],
        typer.Option(
            help="Run the model here (local), on a server with OpenAI's protocol (openai), or in many processes on "
            "one or more machines (ray), which read files and object storage and write a folder."
        ),
    ] = "local",
    devices: Annotated[
        str | None,
        typer.Option(
            help="Run the model in a process on each of these GPUs: 0,1 or all. With --device cpu: how many processes.",
            rich_help_panel=MANY,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: HOST:PORT, ray://HOST:PORT, or auto. Ray on this machine alone if not given.",
            rich_help_panel=MANY,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many processes of Ray hold the model. If not given, one for each GPU; without GPUs one for four "
            "CPU cores of this machine, or each core of a cluster. With --url: how many ask the server, one if not "
            "given.",
            min=1,
            rich_help_panel=MANY,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            help="GPUs of each of them, which may be a fraction. 1 if not given and there are GPUs.",
            min=0,
            rich_help_panel=MANY,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Address of the server: http://127.0.0.1:8000/v1 …", rich_help_panel=SERVER),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model on the server. Its only model if not given.", rich_help_panel=SERVER),
    ] = None,
    grammar: Annotated[
        Literal["auto", "vllm", "llamacpp", "none"],
        typer.Option(
            help="How to send the grammar. auto: find out what the server takes. none: send no grammar.",
            rich_help_panel=SERVER,
        ),
    ] = "auto",
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="How many requests to send at a time. If not given, as many as suit the server: 192 for vLLM, the "
            "slots of llama.cpp's server, else 16.",
            min=1,
            rich_help_panel=SERVER,
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(help="How many seconds to wait for a whole answer.", min=1, max=86_400, rich_help_panel=SERVER),
    ] = 180,
) -> None:
    """Extract entities from texts, as native JSONL on stdout, in the order of the input.

    A document that cannot be read or processed becomes a line that says why, and the others are still processed. The
    exit code is 1 if an answer was cut off, was invalid or named an entity that is not in its text.

    Examples:

        spantune extract runs/demo notes.txt > entities.jsonl

        echo 患者因急性阑尾炎行腹腔镜手术。 | spantune extract runs/demo -

        spantune extract runs/demo reports.jsonl --out entities.jsonl --html entities.html --resume

        spantune extract runs/demo notes.txt --uncertain 50 --to label_studio --out review.json

        spantune extract runs/demo notes.txt --engine openai --url http://127.0.0.1:8000/v1

        spantune extract runs/demo s3://notes/2026/ --engine ray --address auto --to parquet --out s3://notes/entities
    """
    from spantune.extraction import Tally, Target, Texts, parse_devices
    from spantune.report import ExtractionView

    if engine != "ray" and (address, workers, gpus_per_worker) != (None, None, None):
        raise ConfigError("--address, --workers and --gpus-per-worker are of Ray; give --engine ray too")
    if engine != "local" and devices is not None:
        raise ConfigError(f"--devices is of --engine local, not {engine}; for Ray there is --workers")
    if (engine == "openai" and url is None) or (engine == "local" and url is not None):
        raise ConfigError("--engine openai and --url belong together; give both, or neither to decode here")
    if url is None and (model is not None or grammar != "auto"):
        raise ConfigError("--model and --grammar are of a server; give --engine openai and --url too")
    if url is not None and (batch_size is not None or device != "auto"):
        raise ConfigError("--batch-size and --device are of decoding here; for a server there is --concurrency")
    files, overrides = split_overrides(files)
    if not files:
        raise ConfigError("no file to extract from; name one after the run folder, or - for text on stdin")
    recipe = _recipe(run, [*overrides, *(sets or [])], batch_size)
    server = None
    if url is not None:
        # imported late, like Task below: it needs the extra train, and errors of use are reported without this extra
        from spantune.extraction import Server

        server = Server(url, model, grammar, concurrency, timeout)
    if engine == "ray":
        plain = {"--html": html, "--uncertain": uncertain, "--whole-file": whole_file, "--force": force}
        read = {"--column": column, "--joiner": joiner, "--encoding": encoding}
        _refuse_on_ray({**plain, **read, "--nested": nested != "error"})
        if url is not None and gpus_per_worker is not None:
            raise ConfigError(
                "--gpus-per-worker is of models that workers hold; with --url they hold none: leave it out"
            )
        from spantune.extraction import Task

        task = Task(run, tuple(files), recipe.extract, format, min_score, device, accept_changes, server)
        raise typer.Exit(_on_ray(task, Cluster(address, workers, gpus_per_worker), out, to, resume=resume))
    chosen_devices = parse_devices(devices, device) if devices is not None else ()
    labels = RunFolder(run).task().labels if to == "label_studio" else ()
    reads = RunFolder(run).task().reads
    if uncertain is not None and min_score is None and not reads:
        min_score = 0  # entities below the threshold are those that a person should look at
    view = ExtractionView.of_run(run, min_score) if html else None
    target = Target(out, to, html, resume, nested, force, uncertain=uncertain, labels=labels, view=view)
    target.check([*files, *parts_read([run])])
    options = reading_options(column, joiner, None, encoding, None)
    texts = Texts.open(files, format, whole=whole_file, options=options)
    tally = Tally()

    def load() -> Engine:
        if chosen_devices:
            quiet_children()
            say(f"loading {recipe.model.source.removeprefix('bundled:')} in {len(chosen_devices)} processes …")
            from spantune.extraction import DeviceEngine, DeviceSettings

            settings = DeviceSettings(run, recipe.extract, min_score, accept_changes)
            return DeviceEngine(settings, chosen_devices)
        if server is None:
            quiet(recipe.model.source)
            from spantune.extraction import load_run

            extractor = load_run(run, device, recipe.extract, min_score, accept_changes=accept_changes)
            if extractor.on_gpu:
                keep_for_good()
            return extractor
        quiet()
        from spantune.extraction import load_remote

        return load_remote(run, server, recipe.extract, min_score, accept_changes=accept_changes)

    with target.held():
        documents = texts.read(tally.notes)
        done = target.begin(documents)
        if done.documents:
            tally.documents, tally.with_problem = done.documents, done.with_problem
            say(f"{done.documents} documents were done")
        total = texts.count() if sys.stderr.isatty() else None
        work = _Work(documents, load, None if total is None else total - done.documents)
        try:
            target.write(work.results(), tally)
        finally:
            report_tally(tally, work.calibration, target)
            if work.started is not None:
                written = target.out if target.out and target.out.exists() else None
                close_tally(tally, time.perf_counter() - work.started, written)
    raise typer.Exit(1 if tally.with_problem else 0)


@dataclass
class _Work:
    """The remaining documents, and their engine, which is loaded only if there is at least one document.

    Args:
        documents: the documents that are not done yet.
        load: loads the engine.
        total: the number of these documents, for the progress bar; None if it is not known.
        calibration: the calibration of the engine; None if it has none or is not loaded yet.
        started: the time of `perf_counter` at which the engine was loaded; None before.
    """

    documents: Iterator[Prediction]
    load: Callable[[], Engine]
    total: int | None
    calibration: Calibration | None = None
    started: float | None = None
    """The time of `perf_counter` at which the engine was loaded; None before."""

    def results(self) -> Iterator[Extraction]:
        """Load the engine, and yield an Extraction for each document in order, with a progress bar."""
        from spantune.core import track

        for first in self.documents:
            engine = self.load()
            self.calibration, self.started = engine.calibration, time.perf_counter()
            stream = engine.stream(itertools.chain([first], self.documents), strict=False)
            yield from track(stream, "extract", self.total, unit="documents")


def _refuse_on_ray(options: Mapping[str, object]) -> None:
    """Check that no option is given that `--engine ray` does not support.

    Args:
        options: the name of each such option to its value.

    Raises:
        ConfigError: one of them is given.
    """
    for option, value in options.items():
        if value not in (None, False):
            raise ConfigError(f"{option} is not of --engine ray, which writes a folder of parts; drop one of the two")


def _on_ray(task: Task, cluster: Cluster, out: Path | None, to: str, *, resume: bool) -> int:
    """Extract with Ray, and return the exit code.

    Raises:
        ConfigError: `out` is not given, or Ray cannot write the format `to`.
    """
    from spantune.extraction import Tally, extract_on_ray

    if out is None:
        raise ConfigError(
            "--engine ray writes a folder of parts; give --out FOLDER, or a URL such as s3://bucket/folder"
        )
    if to not in ("native", "parquet"):
        raise ConfigError(f"--engine ray writes native or parquet, not {to}; convert its parts: spantune data convert")
    folder = re.sub(r"^([a-z][a-z0-9+.-]*):/(?!/)", r"\1://", str(out))  # Path has turned // of a URL into one slash
    folder = re.sub("^file://(?!/)", "file:///", folder)
    tally, started = Tally(), time.perf_counter()
    quiet_children()
    try:
        extract_on_ray(task, cluster, folder, "parquet" if to == "parquet" else "native", tally, resume=resume)
    finally:
        report_tally(tally, None, None)
        if tally.documents:
            close_tally(tally, time.perf_counter() - started, folder)
    return 1 if tally.with_problem else 0


def _recipe(run: Path, overrides: list[str], batch_size: int | None) -> Config:
    """Return the recipe of a run with the settings `extract.key=value` of this call.

    Raises:
        ConfigError: an override is for another section, or is not valid.
        RunError: the folder is not a run folder.
    """
    from spantune.core import load_config

    folder = RunFolder(run)
    recipe = folder.config()
    log_crashes_into(run)
    for override in overrides:
        if not override.startswith("extract."):
            raise ConfigError(f"{override}: expected extract.key=value; other settings of a finished run cannot change")
    if batch_size:
        overrides = [*overrides, f"extract.batch_size={batch_size}"]
    return load_config(folder.config_file, overrides) if overrides else recipe
