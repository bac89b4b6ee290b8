"""Progress bars and messages for people, on stderr; bars are shown in a terminal only.

Machine-readable output goes to stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")


def console() -> Console:
    """Return a rich console for messages to people, on stderr."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def bar() -> Progress:
    """Return a rich Progress with done/total, elapsed and remaining time and a note; hidden without a terminal."""
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
    """Yield `items` under a progress bar, which has no end if `total` is None.

    If `unit` is given, such as `documents`, the bar shows how many of them are done per second.
    """
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        started = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=1, note=f"{rate:.1f} {unit}/s" if unit else "")
