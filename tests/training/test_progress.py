"""`spantune.training.progress`: plain lines and their rate, and the live view at several terminal widths."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from spantune.core import following, set_verbosity, track
from spantune.training.loop import Intervals
from spantune.training.progress import (
    Progress,
    TrainingView,
    curve,
    duration,
    panel,
    summary,
    training_view,
)

LINE = {"learning_rate": 2e-4, "examples_per_s": 3.41, "peak_rss_gib": 2.14}
FIGURES = {"f1": 0.9, "f1_low": 0.8, "f1_high": 0.98}
FEW: dict[str, Any] = {"f1": 0.5, "f1_low": None, "f1_high": None}


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def begun(view: TrainingView) -> TrainingView:
    """Begin the view of a run of 51 steps of 1.5 seconds."""
    view.begin(0, Intervals(total=51, log=4, evaluate=12, save=12), lambda step: 1.5 * (51 - step), (None, 0.0))
    return view


def steps(view: TrainingView, *numbers: int) -> None:
    """Report steps as done: each with a line, every twelfth with an evaluation."""
    for step in numbers:
        view.step(step, step / 51)
        view.line(step, LINE | {"loss": 3.0 / step}, is_evaluated=step % 12 == 0, is_last=step == 51)
        if step % 12 == 0:
            view.evaluates()
            view.evaluated(step, FIGURES if step == 36 else FEW, is_best=step != 48, seconds=2.0)


def test_a_line_has_the_step_the_loss_the_f1_and_the_time(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spantune")
    with training_view("run") as view:
        steps(begun(view), 4, 12, 36, 40, 44, 48, 51)
    lines = [
        "step 4/51  loss 0.75  1:10 left",
        "step 12/51  loss 0.25  dev F1 0.50 best  1:06 left",
        "step 36/51  loss 0.083  dev F1 0.90 [0.80, 0.98] best  0:26 left",
        "step 40/51  loss 0.075  0:18 left",
        "step 44/51  loss 0.068  0:12 left",
        "step 48/51  loss 0.062  dev F1 0.50 (best 0.90 at step 36)  0:06 left",
        "step 51/51  loss 0.059",
    ]
    assert [record.message for record in caplog.records] == lines
    assert capfd.readouterr().err.splitlines() == [line for line in lines if "40/" not in line and "44/" not in line]


def test_the_lines_of_many_steps_are_few(capfd: pytest.CaptureFixture[str]) -> None:
    with training_view("run") as view:
        begun(view)
        for step in range(1, 5000):
            view.line(step, LINE | {"loss": 1.0}, is_evaluated=False, is_last=step == 4999)
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_a_step_whose_evaluation_was_interrupted_has_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), training_view("run") as view:
        begun(view).line(12, LINE | {"loss": 0.5}, is_evaluated=True, is_last=False)
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "step 12/51  loss 0.50\n"


def test_a_process_that_is_not_the_first_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with training_view("run", is_shown=False) as view:
        steps(begun(view), 4, 12)
    assert capfd.readouterr().err == ""


@pytest.fixture
def quietly() -> Iterator[None]:
    set_verbosity(quiet=True)
    yield
    set_verbosity()


@pytest.mark.usefixtures("quietly")
def test_with_q_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with training_view("run") as view:
        steps(begun(view), 4, 12)
    assert capfd.readouterr().err == ""


def drawn(progress: Progress, width: int) -> list[str]:
    """Return the lines of the view."""
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    console.print(panel(progress, width))
    return [line.replace("\u00a0", " ") for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_holds_everything_at_every_width(width: int) -> None:
    progress = Progress("runs/notes · gemma3-270m")
    view = begun(TrainingView(progress, lambda: None))
    steps(view, *range(4, 49, 4))
    view.evaluates()
    with following(view.extracts):
        for _ in zip(track(range(8), "extract dev", 8, unit="documents"), range(3), strict=False):
            pass
    lines = drawn(progress, width)
    shown = " ".join(line.strip("│ ") for line in lines)
    assert all(len(line) == min(width, 100) for line in lines)
    for part in ("step 48/51", "94%", "elapsed", "0:06 left", "loss 0.062", "learning rate 2.0e-04", "3.4 examples/s",
                 "memory 2.1 GiB", "dev F1 0.50", "at step 48", "best 0.90 [0.80, 0.98] at step 36",
                 "extract dev: 3 of 8 documents", "runs/notes · gemma3-270m"):  # fmt: skip
        assert part in shown, part
    assert summary(progress).startswith("step 48/51  loss 0.062  dev F1 0.90 [0.80, 0.98] at step 36, the best")


def test_a_view_before_the_first_step_is_drawn() -> None:
    progress = Progress("run")
    begun(TrainingView(progress, lambda: None))
    assert "step 0/51" in drawn(progress, 80)[1] and "-:-- left" in drawn(progress, 80)[1]


def test_a_terminal_is_left_with_the_last_state(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with training_view("run") as view:
        steps(begun(view), 4, 12)
        print("in between", file=sys.stderr)
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "╭─ run ─" in written and "in between" in written
    last = written.rstrip("\n").splitlines()[-1]
    assert last.endswith("step 12/51  loss 0.25  dev F1 0.50 at step 12, the best  0:00")


def test_a_curve_is_as_wide_as_it_may_be() -> None:
    assert curve([3.0, 2.0, 1.0]) == "█▅▁" and curve([1.0]) == "▁" and curve([]) == ""
    assert curve([float(value) for value in range(100)], 4) == "▁▃▆█"
    assert curve([1.0, float("nan"), 2.0]) == "▁█"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3, 65.4, 3 * 3600 + 61, float("nan"))] == [
        "0:03",
        "1:05",
        "3:01:01",
        "-:--",
    ]
