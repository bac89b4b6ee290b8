"""Properties of every command: no control characters on the terminal, no secrets shown, no foreign code run."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from helpers.command import Outcome
from spantune.cli import app

Command = Callable[..., Outcome]

HOSTILE = "\x1b[31m\x9b5mACME\u202e\x7f\x07[red]x[/red]"
"""An escape sequence, the same as a C1 character, a change of text direction, DEL, BEL and a rich markup tag."""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal would obey: control characters except tab and line feed, and changes of text direction."""
SECRET = "s3cr3t-hunter2"


@dataclass(frozen=True)
class Place:
    """The files that the commands read and write."""

    run: Path
    recipe: Path
    corpus: Path
    out: Path


COMMANDS: dict[str, Callable[[Place], list[object]]] = {
    "demo": lambda place: ["demo", "--folder", place.out, *_overrides(place), "track.swanlab=off"],
    "init": lambda place: ["init", place.corpus, "--out", place.out / "recipe.yaml"],
    "plan": lambda place: ["plan", place.recipe],
    "train": lambda place: ["train", place.recipe],
    "train --resume": lambda place: ["train", "--resume", place.run],
    "evaluate": lambda place: ["evaluate", place.run, "--data", place.corpus],
    "compare": lambda place: ["compare", place.run, place.run],
    "report": lambda place: ["report", place.run],
    "watch": lambda place: ["watch", place.run / "absent"],
    "runs": lambda place: ["runs", place.run.parent],
    "extract": lambda place: ["extract", place.run, place.corpus],
    "export": lambda place: ["export", place.run, place.out / "export", "--to", "merged", "--verify", "1"],
    "calibrate": lambda place: ["calibrate", place.run, "--data", place.corpus],
    "serve": lambda place: ["serve", place.run / "absent", "--port", 0],
    "sync": lambda place: ["sync", place.run],
    "data inspect": lambda place: ["data", "inspect", place.corpus],
    "data convert": lambda place: ["data", "convert", place.corpus, place.out / "out.bio", "--to", "conll"],
    "data check": lambda place: ["data", "check", place.corpus, "--task", "cmeee"],
    "data merge": lambda place: ["data", "merge", place.corpus, place.corpus, "--out", place.out / "merged.jsonl"],
    "data map": lambda place: ["data", "map", place.corpus, f"{HOSTILE}=x", "--out", place.out / "mapped.jsonl"],
    "data split": lambda place: ["data", "split", place.corpus, "--out", place.out / "split"],
}
LOADING = ("demo", "plan", "train", "train --resume", "evaluate", "extract", "calibrate", "export")
"""The commands that load a model."""


def _overrides(place: Place) -> list[str]:
    values = yaml.safe_load(place.recipe.read_text(encoding="utf-8"))
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section in ("model", "task", "data", "lora", "train", "extract")
        for key, value in values[section].items()
    ]


@pytest.fixture
def place(trained: Any, tmp_path: Path, tree: Callable[..., dict[str, Any]]) -> Place:
    """A run, a recipe with one step, a corpus with hostile text, and an empty folder."""
    run = tmp_path / "runs" / "done"
    shutil.copytree(trained.folder, run, ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    corpus = tmp_path / f"corpus{HOSTILE}.jsonl".replace("/", "")
    text = f"{HOSTILE} met ACME."
    start = text.index("ACME.")
    entities = [
        {"start": 0, "end": 4, "label": HOSTILE, "text": text[:4]},
        {"start": start, "end": start + 4, "label": "dis", "text": "ACME"},
    ]
    records = [{"id": f"{HOSTILE}{index}", "text": text, "entities": entities} for index in range(3)]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    sections = tree(tmp_path / "new", train={"max_steps": 1, "eval_steps": 1}, track={"swanlab": "off"})
    recipe.write_text(yaml.safe_dump(sections, allow_unicode=True), encoding="utf-8")
    (tmp_path / "out").mkdir()
    return Place(run, recipe, corpus, tmp_path / "out")


def test_the_list_holds_every_command() -> None:
    root: Any = typer.main.get_command(app)
    names = {name for name, command in root.commands.items() if not hasattr(command, "commands")}
    names |= {f"data {name}" for name in root.commands["data"].commands}
    assert names == {name.partition(" --")[0] for name in COMMANDS}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "train", "train --resume")])
def test_what_a_terminal_would_obey_is_not_printed(place: Place, command: Command, name: str) -> None:
    outcome = command(*COMMANDS[name](place))
    assert outcome.code in (0, 1, 2), outcome
    assert RAW.findall(outcome.out + outcome.err) == [], outcome


@pytest.mark.parametrize("name", ["plan", "train"])
def test_a_recipe_cannot_send_escapes_to_the_terminal(place: Place, command: Command, name: str) -> None:
    values = yaml.safe_load(place.recipe.read_text(encoding="utf-8"))
    values["task"]["labels"] = [HOSTILE, "dis"]
    values["task"]["instruction"] = f"Find {HOSTILE}"
    values["data"] = {"train": str(place.corpus), "dev": str(place.corpus)}
    place.recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = command(*COMMANDS[name](place))
    assert outcome.code in (0, 1, 2), outcome
    assert RAW.findall(outcome.out + outcome.err) == [], outcome


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set secrets in every variable that spantune or one of its libraries reads; nothing listens at the addresses."""
    address = f"http://alice:{SECRET}@127.0.0.1:9"
    for name in ("HF_ENDPOINT", "MLFLOW_TRACKING_URI", "SWANLAB_API_HOST", "WANDB_BASE_URL", "HTTP_PROXY_UNUSED"):
        monkeypatch.setenv(name, address)
    for name in ("HF_TOKEN", "SWANLAB_API_KEY", "WANDB_API_KEY", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "train --resume")])
def test_no_command_shows_or_stores_a_secret(place: Place, command: Command, name: str) -> None:
    outcome = command(*COMMANDS[name](place))
    assert outcome.code in (0, 1, 2), outcome
    _assert_no_secret(outcome, place.recipe.parent)


@pytest.mark.usefixtures("secrets")
def test_a_server_s_address_is_shown_and_stored_without_its_password(place: Place, command: Command) -> None:
    arguments = [*COMMANDS["extract"](place), "--engine", "openai"]
    outcome = command(*arguments, "--url", f"http://alice:{SECRET}@127.0.0.1:9/v1?api_key={SECRET}")
    assert outcome.code in (1, 2), outcome
    _assert_no_secret(outcome, place.recipe.parent)


def _assert_no_secret(outcome: Outcome, folder: Path) -> None:
    assert SECRET not in outcome.out + outcome.err
    holding = [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == []


@pytest.fixture
def foreign(place: Place, tiny_folder: Path) -> Iterator[Path]:
    """Give the model of the run and the recipe code of its own; yield the file that this code would write."""
    marker = place.out.parent / "ran"
    folder = Path(shutil.copytree(tiny_folder, place.out.parent / "foreign"))
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast\n"
        "class C(PretrainedConfig):\n    model_type = 'evil'\n"
        "class M(PreTrainedModel):\n    config_class = C\n"
        "class T(PreTrainedTokenizerFast):\n    pass\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in (place.recipe, place.run / "config.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["model"]["source"] = str(folder)
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    yield marker


@pytest.mark.parametrize("name", LOADING)
def test_no_command_runs_code_of_a_model_folder(
    place: Place, foreign: Path, command: Command, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    outcome = command(*COMMANDS[name](place))
    assert not foreign.exists()
    assert sys.stdin.read() == "y\n" * 20, "it asked on stdin"
    assert outcome.code == 2 and outcome.err.count("error: ") == 1, outcome
