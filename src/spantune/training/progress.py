"""The progress of a run as it is shown to people: a live view on a terminal, else a plain line now and then.

`run.log` gets a plain line for each training line of `metrics.jsonl` and each evaluation:

    step 36/51  loss 0.15  dev F1 0.90 [0.80, 0.98] best  0:23 left

F1 has its interval if there are enough documents for one. On a terminal the live view also shows evaluations.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from spantune.core import Follower, following, has_live_terminal, is_verbose, live, printable, say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from spantune.training.loop import Intervals

LINE_SECONDS, MOST_LINE_SECONDS = 5.0, 60.0
"""The shortest time between two plain lines on stderr, and the value up to which it grows in a long run.

It is a hundredth of the time so far within these two bounds. The first step, the last step and evaluations are always
shown."""
SILENCE_SECONDS = 15.0
"""The longest time without a plain line during an evaluation."""
FIXED = "\u00a0"
"""A no-break space."""
BARS = "▁▂▃▄▅▆▇█"
CURVE = 24
"""The most characters in the curve of losses."""

log = logging.getLogger(__name__)

Values = Mapping[str, float]


@dataclass
class Progress:
    """The progress and the figures of a run, from which the view is drawn.

    Args:
        title: the name of the run and its model.
        total: the optimizer steps of the run, if neither its clock nor its patience ends it earlier.
        masked: how many of these steps predict masked tokens; they are the first ones.
        is_masked: whether `losses` are those of masked tokens.
        seconds_left: returns the training seconds that are left after a step.
        evaluate: the number of steps from one evaluation to the next.
        step: the number of steps that are done.
        share: the share of the run that is over, in [0, 1].
        losses: the losses of the training lines so far, oldest first.
        values: the figures of the last training line.
        last: step and figures of the last evaluation.
        best: step and figures of the best evaluation.
        evaluation_seconds: the time that the last evaluation took.
        evaluating: what the present evaluation does, in words; empty without one.
        evaluating_since: when it began, by the monotonic clock.
        known: the seconds that were left at the last estimate, and when that was made, by the monotonic clock.
        began: when this process began to show the run, by the monotonic clock.
    """

    title: str = ""
    total: int = 0
    masked: int = 0
    is_masked: bool = False
    seconds_left: Callable[[int], float] = lambda step: math.nan
    evaluate: int = 1
    step: int = 0
    share: float = 0.0
    losses: list[float] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    last: tuple[int, Values] | None = None
    best: tuple[int, Values] | None = None
    evaluation_seconds: float = 0.0
    evaluating: str = ""
    evaluating_since: float = 0.0
    known: tuple[float, float] = (math.nan, 0.0)
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that are left, evaluations included; NaN as long as this is not known."""
        seconds, since = self.known
        return seconds if self.evaluating else seconds - (time.monotonic() - since)

    def estimate(self) -> None:
        """Estimate again how much time is left; not to be called while the run's clock is stopped for an evaluation."""
        training = self.seconds_left(self.step)
        steps = self.total - self.step if self.share <= 0 else self.step * (1 - self.share) / self.share
        evaluations = math.ceil(round(steps / self.evaluate, 6))
        seconds = training + self.evaluation_seconds * evaluations if math.isfinite(training) else math.nan
        self.known = seconds, time.monotonic()


