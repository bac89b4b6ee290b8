"""Help, completion and wrong use: examples can be copied, valid names are listed, errors are one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.command import Outcome, last_object, one_line_error
from spantune.cli import app, names
from spantune.cli.help import LEFT, examples
from spantune.core import load_config
from spantune.data import formats
from spantune.models.bundled import BUNDLED

Command = Callable[..., Outcome]


def commands(group: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)
        else:
            yield (*above, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_whole_and_other_lines_keep_to_the_width(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = command(*words, "-h")
    assert shown.code == 0 and shown.out == command(*words, "--help").out
    lines = shown.out.splitlines()
    whole = [f"  {line}" for example in examples(COMMANDS[words].help)[1] for line in example.splitlines()]
    assert whole and [line for line in whole if line not in lines] == []
    too_long = [line for line in lines if len(line) > 60 and line not in whole]
    assert [line for line in too_long if len(line.split()) > 2] == []  # only an option with its choices may be longer
    hidden = [option.opts[0] for option in COMMANDS[words].params if option.hidden]
    assert [option for option in hidden if f"{option} " in shown.out] == []


def test_help_is_as_wide_as_the_terminal_up_to_a_limit(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = []
    for columns in (60, 100, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = command("data", "check", "-h").out.splitlines()
        widest.append(max(len(line) for line in lines if not line.startswith("  spantune")))
    assert widest[0] <= 60 < widest[1] <= 100 < widest[2] <= 120


def test_the_list_of_commands_says_a_whole_sentence_of_each(command: Command) -> None:
    page = " ".join(command("-h").out.split())
    assert "..." not in page.replace("[ARGUMENTS]...", "")
    for words, function in COMMANDS.items():
        shown = page if len(words) == 1 else " ".join(command(words[0], "-h").out.split())
        assert function.help.partition(".")[0].split("\n")[0][:LEFT] in shown


def test_formats_and_what_comes_with_spantune_are_listed(command: Command) -> None:
    converting = " ".join(command("data", "convert", "-h").out.split())
    assert all(name in converting for name in (*formats.FORMATS, *formats.BUNDLED))
    assert "dataturks (read only)" in converting and "native (read only)" not in converting
    training = command("train", "-h").out
    assert all(f"bundled:{name}" in training for name in (*names.recipe_names(), *names.MODELS))


def test_the_listed_models_and_recipes_are_there() -> None:
    assert set(names.MODELS) == set(BUNDLED)
    assert "demo" in names.recipe_names()
    assert all(load_config(f"bundled:{name}") for name in names.recipe_names())


@pytest.fixture
def complete(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that returns the completions that the shell gets for the last word of a command line."""

    def run(*words: str) -> list[str]:
        monkeypatch.setenv("_SPANTUNE_COMPLETE", "complete_fish")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["spantune", *words]))
        return [line.partition("\t")[0] for line in command().out.splitlines() if line]

    return run


def test_the_shell_completes_values(
    complete: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete("ev") == ["evaluate"]
    assert complete("data", "convert", "a", "b", "--to", "co") == ["conll"]
    assert complete("data", "convert", "a", "b", "--to", "dataturk") == []  # dataturks can only be read
    assert complete("data", "check", "a", "--format", "dataturk") == ["dataturks"]
    assert complete("data", "split", "bundled:clinical") == ["bundled:clinical-zh-test", "bundled:clinical-zh-train"]
    assert complete("train", "bundled:d") == ["bundled:demo"]
    assert complete("train", "recipe.yaml", "train.learn") == ["train.learning_rate="]
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "notes").mkdir()
    assert complete("report", "runs/") == ["runs/first", "runs/second"]
    assert complete("report", "runs/s") == ["runs/second"]
    assert complete("train", "--resume", "f") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--rsume", "x"], "no such option: --rsume (did you mean --resume?); see spantune train --help"),
        (["extract"], "missing argument 'RUN'; see spantune extract --help"),
        (["trian"], "no such command 'trian'; did you mean 'train'?; see spantune --help"),
        (["data", "split", "x", "--to", "y", "--seed", "z"], "invalid value for '--seed': "),
        (["evaluate", "--device", "tpu"], "invalid value for '--device': "),
    ],
)
def test_wrong_use_is_one_line(command: Command, arguments: list[str], message: str) -> None:
    one_line_error(command(*arguments), f"error: {message}")


def test_a_group_alone_shows_its_help(command: Command) -> None:
    for words in ([], ["data"]):
        outcome = command(*words)
        assert outcome.code == 2 and outcome.err.startswith("Usage: ") and "Commands:" in outcome.err


def test_overrides_are_given_in_one_way_by_all_that_read_a_recipe(
    command: Command, corpus_file: Path, recipe_file: Callable[..., Path]
) -> None:
    recipe = recipe_file()
    for arguments in (["data.limit=3"], ["--set", "data.limit=3"]):
        outcome = command("data", "inspect", "--recipe", recipe, *arguments, "--json")
        assert last_object(outcome)["examples"] == 3
    checked = command("data", "check", corpus_file, "task.labels=[dis]", "--recipe", recipe)
    assert checked.code == 1 and "label-outside" in checked.out
    inspected = command("data", "inspect", corpus_file, "--recipe", recipe, "task.instruction=Find all.", "--json")
    assert inspected.code == 0 and "tokens" in last_object(inspected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "RECIPE", "train.max_steps", "3"], "'train.max_steps': expected section.key=value"),
        (["plan", "RECIPE", "other.yaml"], "'other.yaml': expected section.key=value"),
        (["plan", "RECIPE", "trian.max_steps=3"], "unknown section 'trian'; did you mean 'train'?"),
        (["train", "RECIPE", "train.max_step=3"], "did you mean 'max_steps'?"),
        (["demo", "max_steps=3"], "'max_steps=3': expected the section too: train.max_steps=VALUE"),
        (["data", "inspect", "CORPUS", "train.max_tokens", "--recipe", "RECIPE"], "train.max_tokens: expected section"),
        (["data", "inspect", "CORPUS", "train.max_tokens=9"], "train.max_tokens=9: it changes a recipe, and none is"),
        (["data", "check", "CORPUS", "task.nested=false"], "only to change the recipe of --recipe"),
        (["data", "inspect", "--recipe", "RECIPE", "trian.x=1"], "unknown section 'trian'"),
    ],
)
def test_a_mistyped_override_is_explained(
    command: Command, corpus_file: Path, recipe_file: Callable[..., Path], arguments: list[str], message: str
) -> None:
    files = {"RECIPE": str(recipe_file()), "CORPUS": str(corpus_file)}
    one_line_error(command(*(files.get(argument, argument) for argument in arguments)), message)


def test_a_file_whose_name_is_like_an_override_is_a_file(
    command: Command, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus_file.parent)
    os.rename(corpus_file, "notes.v=2.jsonl")
    assert command("data", "check", "notes.v=2.jsonl").code == 0
