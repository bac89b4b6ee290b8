"""Progress on stderr, to a terminal only: bars with a rate and the time left.

Machine-readable output goes to stdout and is never mixed with this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def console() -> Any:
    """The rich console that all messages for people go to."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def bar() -> Any:
    """A rich Progress that shows done/total, elapsed and remaining time and a free note; hidden without a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True, quiet=not sys.stderr.isatty()),
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield `items` under a progress bar, one without an end where no `total` is known.

    With the name of a `unit` it says how many of them a second.
    """
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        started = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=1, note=f"{rate:.1f} {unit}/s" if unit else "")
