"""All output to the terminal goes through one filter, and no module prints in another way."""

from __future__ import annotations

import ast
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

import spantune
from helpers.command import fresh
from spantune.core import (
    bar,
    guard_terminal,
    json_text,
    print_table,
    print_text,
    put,
    put_json,
    say,
    terminal,
    track,
    visible,
)

SOURCE = Path(spantune.__file__).parent
EVIL = "a\x1b[31m\x07\x9b2J\x7f\u202eb\u2066c\u2028d\ud800[red]e[/red]:smile:"
SHOWN = "a\\x1b[31m\\x07\\x9b2J\\x7f\\u202eb\\u2066c\\u2028d\\ud800[red]e[/red]:smile:"
SECRET = "http://alice:geheim@host"


def test_what_a_terminal_executes_is_written_as_an_escape() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("a\nb\tc\rd") == "a\\nb\\tc\\rd" and visible("a\nb\tc\rd", lines=True) == "a\nb\tc\\rd"
    assert visible("肺炎 é 👩‍⚕️ \\x1b") == "肺炎 é 👩‍⚕️ \\x1b"


def test_everything_printed_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{EVIL} {SECRET}")
    put(f"{EVIL} {SECRET}")
    print_text(Text(visible(EVIL), "bold"))
    print_text(Text("\x1b[2J"))
    print_table(["head [b]", EVIL], [(EVIL, SECRET)])
    out, err = capsys.readouterr()
    assert err == f"{SHOWN} http://***@host\n"
    assert out.count(SHOWN) == 4 and "\n\\x1b[2J\n" in out and "head [b]" in out and "geheim" not in out
    assert not any(sign in out for sign in "\x1b\x07\x9b\x7f\u202e\u2066\u2028")


def test_json_keeps_values_and_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    put_json({"a": EVIL, "b": [SECRET], "c": 1})
    line = capsys.readouterr().out
    assert json.loads(line) == {"a": EVIL, "b": ["http://***@host"], "c": 1}
    assert not any(sign in line for sign in "\x1b\x07\x9b\x7f\u202e\u2066\u2028") and line.isprintable() is False
    assert json.loads(json_text({"肺": EVIL})) == {"肺": EVIL} and "肺" in json_text({"肺": EVIL})


def test_a_progress_bar_reads_no_markup() -> None:
    with bar() as progress:
        number = progress.add_task(EVIL, note=SECRET)
        texts = [str(column.render(progress.tasks[number])) for column in progress.columns if hasattr(column, "markup")]
    assert SHOWN in texts and "http://***@host" in texts


def test_without_a_terminal_lines_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track("abc", "read", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""  # no line is printed for work that takes less than two seconds
    monkeypatch.setattr(terminal, "FIRST_LINE_SECONDS", 0.0)
    list(track("ab", "preparing answers", 2, "answers"))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("preparing answers: 1 of 2 answers, ")
    assert second.startswith("preparing answers: 2 of 2 answers, ")
    list(track("a", "extract", unit="documents"))
    assert capsys.readouterr().err.startswith("extract: 1 document, ")
    list(track("a", "convert"))
    assert capsys.readouterr().err == "convert: 1\n"


def test_warnings_and_logs_of_libraries_are_filtered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        guard_terminal()
        warnings.warn(f"{EVIL} {SECRET}", stacklevel=1)
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s %s", (EVIL, SECRET), None)
    assert logging.lastResort is not None
    logging.lastResort.handle(record)
    err = capsys.readouterr().err
    assert err.count(f"{SHOWN} http://***@host") == 2 and "\x1b" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_encoding_of_a_stream_lacks_is_written_as_escapes(tmp_path: Path, encoding: str) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "\u00e9 \u80ba\u708e \U0001f600", "entities": []}\n' * 2, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    table = fresh("data", "check", corpus, env=environment, encoding=encoding)
    assert table.returncode == 0 and "\\u80ba\\u708e" in table.stdout, table
    as_json = fresh("data", "check", corpus, "--json", env=environment, encoding=encoding)
    assert "\u80ba\u708e \U0001f600" in json.dumps(json.loads(as_json.stdout), ensure_ascii=False)


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_is_no_bug(tmp_path: Path, closed: str) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "a", "entities": []}\n', encoding="utf-8")
    for command in (["check"], ["check", "--json"], ["inspect"]):
        line = shlex.join([sys.executable, "-m", "spantune", "data", *command, str(corpus)])
        done = subprocess.run(f"{line} {closed}>&-", shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "bug" not in done.stderr, done
    missing = shlex.join([sys.executable, "-m", "spantune", "data", "check", str(tmp_path / "no"), "--json"])
    done = subprocess.run(f"{missing} 2>&-", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


# --- no module prints in another way ---------------------------------------------------------------------------------

ALLOWED = {
    ("core/terminal.py", "print"),
    ("core/terminal.py", "Console"),
    ("core/signals.py", "os.write"),  # a constant; in a signal handler nothing else is safe
    ("runs/journal.py", "os.write"),  # to a file
    ("runs/trackers/process.py", "print"),  # JSON for the run's process
    ("serving/corrections.py", "os.write"),  # to a file
    ("serving/server.py", "os.write"),  # a constant, in a signal handler
    ("extraction/outputs.py", "sys.stdout.buffer.write"),  # the bytes of `json_text`
}
PRINTING = ("print", "pprint", "Console", "StreamHandler", "echo", "secho", "os.write", "warnings.warn", "basicConfig")


def printing(path: Path) -> Iterator[str]:
    """Yield the calls in a module that may print."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in PRINTING or name.rpartition(".")[2] in (
                "Console",
                "StreamHandler",
                "echo",
                "secho",
                "basicConfig",
            ):
                yield name
            if name.startswith(("sys.stdout.", "sys.stderr.", "sys.__std")) and name.endswith(("write", "writelines")):
                yield name
            if any(ast.unparse(argument) == "sys.stdout" for argument in node.args) and name != "_console":
                yield f"{name}(sys.stdout)"


def test_only_the_terminal_module_prints() -> None:
    calls = {(path.relative_to(SOURCE).as_posix(), name) for path in SOURCE.rglob("*.py") for name in printing(path)}
    assert calls <= ALLOWED, f"use say, put, put_json or print_table of spantune.core: {sorted(calls - ALLOWED)}"
    assert ("core/terminal.py", "print") in calls and "print" in sys.modules["builtins"].__dict__
