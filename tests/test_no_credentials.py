"""Credentials that a user or a library may set anywhere appear in no file of a run folder and in no output."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command import one_line_error
from helpers.tracked_run import begin, measure
from spantune.core import RunError
from spantune.runs import Claim, RunFolder, hints, logging_to

Command = Callable[..., Any]
PLANTED = ("geheim-pass", "geheim-token", "geheim-key", "geheim-query")
URL = "https://alice:geheim-pass@127.0.0.1:9/x?access_token=geheim-query&n=1"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, URL)
    monkeypatch.setenv("HF_TOKEN", "geheim-token")
    monkeypatch.setenv("SPANTUNE_API_KEY", "geheim-key")


def require_clean(*texts: str) -> None:
    for text in texts:
        places = [text.find(secret) for secret in PLANTED if secret in text]
        assert not places, text[min(places) - 100 : max(places) + 100]


def require_clean_folder(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in PLANTED if secret.encode() in content], path


def test_a_run_folder_with_its_trackers_and_log_has_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    described = f"see {URL} with geheim-key"
    trackers = begin(folder, swanlab="local", description=described, tags=[f"a {URL}"], group="geheim-token")
    with logging_to(folder):
        measure(trackers, folder, 5)
        logging.getLogger("spantune.x").warning("the server at %s refused geheim-key", URL)
        try:
            raise RunError(f"{URL}: geheim-token is wrong")
        except RunError:
            logging.getLogger("spantune.x").exception("it ends")
    trackers.finish("success")
    require_clean_folder(folder)
    out, err = capfd.readouterr()
    require_clean(out, err, *hints(folder))
    assert (
        "the server at https://***@127.0.0.1:9/x?access_token=***&n=1 refused ***" in (folder / "run.log").read_text()
    )
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved["track"]["description"] == "see https://***@127.0.0.1:9/x?access_token=***&n=1 with ***"


def test_a_claimed_folder_has_none_and_is_resumed_with_the_value_given_again(
    command: Command, tmp_path: Path, tree: Callable[..., dict[str, Any]]
) -> None:
    from spantune.core import parse_config
    from spantune.encoding import make_task

    recipe = parse_config(tree(tmp_path, data={"train": URL}))
    with Claim(tmp_path / "tiny") as claim:
        claim.create(recipe, make_task(recipe.task), {"model_source": URL, "device": "geheim-key"})
    require_clean_folder(tmp_path / "tiny")
    asked = command("train", "--resume", tmp_path / "tiny")
    one_line_error(asked, "data.train held a credential", "--resume", "data.train=VALUE")
    with_other = command("train", "--resume", tmp_path / "tiny", "train.max_steps=3")
    one_line_error(with_other, "train.max_steps=3", "leave it out")
    resumed = RunFolder(tmp_path / "tiny").resume_config([f"data.train={URL}"])
    assert resumed.data.train == URL and resumed.train.max_steps == recipe.train.max_steps
    command_error = command("train", "--resume", tmp_path / "tiny", f"data.train={URL}")
    assert command_error.code == 2
    require_clean(command_error.err, asked.err, with_other.err)


@pytest.mark.parametrize("source", ["hf:owner/name", "modelscope:owner/name", URL])
def test_the_errors_of_hubs_have_none(command: Command, recipe_file: Callable[..., Path], source: str) -> None:
    outcome = command("plan", recipe_file(model={"source": source}))
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome.err
    require_clean(outcome.out, outcome.err)


def test_the_commands_on_a_run_print_none(command: Command, trained: Any, tmp_path: Path) -> None:
    run = Path(
        shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    )
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["track"] |= {"description": URL, "tags": ["geheim-key"]}  # as an older release saved it
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for arguments in (
        ["runs", tmp_path, "--json"],
        ["runs", tmp_path, "--csv"],
        ["runs", run, trained.folder, "--compare"],
        ["extract", run, URL],
        ["extract", run, "x.txt", "--engine", "openai", "--url", URL],
        ["extract", run, "x.txt", "--engine", "openai", "--url", "http://127.0.0.1:9/v1?api_key=geheim-query"],
        ["evaluate", run, "--data", URL],
        ["data", "inspect", URL],
        ["data", "convert", URL, "x", "--to", "native"],
        ["report", run],
    ):
        outcome = command(*arguments)
        require_clean(outcome.out, outcome.err)
    for name in ("report.html", "report.md", "scores.json"):
        require_clean((run / name).read_text(encoding="utf-8"))
