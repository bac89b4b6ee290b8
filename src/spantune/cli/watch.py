"""The command `spantune watch`: the growing report of runs, in a browser on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from spantune.core import say


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder, or a folder that holds them.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 0,
    opened: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open a browser; by default where there is a desktop.")
    ] = None,
) -> None:
    """Show a run in the browser while it trains: curves, F1, time left, last lines, and its report at the end.

    A folder of runs is shown with the curves of all of them. Only this machine can see the page, which loads nothing
    from elsewhere. On a server, forward the port: ssh -L 8000:127.0.0.1:8000 SERVER. Ctrl-C ends it; the run goes on.

    Examples:

        spantune watch runs/demo

        spantune watch runs --port 8000 --no-open
    """
    from spantune.report import LiveServer

    server = LiveServer(run, port)
    say(f"{run} is shown at {server.url} (Ctrl-C ends this; runs go on)")
    if opened or (opened is None and _has_desktop()):
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        say("ended; runs go on")


def _has_desktop() -> bool:
    """Whether the machine has a display in which a browser can open, and stderr is a terminal."""
    has_display = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return has_display and sys.stderr.isatty()
