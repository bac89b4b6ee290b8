"""All that is printed: messages, tables and progress for people, JSON for machines. Nothing else in spantune prints.

Messages and progress go to stderr, results to stdout. Every text passes one filter: credentials are masked, and
characters that a terminal executes, or that change the order of what is shown, are written as escapes such as `\\x1b`.
Nothing is read as markup. In JSON such characters are JSON escapes, so that a reader gets the value unchanged.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeAlias, TypeVar

from spantune.core.secrets import masked, masked_values
from spantune.core.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.text import Text

Item = TypeVar("Item")
Follower: TypeAlias = Callable[[str, int, "int | None", str], None]
"""Is told how far a loop of `track` is: its description, the items that are done, of how many, and their unit."""

WIDE = 10_000
"""Columns of a table where no terminal reads it, so that nothing is folded."""
FIRST_LINE_SECONDS = 2.0
LONGEST_SILENCE_SECONDS = 60.0
_UNSAFE = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_IN_TEXT = re.compile(f"[\x00-\x1f{_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSAFE}]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")
_UNSAFE_IN_JSON = re.compile(f"[{_UNSAFE}]")


_is_quiet = _is_verbose = False
_followers: list[Follower] = []


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what people are told: errors and results only, messages and warnings (by default), or the whole log."""
    global _is_quiet, _is_verbose
    was_verbose = _is_verbose
    _is_quiet, _is_verbose = quiet and not verbose, verbose
    if not (verbose or was_verbose):
        return
    logger = logging.getLogger("spantune")
    for handler in [handler for handler in logger.handlers if isinstance(handler, StderrHandler)]:
        logger.removeHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    if verbose:
        logger.addHandler(StderrHandler(logging.DEBUG))


def is_verbose() -> bool:
    """Whether the whole log is printed."""
    return _is_verbose


