"""Printing: messages, tables and progress for people, and JSON for programs. No other module of spantune prints.

Messages and progress go to stderr, and results to stdout. Every text passes through one filter: credentials are masked,
and control characters, which a terminal would execute or which change the order of the shown text, are written as
escapes such as `\\x1b`. Text is never interpreted as markup. In JSON, control characters are written as JSON escapes,
so that a program reads the unchanged value.
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
"""A function that is called with the progress of a loop of `track`.

Its arguments are the description of the loop, the number of items that are done, their total number (None if it is not
known), and their unit.
"""

WIDE = 10_000
"""The width, in columns, of a table that is not printed to a terminal, so that no cell is folded."""
FIRST_LINE_SECONDS = 2.0
LONGEST_SILENCE_SECONDS = 60.0
_UNSAFE = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_IN_TEXT = re.compile(f"[\x00-\x1f{_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSAFE}]")
_UNSAFE_IN_JSON = re.compile(f"[{_UNSAFE}]")


_is_quiet = _is_verbose = False
_followers: list[Follower] = []


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what is printed: by default results, errors, messages and warnings.

    Args:
        quiet: print only results and errors.
        verbose: print the whole log of spantune too. It takes precedence over `quiet`.
    """
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
    """Return `text` with control characters written as escapes; with `lines`, line breaks and tabs are kept."""
    return (_UNSAFE_IN_LINES if lines else _UNSAFE_IN_TEXT).sub(_escape, text)


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` as it may be printed or logged: credentials are masked and control characters escaped.

    With `lines`, line breaks and tabs are kept.
    """
    return visible(masked(text), lines=lines)


def say(text: str) -> None:
    """Print a message on stderr, unless the verbosity is `quiet`. Its line breaks are kept."""
    if not _is_quiet:
        complain(text)


def complain(text: str) -> None:
    """Print an error on stderr, whatever the verbosity. Its line breaks are kept."""
    print(printable(text, lines=True), file=sys.stderr)


def put(text: str) -> None:
    """Print a result on stdout; its line breaks are kept."""
    print(printable(text, lines=True))


def put_json(record: Mapping[str, object]) -> None:
    """Print one JSON object on stdout, in one line, with credentials masked.

    If the encoding of stdout lacks a character, all characters outside ASCII are written as JSON escapes.
    """
    text = json_text(masked_values(record))
    try:
        text.encode(sys.stdout.encoding if sys.stdout else "utf-8")
    except UnicodeEncodeError:
        text = json_text(masked_values(record), ascii_only=True)
    print(text)


def json_text(value: object, *, ascii_only: bool = False) -> str:
    """Return `value` as JSON in one line that is safe to print: control characters are written as JSON escapes.

    With `ascii_only`, all characters outside ASCII are.

    Raises:
        DataError: as `to_json`.
    """
    return _UNSAFE_IN_JSON.sub(lambda sign: f"\\u{ord(sign[0]):04x}", to_json(value, ascii_only=ascii_only))


def print_table(
    header: Iterable[str],
    rows: Iterable[Iterable[RenderableType]],
    stream: TextIO | None = None,
    right: Iterable[int] = (),
) -> None:
    """Print a table.

    If the stream is not a terminal, no cell is folded or truncated. On stderr the table is a message and is not printed
    if the verbosity is `quiet`.

    Args:
        header: the names of the columns.
        rows: the cells of each row.
        stream: where to print; stdout if it is None.
        right: the indices of the columns that are aligned to the right.
    """
    if _is_quiet and stream is sys.stderr:
        return
    from rich.table import Column, Table

    file = stream or sys.stdout
    if file is None:  # the stream is closed
        return
    table = Table(*(Column(printable(name), overflow="fold") for name in header), box=None, pad_edge=False)
    for number in right:
        table.columns[number].justify = "right"
    for row in rows:
        table.add_row(*(printable(cell, lines=True) if isinstance(cell, str) else cell for cell in row))
    _console(file, width=None if file.isatty() else WIDE).print(table)


def print_text(text: Text) -> None:
    """Print a rich Text on stdout, with its styles if stdout is a terminal."""
    from rich.text import Text

    console = _console(sys.stdout)
    filtered = Text()
    for segment in text.render(console):
        filtered.append(visible(segment.text, lines=True), segment.style)
    console.print(filtered, soft_wrap=True)


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show a message with a spinner on the terminal until the block ends; nothing if stderr is not a terminal."""
    console = _console(sys.stderr, quiet=_is_quiet or not sys.stderr.isatty())
    with console.status(printable(message)):
        yield


def bar() -> Progress:
    """Return a rich Progress that shows done/total, elapsed and remaining time, and the task's field `note`.

    It is hidden if stderr is not a terminal or the verbosity is `quiet`.
    """
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
    """Yield `items` and show the progress of the caller's loop.

    On a terminal the progress is a bar. Otherwise a line is printed after FIRST_LINE_SECONDS, and then after pauses
    that double up to LONGEST_SILENCE_SECONDS. Inside `following`, the followers are called instead.

    Args:
        items: what the loop iterates over.
        description: what the loop does, such as `extract`.
        total: the number of items; None if it is not known.
        unit: what the items are, such as `documents`. If it is given, the speed per second is shown too.
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
    """Inside the block, pass the progress of the loops of `track` to `follower` instead of showing it."""
    _followers.append(follower)
    try:
        yield
    finally:
        _followers.remove(follower)


@contextmanager
def live(draw: Callable[[int], RenderableType]) -> Iterator[Callable[[], None]]:
    """Show a view on the terminal, redraw it four times a second inside the block, and remove it at the end.

    Text that is printed on stderr meanwhile appears above the view.

    Args:
        draw: returns the content of the view for a terminal with the given number of columns.

    Yields:
        a function that redraws the view at once.
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
    """Whether `live` can be used: stderr is a terminal that can be redrawn, and the verbosity is not `quiet`."""
    return not _is_quiet and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def guard_terminal() -> None:
    """Set up stdout and stderr of the process for the command line.

    Python warnings, and log records of libraries that no handler takes, pass through the filter too. If the encoding of
    a stream lacks a character, such as a Chinese one in Latin-1, an escape is written instead.
    """
    if sys.stderr is None:  # it is closed: print would write to stdout instead
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
    """A formatter of log records that masks credentials and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted text of a record."""
        return printable(super().format(record), lines=True)


class StderrHandler(logging.Handler):
    """A log handler that prints records on stderr; if the verbosity is `quiet`, only errors.

    Args:
        level: the lowest level that is printed.
    """

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self.setFormatter(SafeFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the verbosity is `quiet` and the record is not an error."""
        if not _is_quiet or record.levelno >= logging.ERROR:
            complain(self.format(record))


def _console(file: TextIO, *, quiet: bool = False, width: int | None = None) -> Console:
    """Return a rich console that interprets no markup and no emoji codes. The caller must filter what it prints."""
    from rich.console import Console

    return Console(file=file, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def _escape(sign: re.Match[str]) -> str:
    number = ord(sign[0])
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(number)
    return short or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
