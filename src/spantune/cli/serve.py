"""The command `spantune serve`, which serves runs over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from spantune.cli import names
from spantune.cli.libraries import quiet
from spantune.cli.options import Device, MinScore
from spantune.core import ConfigError, log_crashes_into, require_extra, say

LIMITS = "Limits"
"""The section of the help page for the limits of the service."""
_SIZE = re.compile(r"(\d+)\s*(|KiB|MiB|GiB|B)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def serve(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders; the first is the default.", autocompletion=names.run_folders),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="What clients must send: as a bearer token, or as the password of HTTP Basic. Better given as the "
            "variable, since others on this machine can see a command line.",
            envvar="SPANTUNE_TOKEN",
            show_default=False,
        ),
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(help="Folder to save corrections in. Without it none are saved.", metavar="FOLDER")
    ] = None,
    device: Device = "auto",
    min_score: MinScore = None,
    max_queue: Annotated[
        int, typer.Option(help="Documents that may be accepted and not finished.", min=1, rich_help_panel=LIMITS)
    ] = 256,
    max_documents: Annotated[int, typer.Option(help="Documents of a request.", min=1, rich_help_panel=LIMITS)] = 64,
    max_body: Annotated[
        str, typer.Option(help="Size of a request's body: 1MiB, 500KiB or bytes.", rich_help_panel=LIMITS)
    ] = "1MiB",
    timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take.", min=0.1, max=86_400, rich_help_panel=LIMITS)
    ] = 60,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may ask from a browser: scheme, host and port. May be repeated."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name that a reverse proxy on this machine passes on as Host. May be repeated."),
    ] = None,
) -> None:
    """Serve runs over HTTP, with a page to try and correct them, until Ctrl-C.

    The service listens once the models are loaded. SIGTERM and Ctrl-C end it after all accepted requests are answered.

    Examples:

        spantune serve runs/demo

        spantune serve runs/first runs/second --port 8080 --corrections corrections

        SPANTUNE_TOKEN=$(openssl rand -hex 24) spantune serve runs/demo --host 0.0.0.0
    """
    require_extra("spantune serve", "serve", ("fastapi", "uvicorn", "prometheus_client"))
    from spantune.serving import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        token=token,
        corrections=corrections,
        device=device,
        max_queue=max_queue,
        max_documents=max_documents,
        max_body=_bytes(max_body),
        timeout=timeout,
        allow_origins=tuple(allow_origin or ()),
        allow_hosts=tuple(allow_host or ()),
        min_score=min_score,
    )
    say(f"loading {', '.join(str(run) for run in runs)} …")
    log_crashes_into(runs[0])
    quiet()
    from spantune.serving import serve as run_service

    raise typer.Exit(run_service(runs, settings))


def _bytes(size: str) -> int:
    """Return the number of bytes of a size such as `1MiB`.

    Raises:
        ConfigError: the text is not a size, or the size is 0.
    """
    match = _SIZE.fullmatch(size.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--max-body {size}: expected a size such as 1MiB, 500KiB or 100000 (bytes)")
    return int(match[1]) * _UNITS[match[2].lower()]
