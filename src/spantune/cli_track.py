"""The command line's `spantune sync`.

As in `cli`, no logic lives here: JSON goes to stdout, everything for people to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from spantune.cli_data import Json


def sync(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    seconds: Annotated[float, typer.Option(help="Most that it may take.", min=1)] = 600,
    as_json: Json = False,
) -> None:
    """Send a run's record to SwanLab's cloud, once: one recorded offline or locally, or one that was killed.

    The key is taken from SWANLAB_API_KEY.

    Example: spantune sync runs/demo
    """
    from spantune.sync import sync as send

    sent = send(run, seconds)
    what = "was sent before" if sent.before else "is sent"
    print(f"{run} {what}: {sent.url or f'SwanLab run {sent.id}'}", file=sys.stderr)
    if as_json:
        print(json.dumps({"id": sent.id, "url": sent.url, "before": sent.before}))
