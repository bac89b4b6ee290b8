"""Shared fixtures: a tiny model folder, a corpus, a recipe and a trained run, each made once, and the command line."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from helpers.command import Outcome
from helpers.fakes import MERGES, save_model
from helpers.forked import Command
from helpers.recorded_errors import ErrorRecorder
from helpers.swanlab_cloud import KEY, Cloud

gc.disable()  # until all modules are imported
os.environ["MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS"] = "1"  # default: 30 s; modelscope reads it at import

DEAREST = (
    "extraction/scale/test_ray_engine.py",
    "runs/trackers/test_swanlab.py",
    "training/test_resume.py",
    "cli/test_extract.py",
    "extraction/scale/test_devices.py",
    "data/formats/test_conll.py",
    "extraction/test_gold_walk.py",
    "models/test_bundled.py",
    "training/test_nan_guard.py",
    "extraction/test_extractor.py",
    "models/test_loading.py",
    "extraction/remote/test_extractor.py",
    "test_docs.py",
    "training/test_job.py",
)
"""The slowest test files, which are run first, so that parallel workers end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of DEAREST first; measure no coverage in Hypothesis tests, whose lines other tests cover."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("no_cover")
    places = {Path(__file__).parent / name: place for place, name in enumerate(reversed(DEAREST), 1)}
    items.sort(key=lambda item: -places.get(item.path, 0))


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection: one collection over torch takes half a second."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--record-errors`, with which docs/errors.md is made."""
    parser.addoption(
        "--record-errors", metavar="FOLDER", help="write the errors that tests make here; see docs/errors.py"
    )


@pytest.fixture(scope="session", autouse=True)
def _recorded_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    folder = request.config.getoption("--record-errors")
    if folder is None:
        yield
        return
    recorder = ErrorRecorder(Path(folder) / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl")
    recorder.start()
    yield
    recorder.stop()


@pytest.fixture(autouse=True)
def _clean_logging() -> Iterator[None]:
    """Remove the handlers that a job adds to the package's logger: a test's captured streams are closed after it."""
    logger = logging.getLogger("spantune")
    before = list(logger.handlers)
    yield
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_swanlab_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWANLAB_PROJECT", "SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _children_are_not_measured_either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure coverage in child processes of a test marked `no_cover`, where it costs 50 % more time."""
    if request.node.get_closest_marker("no_cover"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of Phi-3's architecture with its tokenizer; tests must not change it."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny-phi3", "phi3", MERGES)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (24 documents), dev.jsonl (6) and test.jsonl (8).

    Half of the texts are the shortest sentences of the bundled corpus, the others have one character, so that a toy
    model can learn them.
    """
    from spantune.core import Document, Entity
    from spantune.data import formats

    folder = tmp_path_factory.mktemp("corpus")
    train = sorted(formats.read("bundled:clinical-zh-train").documents, key=lambda document: len(document.text))
    test = sorted(formats.read("bundled:clinical-zh-test").documents, key=lambda document: len(document.text))
    easy = [Document(f"easy-{sign}", sign, (Entity(0, 1, "dis"),)) for sign in "疮痈疽疔疖痔疳痨痰痹瘀瘕瘘瘟瘢瘤瘫瘰瘴"]
    parts = {"train": train[:12] + easy[:12], "dev": train[12:15] + easy[12:15], "test": test[:4] + easy[15:19]}
    for name, documents in parts.items():
        formats.write(folder / f"{name}.jsonl", documents)
    return folder


@pytest.fixture(scope="session")
def tree(tiny_folder: Path, corpus: Path) -> Callable[..., dict[str, Any]]:
    """A function that makes a recipe as plain values: `tree(folder, train={…}, …)` changes the defaults."""

    def make(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
        files = {name: str(corpus / f"{name}.jsonl") for name in ("train", "dev", "test")}
        labels = ["dis", "sym", "pro", "equ", "dru", "ite", "bod", "dep", "mic"]
        plain: dict[str, dict[str, Any]] = {
            "run": {"name": "tiny", "folder": str(folder), "seed": 3},
            "model": {"source": str(tiny_folder), "base": "fp32"},
            "task": {"labels": labels, "instruction": "Find entities."},
            "data": files,
            "spans": {},
            "lora": {"rank": 8, "alpha": 16},
            # a toy model learns this in a dozen steps only with the loss on choices
            "train": {"max_steps": 12, "batch_examples": 6, "learning_rate": 0.02, "loss_on": "choices"},
            "extract": {"max_new_tokens": 96, "batch_size": 8},
            "track": {"predictions": 3},
        }
        plain["train"] |= {"eval_steps": 4, "eval_documents": 4}
        return {name: {**values, **sections.get(name, {})} for name, values in plain.items()}

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tree: Callable[..., dict[str, Any]]) -> Any:
    """The Result of a whole small job, with SwanLab in local mode; tests must not change its folder."""
    from spantune.core import parse_config
    from spantune.training import train

    return train(parse_config(tree(tmp_path_factory.mktemp("runs"))))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """SwanLab's cloud for this process and its child processes, which have an API key for it and no login."""
    from swanlab.sdk.internal.core_python import client

    server = Cloud()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWANLAB_API_HOST", server.host)
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    yield server
    if not server.gone:
        server.stop()
    if client.exists():  # a sync leaves SwanLab logged in to this test's cloud
        client.reset()


_built = functools.cache(typer.main.get_command)
"""Typer builds its commands at each call, which takes longer than most tests; this builds them once."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """A function that runs the command line in this process, from `main` on, so that torch is imported only once."""
    from spantune.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spantune", *map(str, arguments)])
        monkeypatch.setattr(typer.main, "get_command", _built)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return run


@pytest.fixture
def recipe_file(tmp_path: Path, tree: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """A function that writes a recipe as YAML, with a folder for its runs beside it."""

    def make(**sections: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree(tmp_path / "runs", **sections), allow_unicode=True), encoding="utf-8")
        return path

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a disk of the given bytes; the test is skipped where mounting is not permitted."""
    mounted: list[Path] = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        mount = shutil.which("mount")
        command = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def remount() -> Callable[[Path, str], None]:
    """A function that makes a small disk read-only (`ro`) or writable again (`rw`)."""

    def change(disk: Path, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True, capture_output=True)

    return change


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """A function that starts `spantune ARGUMENTS` in a new process, which is killed at the end of the test."""
    started: list[Command] = []

    def start(*arguments: object) -> Command:
        started.append(Command(tmp_path / f"command{len(started)}", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()
