"""No command replaces a file without --force, and no command replaces its input, however the path is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import one_line_error
from spantune.core import ConfigError, DataError, overwriting, require_new
from spantune.data import formats

Command = Callable[..., Any]


def commands(source: Path, target: Path) -> dict[str, list[Any]]:
    """Return every command of data and files, each with `target` as its output."""
    return {
        "inspect": ["data", "inspect", source, "--html", target],
        "convert": ["data", "convert", source, target, "--to", "cmeee"],
        "merge": ["data", "merge", source, source.with_name("copy.jsonl"), "--out", target],
        "map": ["data", "map", source, "dis=disease", "--out", target],
        "fix": ["data", "check", source, "--fix", target],
        "split": ["data", "split", source, "--to", target, "--shares", "0.5,0.5"],
        "report": ["evaluate", "--gold", source, "--predicted", source, "--report", target.parent],
        "compare": ["compare", "--gold", source, source, source.with_name("copy.jsonl"), "--report", target.parent],
    }


@pytest.mark.parametrize("name", sorted(commands(Path("x"), Path("y"))))
def test_what_exists_is_replaced_with_force_only(
    command: Command, corpus_file: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / ("report.html" if name in ("report", "compare") else "target")
    if name == "split":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")
    before = corpus_file.read_bytes()
    (tmp_path / "copy.jsonl").write_bytes(before)
    arguments = commands(corpus_file, target)[name]
    one_line_error(command(*arguments), str(target), "--force")
    assert "old" in ((target / "old") if name == "split" else target).read_text()
    done = command(*arguments, "--force")
    assert done.code == 0, done.err
    assert not (target / "old").exists() if name == "split" else target.read_text() != "old"
    assert corpus_file.read_bytes() == before
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["inspect", "convert", "fix", "map", "split"])
@pytest.mark.parametrize("link", ["same", "dots", "symbolic", "hard"])
def test_an_input_is_never_replaced(command: Command, corpus_file: Path, tmp_path: Path, name: str, link: str) -> None:
    target = {"same": corpus_file, "dots": tmp_path / "x" / ".." / "in.jsonl"}.get(link, tmp_path / "link.jsonl")
    (tmp_path / "x").mkdir()
    if link == "symbolic":
        target.symlink_to(corpus_file)
    if link == "hard":
        os.link(corpus_file, target)
    before = corpus_file.read_bytes()
    one_line_error(command(*commands(corpus_file, target)[name], "--force"), "is read from")
    assert corpus_file.read_bytes() == before and target.read_bytes() == before


def test_the_log_of_changes_is_not_replaced_either(command: Command, corpus_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "out.jsonl.changes.jsonl"
    log.write_text("old")
    one_line_error(command("data", "check", corpus_file, "--fix", tmp_path / "out.jsonl"), str(log), "--force")
    assert log.read_text() == "old" and not (tmp_path / "out.jsonl").exists()


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(command: Command, corpus_file: Path, tmp_path: Path) -> None:
    brat = tmp_path / "brat"
    assert command("data", "convert", corpus_file, brat, "--to", "brat").code == 0
    (brat / "more.txt").write_text("mine")
    one_line_error(command("data", "convert", corpus_file, brat, "--to", "brat"), "is not empty", "--force")
    one_line_error(command("data", "convert", corpus_file, brat, "--to", "native", "--force"), "name a file inside it")
    assert (brat / "more.txt").read_text() == "mine"
    assert command("data", "convert", corpus_file, brat, "--to", "brat", "--force").code == 0
    assert not (brat / "more.txt").exists() and len(formats.read(brat).documents) == 20
    one_line_error(command("data", "convert", brat, brat, "--to", "brat", "--force"), "is read from")
    one_line_error(
        command("data", "convert", brat, next(brat.glob("*.txt")), "--to", "native", "--force"), "is read from"
    )
    assert len(formats.read(brat).documents) == 20


def test_a_folder_above_an_input_and_where_one_is_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "in").touch()
    with pytest.raises(ConfigError, match="is read from"):
        require_new(tmp_path / "a", [tmp_path / "a" / "b" / "in"], force=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="the folder that you are in"):
        require_new(tmp_path / "a", force=True)
    with pytest.raises(ConfigError, match=r"only extract, without --out, writes to stdout; name a file"):
        require_new(Path("-"), force=True)
    with pytest.raises(ConfigError, match="a device or pipe"):
        require_new(Path("/dev/null"), force=True)
    require_new(tmp_path / "none", [tmp_path / "not there", "bundled:x"])


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(DataError, match=r"out.*: no room") as error, overwriting(folder, force=True) as place:
        place.mkdir()
        raise DataError("no room", path=place)
    assert error.value.path == folder and [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]
