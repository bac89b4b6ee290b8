"""Atomic writing of files, and error messages in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.core import DataError, first_line, replace_text, replacing, replacing_path


def test_a_block_that_raises_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old\n", durable=True)
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write("new" + str(1 / 0))
    assert path.read_bytes() == b"old\n" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write("新\n")
    assert path.read_text("utf-8") == "新\n" and list(tmp_path.iterdir()) == [path]


def test_replace_text_leaves_system_errors_to_its_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "absent" / "a.txt", "x")
    with pytest.raises(DataError, match="there is no folder"), replacing(tmp_path / "absent" / "a.txt"):
        pass


def test_a_folder_with_content_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "kept.txt").write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"), replacing_path(folder) as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["corpus", "kept.txt"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a.bin"), "No space left on device"),
        (ValueError("\n first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (RuntimeError("x" * 300), "x" * 200),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