def visible(text: str, *, lines: bool = False) -> str:
    """Return `text` with escapes for what a terminal would execute; line breaks and tabs are kept with `lines`."""
    return (_UNSAFE_IN_LINES if lines else _UNSAFE_IN_TEXT).sub(_escape, text)


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` as it may be printed or logged: with credentials masked, and visible."""
    return visible(masked(text), lines=lines)


def say(text: str) -> None:
    """Print a message to people on stderr; its line breaks are kept. With `-q` it is not printed."""
    if not _is_quiet:
        complain(text)


def complain(text: str) -> None:
    """Print an error to people on stderr; its line breaks are kept."""
    print(printable(text, lines=True), file=sys.stderr)


def put(text: str) -> None:
    """Print a result on stdout; its line breaks are kept."""
    print(printable(text, lines=True))


def put_json(record: Mapping[str, object]) -> None:
    """Print one JSON object on stdout, in one line, with credentials masked.

    What the encoding of stdout lacks is written as JSON escapes.
    """
    text = json_text(masked_values(record))
    try:
        text.encode(sys.stdout.encoding if sys.stdout else "utf-8")
    except UnicodeEncodeError:
        text = _NOT_ASCII.sub(_json_escape, text)
    print(text)


def json_text(value: object) -> str:
    """Return `value` as JSON in one line that a terminal does not execute: control characters are JSON escapes."""
    return _UNSAFE_IN_JSON.sub(lambda sign: f"\\u{ord(sign[0]):04x}", to_json(value))


def print_table(
    header: Iterable[str],
    rows: Iterable[Iterable[RenderableType]],
    stream: TextIO | None = None,
    right: Iterable[int] = (),
) -> None:
    """Print rows under a header, to stdout unless `stream` is given; not truncated where no terminal reads them.

    The columns with the numbers `right` are justified to the right. On stderr it is a message, as of `say`.
    """
    if _is_quiet and stream is sys.stderr:
        return
    from rich.table import Column, Table

    file = stream or sys.stdout
    if file is None:  # closed
        return
    table = Table(*(Column(printable(name), overflow="fold") for name in header), box=None, pad_edge=False)
    for number in right:
        table.columns[number].justify = "right"
    for row in rows:
        table.add_row(*(printable(cell, lines=True) if isinstance(cell, str) else cell for cell in row))
    _console(file, width=None if file.isatty() else WIDE).print(table)


def print_text(text: Text) -> None:
    """Print a styled text on stdout."""
    from rich.text import Text

    console = _console(sys.stdout)
    filtered = Text()
    for segment in text.render(console):
        filtered.append(visible(segment.text, lines=True), segment.style)
    console.print(filtered, soft_wrap=True)


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show a message and a moving sign on a terminal, as long as the block takes."""
    console = _console(sys.stderr, quiet=_is_quiet or not sys.stderr.isatty())
    with console.status(printable(message)):
        yield


def bar() -> Progress:
    """Return a rich Progress with done/total, elapsed and remaining time and a note; hidden without a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class FilteredColumn(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(printable(self.text_format.format(task=task)))

    is_terminal = sys.stderr.isatty() and not _is_quiet
    return Progress(
        FilteredColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        FilteredColumn("{task.fields[note]}"),
        console=_console(sys.stderr, quiet=not is_terminal),
        disable=not is_terminal,
    )


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield `items` under a progress bar, which has no end if `total` is None.

    Without a terminal a line says how far it is: after FIRST_LINE_SECONDS, and then after twice the time, but once in
    LONGEST_SILENCE_SECONDS. If `unit` is given, such as `documents`, it is said how many are done per second.
    """
    if _followers:
        for done, item in enumerate(items, start=1):
            yield item
            for follow in _followers:
                follow(description, done, total, unit)
        return
    started = time.monotonic()
    pause = FIRST_LINE_SECONDS
    next_line = started + pause
    is_terminal = sys.stderr.isatty()
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            speed = f"{done / max(now - started, 1e-9):.1f} {unit}/s" if unit else ""
            progress.update(task, advance=1, note=speed)
            if not is_terminal and now >= next_line:
                reached = f"{done} of {total}" if total else str(done)
                counted = unit.removesuffix("s") if done == 1 and not total else unit
                say(f"{description}: {reached}{f' {counted}, {speed}' if unit else ''}")
                pause = min(2 * pause, LONGEST_SILENCE_SECONDS)
                next_line = now + pause


@contextmanager
def following(follower: Follower) -> Iterator[None]:
    """Let `follower` show how far the loops of `track` inside the block are, instead of bars of their own."""
    _followers.append(follower)
    try:
        yield
    finally:
        _followers.remove(follower)


@contextmanager
def live(draw: Callable[[int], RenderableType]) -> Iterator[Callable[[], None]]:
    """Show on the terminal of stderr what `draw` makes for so many columns, again and again; gives what redraws it now.

    What is printed meanwhile is shown above it. At the end nothing of it is left.
    """
    from rich.live import Live

    console = _console(sys.stderr)
    view = Live(
        console=console,
        get_renderable=lambda: draw(console.width),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=False,
    )
    with view:
        yield view.refresh


def has_live_terminal() -> bool:
    """Whether stderr is a terminal that can draw over what it shows, and messages are wanted."""
    return not _is_quiet and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def guard_terminal() -> None:
    """Send what libraries warn and log through the filter too, where nobody else handles it.

    Characters that the encoding of a stream lacks, such as Chinese ones in Latin-1, are written as escapes.
    """
    if sys.stderr is None:  # closed: print would take stdout in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.lastResort = StderrHandler()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n"))

    warnings.showwarning = show


class SafeFormatter(logging.Formatter):
    """Formats log records that may be printed or written: credentials are masked, control characters visible."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record), lines=True)


class StderrHandler(logging.Handler):
    """Prints the warnings of the log on stderr, and with `-q` its errors only."""

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self.setFormatter(SafeFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if not _is_quiet or record.levelno >= logging.ERROR:
            complain(self.format(record))


def _console(file: TextIO, *, quiet: bool = False, width: int | None = None) -> Console:
    """A rich console that reads no markup and no emoji codes; what it prints must have passed the filter."""
    from rich.console import Console

    return Console(file=file, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def _json_escape(sign: re.Match[str]) -> str:
    """Return a character as JSON's escapes, of UTF-16 code units."""
    units = sign[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


def _escape(sign: re.Match[str]) -> str:
    number = ord(sign[0])
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(number)
    return short or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