class TrainingView:
    """Shows the progress of a run. The training loop calls its methods when something has happened.

    Args:
        progress: the progress that is shown; the methods of the view fill it.
        redraw: draws the live view again; None if plain lines are printed.
        is_shown: whether anything is printed.
    """

    def __init__(self, progress: Progress, redraw: Callable[[], None] | None = None, *, is_shown: bool = True):
        self.progress, self._redraw, self._is_shown = progress, redraw, is_shown
        self._printed = -math.inf
        self._pending: str | None = None

    def begin(
        self, step: int, intervals: Intervals, seconds_left: Callable[[int], float], best: tuple[int | None, float]
    ) -> None:
        """Begin to show a run.

        Args:
            step: the number of steps that are done.
            intervals: the number of steps of the run, and the steps between evaluations.
            seconds_left: returns the training seconds that are left after a step.
            best: step and F1 of the best evaluation so far; the step is None without one.
        """
        shown = self.progress
        shown.step, shown.total, shown.evaluate = step, intervals.total, intervals.evaluate
        shown.masked = intervals.masked
        shown.seconds_left = seconds_left
        if best[0] is not None:
            shown.best = best[0], {"f1": best[1]}
        self._draw()

    def step(self, step: int, share: float) -> None:
        """Show that step number `step` is done, and with it `share` of the run."""
        self.progress.step, self.progress.share = step, share
        self.progress.estimate()

    def evaluates(self) -> None:
        """Show that an evaluation begins."""
        self.progress.evaluating, self.progress.evaluating_since = "evaluating on dev", time.monotonic()
        self._draw()

    def line(self, step: int, values: Values, *, is_evaluated: bool, is_last: bool) -> None:
        """Show a training line of `metrics.jsonl`.

        Args:
            step: the number of the step.
            values: the figures of the line.
            is_evaluated: whether an evaluation follows; then its figures are shown on the same plain line.
            is_last: whether this is the last line of the run.
        """
        shown = self.progress
        shown.step, shown.values = step, values
        if shown.is_masked != (step <= shown.masked):  # the masked steps are over, and their loss is of another kind
            shown.losses.clear()
            shown.is_masked = not shown.is_masked
        shown.losses.append(values["loss"])
        text = f"{_place(shown)}  loss {_loss(values['loss'])}"
        if is_evaluated:
            self._pending = text
        else:
            self._tell(f"{text}{_left(shown)}", is_due=is_last or len(shown.losses) == 1)
        self._draw()

    def evaluated(self, step: int, values: Values, *, is_best: bool, seconds: float) -> None:
        """Show the figures of an evaluation, which took `seconds`; `is_best` says that its F1 is the best so far."""
        shown = self.progress
        shown.last, shown.evaluation_seconds, shown.evaluating = (step, values), seconds, ""
        shown.estimate()
        if is_best:
            shown.best = step, values
        beginning = self._pending or _place(shown)
        self._pending = None
        best = "" if shown.best is None else f" (best {shown.best[1]['f1']:.2f} at step {shown.best[0]})"
        self._tell(f"{beginning}  dev F1 {interval(values)}{' best' if is_best else best}{_left(shown)}", is_due=True)
        self._draw()

    def extracts(self, description: str, done: int, total: int | None, unit: str) -> None:
        """Show how far a loop of an evaluation is; this is the `Follower` of such loops."""
        reached = f"{description}: {done} of {total or '?'} {unit}".rstrip()
        self.progress.evaluating = reached
        if self._redraw is None and time.monotonic() - self._printed > SILENCE_SECONDS and done != total:
            self._print(f"{self._pending or _place(self.progress)}  {reached}")

    def close(self) -> None:
        """Show the line that still waits for its evaluation, because a signal ended the evaluation."""
        if self._pending is not None:
            self._tell(self._pending, is_due=True)
            self._pending = None

    def _tell(self, text: str, *, is_due: bool) -> None:
        """Log a plain line. Print it if there is no live view, and it is due or the last one was long ago."""
        log.info("%s", text)
        pause = max(LINE_SECONDS, min(MOST_LINE_SECONDS, _elapsed(self.progress) / 100))
        if self._redraw is None and (is_due or time.monotonic() - self._printed >= pause):
            self._print(text)

    def _print(self, text: str) -> None:
        if self._is_shown and not is_verbose():  # with -v the log is printed, which has this line
            say(text)
        self._printed = time.monotonic()

    def _draw(self) -> None:
        if self._redraw is not None:
            self._redraw()


@contextmanager
def training_view(title: str, *, is_shown: bool = True) -> Iterator[TrainingView]:
    """Open the view of a run: a live view on a terminal, else plain lines.

    When a live view closes, a line with its last state is printed.

    Args:
        title: the name of the run and its model.
        is_shown: whether this process shows the progress; the other processes only log it.
    """
    progress = Progress(title)
    with ExitStack() as stack:
        redraw = None
        if is_shown and has_live_terminal():
            redraw = stack.enter_context(live(lambda width: panel(progress, width)))
        view = TrainingView(progress, redraw, is_shown=is_shown)
        follower: Follower = view.extracts
        stack.enter_context(following(follower))
        try:
            yield view
        finally:
            view.close()
    if redraw is not None and progress.losses:
        say(summary(progress))


