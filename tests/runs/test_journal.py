"""Lines are on the disk at once and complete; a full disk delays lines and loses none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spantune.runs.journal import Journal


def test_lines_are_appended_at_once_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntor")
    journal = Journal(path)
    journal.append("two 病")
    assert path.read_text(encoding="utf-8") == "one\ntor\ntwo 病\n"
    journal.close()
    again = Journal(path)
    again.append("three")
    again.close()
    assert path.read_text(encoding="utf-8").splitlines() == ["one", "tor", "two 病", "three"]


def test_every_line_survives_the_death_of_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from spantune.runs.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "number = 0\n"
        "while True:\n"
        "    journal.append(str(number) * 100); print(number, flush=True); number += 1\n"
    )
    path = tmp_path / "lines"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = [int(process.stdout.readline()) for _ in range(12)]
        process.send_signal(signal.SIGKILL)
        told = first + [int(line) for line in process.stdout.read().split("\n")[:-1]]
    lines = path.read_text().splitlines()
    assert len(told) > 10 and lines[: len(told)] == [str(number) * 100 for number in told]


def fill(disk: Path) -> Path:
    """Fill the disk completely."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(512))
    return filler


def test_a_full_disk_delays_lines_and_loses_none(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk(64 << 10) / "lines"
    journal = Journal(path)
    journal.append("first")
    filler = fill(path.parent)
    wanted = ["first", *(f"{number} " + "x" * 3000 for number in range(5))]  # longer than the rest of a page
    for line in wanted[1:]:
        journal.append(line)
    assert path.read_text().count("\n") < 6
    assert caplog.text.count("No space left on device; lines are kept in memory") == 1
    filler.unlink()
    journal.append("last")
    journal.close()
    assert path.read_text().splitlines() == [*wanted, "last"] and "no line was lost" in caplog.text


def test_lines_that_are_lost_at_the_end_are_an_error(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(64 << 10) / "lines"
    journal = Journal(path)
    fill(path.parent)
    journal.append("x" * 5000)
    with pytest.raises(OSError, match="the last 1 lines could not be written and are lost"):
        journal.close()
    journal.close()  # closing twice does nothing
    assert os.path.exists(path)
