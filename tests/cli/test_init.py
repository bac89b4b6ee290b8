"""`spantune init` prints what it found and which commands come next, and asks questions only on a terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers.command import Outcome
from spantune.core import bundled_recipes, load_config

Command = Callable[..., Outcome]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "notes.jsonl"
    records = [{"id": n, "text": f"Ann{n} met Bob.", "label": [[0, 3, "person"]]} for n in range(30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_what_was_found_and_what_comes_next_is_said(command: Command, notes: Path) -> None:
    outcome = command("init", "notes.jsonl")
    assert outcome.code == 0 and outcome.out == ""
    for words in ("doccano", "train 30 (the first 6 of train held out as dev)", "person 30", "English", "flat",
                  "spantune plan recipe.yaml\n  spantune train recipe.yaml"):  # fmt: skip
        assert words in outcome.err
    assert load_config("recipe.yaml").data.train == "notes.jsonl"
    again = command("init", "notes.jsonl")
    assert again.code == 2 and "recipe.yaml exists" in again.err
    assert command("init", "notes.jsonl", "--force").code == 0


def test_json_has_what_was_decided(command: Command, notes: Path) -> None:
    outcome = command("init", "notes.jsonl", "--json", "--nested", "--minutes", "3", "--name", "first")
    record = json.loads(outcome.out.strip().split("\n")[-1])
    assert (record["recipe"], record["name"], record["nested"]) == ("recipe.yaml", "first", True)
    assert record["labels"] == {"person": 30} and record["train"]["max_minutes"] == 3 and record["holdout"] == 0.2
    assert record["next"] == ["spantune plan recipe.yaml", "spantune train recipe.yaml"]


def test_the_commands_that_come_next_can_be_copied_whatever_files_are_called(command: Command, notes: Path) -> None:
    corpus = notes.rename(notes.with_name("my notes\nrun: x.jsonl"))
    outcome = command("init", corpus.name, "--out", "it's mine.yaml")
    assert outcome.code == 0 and """  spantune plan 'it'"'"'s mine.yaml'\n""" in outcome.err
    assert load_config("it's mine.yaml").data.train == corpus.name


def test_recipes_that_ship_are_listed_and_copied(command: Command, notes: Path) -> None:
    listed = command("init", "--list", "--json")
    assert json.loads(listed.out)["recipes"].keys() == {f"bundled:{name}" for name in bundled_recipes()}
    assert "bundled:demo" in command("init", "--list").out
    assert command("init", "bundled:demo", "--out", "own.yaml").code == 0
    ignored = command("init", "bundled:demo", "--out", "other.yaml", "--model", "bundled:smollm2-135m", "--flat")
    assert ignored.code == 2 and "leave out --model, --nested or --flat" in ignored.err
    assert yaml.safe_load(Path("own.yaml").read_text(encoding="utf-8"))["run"]["name"] == "demo"
    assert command("init").code == 2


def test_the_next_commands_can_be_copied(command: Command, notes: Path) -> None:
    outcome = command("init", "notes.jsonl", "--out", "my notes.yaml")
    assert "\n  spantune plan 'my notes.yaml'\n" in outcome.err
    assert "#   spantune train 'my notes.yaml' " in Path("my notes.yaml").read_text(encoding="utf-8")


def test_a_terminal_of_80_columns_breaks_lines_between_words(
    command: Command, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command("init", "notes.jsonl", "--out", "piped.yaml").err.splitlines())) > 80
    monkeypatch.setattr(sys.stderr.__class__, "isatty", lambda self: True)
    lines = command("init", "notes.jsonl").err.splitlines()
    assert max(map(len, lines)) < 80
    assert any(line.startswith(" " * 11) for line in lines)


class Terminal(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_asked_what_no_option_says(
    command: Command, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr.__class__, "isatty", lambda self: True)
    typed = Terminal("\ngrouped\n\n")
    monkeypatch.setattr(sys, "stdin", typed)
    outcome = command("init", "notes.jsonl")
    recipe = load_config("recipe.yaml")
    assert outcome.code == 0 and typed.read() == "" and "documents for the final figures [Enter: none]:" in outcome.err
    assert (recipe.model.source, recipe.task.answer) == ("bundled:gemma3-270m", "grouped")
    monkeypatch.setattr(sys, "stdin", Terminal("no answer is read\n"))
    given = ("--model", "bundled:smollm2-135m", "--answer", "jsonl", "--test", "notes.jsonl")
    assert command("init", "notes.jsonl", "--force", *given).code == 2  # all texts are also in the test set
    assert sys.stdin.read() == "no answer is read\n"
    monkeypatch.setattr(sys, "stdin", Terminal("\ngruoped\n\n"))
    assert "unknown answer format 'gruoped'; did you mean 'grouped'?" in command("init", "notes.jsonl", "--force").err