def interval(values: Values) -> str:
    """Return F1 with its interval, such as `0.90 [0.80, 0.98]`; without one if there are too few documents for it."""
    low, high = values.get("f1_low"), values.get("f1_high")
    bounds = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{values['f1']:.2f}{bounds}"


def summary(progress: Progress) -> str:
    """Return the last state of a run as one line."""
    best = f"  dev F1 {interval(progress.best[1])} at step {progress.best[0]}, the best" if progress.best else ""
    return f"{_place(progress)}  loss {_loss(progress.losses[-1])}{best}  {duration(_elapsed(progress))}"


def duration(seconds: float) -> str:
    """Return seconds as 0:23, 12:05 or 3:12:05; `-:--` if they are not finite."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def curve(values: list[float], width: int = CURVE) -> str:
    """Return finite values as a row of at most `width` bars; a bar is the mean of several values if there are more."""
    finite = [value for value in values if math.isfinite(value)]
    size = min(width, len(finite))
    cuts = [round(place * len(finite) / size) for place in range(size + 1)] if size else []
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if high == low:
        return BARS[0] * len(means)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


def panel(progress: Progress, width: int) -> RenderableType:
    """Return the live view for a terminal with `width` columns."""
    from rich.box import ROUNDED
    from rich.panel import Panel
    from rich.text import Text

    rows = [_steps(progress, width)]
    if progress.values:
        values = progress.values
        memory = ("GPU", values["peak_gib"]) if "peak_gib" in values else ("memory", values.get("peak_rss_gib", 0.0))
        loss = Text.assemble("loss ", (_loss(values["loss"]), "bold"), f"{FIXED}{FIXED}")
        loss.append(curve(progress.losses, min(CURVE, max(4, width - 24))), "cyan")
        rows.append(loss)
        rows.append(
            _pieces(
                f"learning rate {values['learning_rate']:.1e}",
                f"{values['examples_per_s']:.1f} examples/s",
                f"{memory[0]} {memory[1]:.1f} GiB",
            )
        )
    if progress.last is not None:
        step, figures = progress.last
        row = Text.assemble("dev F1 ".replace(" ", FIXED), (interval(figures).replace(" ", FIXED), "bold green"))
        row.append(f" at step {step}")
        if progress.best is not None and progress.best[0] != step:
            row.append(f" · best {interval(progress.best[1])} at step {progress.best[0]}")
        elif progress.best is not None:
            row.append(" · the best so far")
        rows.append(row)
    if progress.evaluating:
        taken = duration(time.monotonic() - progress.evaluating_since)
        rows.append(Text(f"{printable(progress.evaluating)} … {taken}", "dim"))
    title = Text(printable(progress.title), "bold", overflow="ellipsis", no_wrap=True)
    return Panel(Text("\n").join(rows), title=title, title_align="left", box=ROUNDED, width=min(width, 100))


def _steps(progress: Progress, width: int) -> Text:
    """Return the row with the number of steps, a progress bar, and the time."""
    from rich.text import Text

    share = progress.share or (progress.step / progress.total if progress.total else 0.0)
    times = f"{duration(_elapsed(progress))}{FIXED}elapsed {duration(progress.left())}{FIXED}left"
    place = _place(progress)
    size = max(6, min(40, min(width, 100) - len(place) - len(times) - 10))
    full = round(size * min(1.0, share))
    bar = Text.assemble(("━" * full, "green"), ("─" * (size - full), "bright_black"))
    return Text.assemble(place.replace(" ", FIXED), " ", bar, f"{FIXED}{share:.0%} {times}")


def _pieces(*pieces: str) -> Text:
    """Join pieces of text; on a narrow terminal, lines break between pieces and not inside them."""
    from rich.text import Text

    return Text(" · ".join(piece.replace(" ", FIXED) for piece in pieces))


def _place(progress: Progress) -> str:
    masked = " (masked tokens)" if progress.step <= progress.masked else ""
    return f"step {progress.step}/{progress.total}{masked}"


def _left(progress: Progress) -> str:
    """Return the end of a line that says how much time is left; empty if this is not known or the run is over."""
    seconds = progress.left()
    return f"  {duration(seconds)} left" if math.isfinite(seconds) and progress.share < 1 else ""


def _loss(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 or not math.isfinite(value) else f"{value:.3f}"


def _elapsed(progress: Progress) -> float:
    return time.monotonic() - progress.began
