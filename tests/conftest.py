"""What is dear to make, made once: a model folder, a corpus, a recipe and a trained run of toy size."""

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

gc.disable()  # until all is imported
os.environ["MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS"] = "1"  # read when modelscope is imported; else half a minute

DEAREST = (
    "training/test_resume.py",
    "runs/trackers/test_swanlab.py",
    "extraction/test_extractor.py",
    "extraction/test_gold_walk.py",
    "models/test_bundled.py",
    "extraction/remote/test_extractor.py",
    "cli/test_extract.py",
    "training/test_nan_guard.py",
    "test_docs.py",
    "training/test_job.py",
)
"""Where several processes share the files, these come first, so that none is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of DEAREST first; what Hypothesis repeats is not measured, as others cover the same lines."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("no_cover")
    places = {Path(__file__).parent / name: place for place, name in enumerate(reversed(DEAREST), 1)}
    items.sort(key=lambda item: -places.get(item.path, 0))


def pytest_collection_finish() -> None:
    """Collects garbage from here on, and not among what has been imported: a round over torch takes half a second."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option with which docs/errors.md is made."""
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
    """A job adds handlers to the package's logger, which must not outlive a test's captured streams."""
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
    """Where a test is marked `no_cover`: measuring takes half as long again, and other tests cover the same lines."""
    if request.node.get_closest_marker("no_cover"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-3-shaped model folder with its tokenizer; not to be changed."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny-phi3", "phi3", MERGES)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (24), dev.jsonl (6) and test.jsonl (8).

    Half are the shortest sentences of the bundled corpus, half one-character texts, which a toy can learn.
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
    """Makes a recipe as plain values: `tree(folder, train={…}, …)` with sections laid over the defaults."""

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
            # the loss on choices only: so much a toy can learn in a dozen steps
            "train": {"max_steps": 12, "batch_examples": 6, "learning_rate": 0.02, "loss_on": "choices"},
            "extract": {"max_new_tokens": 96, "batch_size": 8},
            "track": {"predictions": 3},
        }
        plain["train"] |= {"eval_steps": 4, "eval_documents": 4}
        return {name: {**values, **sections.get(name, {})} for name, values in plain.items()}

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tree: Callable[..., dict[str, Any]]) -> Any:
    """The Result of a whole small job, with SwanLab in local mode; its folder is not to be changed."""
    from spantune.core import parse_config
    from spantune.training import train

    return train(parse_config(tree(tmp_path_factory.mktemp("runs"))))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """SwanLab's cloud, for this process and those it starts, who have a key to it and no login of their own."""
    from swanlab.sdk.internal.core_python import client

    server = Cloud()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWANLAB_API_HOST", server.host)
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    yield server
    if not server.gone:
        server.stop()
    if client.exists():  # a sync leaves SwanLab logged in, here to a cloud of this test only
        client.reset()


_built = functools.cache(typer.main.get_command)
"""Typer reads the signatures of all commands at each call, which takes longer than most of what tests call."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process, from `main` on, so that torch is imported once."""
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
    """Writes a recipe as YAML, with its runs beside it."""

    def make(**sections: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree(tmp_path / "runs", **sections), allow_unicode=True), encoding="utf-8")
        return path

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of the given bytes of its own; skips where that is not permitted."""
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
    """Makes a small disk read-only (`ro`) or writable (`rw`) again."""

    def change(disk: Path, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True, capture_output=True)

    return change


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `spantune ARGUMENTS` in a process of its own; what still runs at the end of the test is killed."""
    started: list[Command] = []

    def start(*arguments: object) -> Command:
        started.append(Command(tmp_path / f"command{len(started)}", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()
