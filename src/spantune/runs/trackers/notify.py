"""Notifications when a run ends: a webhook, e-mail, Lark, DingTalk and WeCom, sent by SwanLab's plugins.

Addresses and passwords are taken from environment variables and are written nowhere. The plugins are used on their own,
outside a run of SwanLab, which would write their errors, with the address in them, into its log. So notifications work
without SwanLab too, and a run that is killed is told of: this process sees its end. One that cannot be sent is a
warning.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spantune.core import ConfigError, RunError, first_line, to_json
from spantune.runs.folder import RunFolder
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "webhook": ("SPANTUNE_WEBHOOK",),
    "email": ("SPANTUNE_EMAIL_SERVER", "SPANTUNE_EMAIL_FROM", "SPANTUNE_EMAIL_TO", "SPANTUNE_EMAIL_PASSWORD"),
    "lark": ("SPANTUNE_LARK_WEBHOOK",),
    "dingtalk": ("SPANTUNE_DINGTALK_WEBHOOK",),
    "wecom": ("SPANTUNE_WECOM_WEBHOOK",),
}
"""The environment variables that each way needs; SPANTUNE_LARK_SECRET, SPANTUNE_DINGTALK_SECRET and
SPANTUNE_EMAIL_PORT may be set too."""
SECONDS = 10.0
"""Longest that a webhook may take to answer."""
_STATES = {"success": "finished", "crashed": "failed", "aborted": "stopped"}
log = logging.getLogger(__name__)


def require_variables(ways: Sequence[str]) -> None:
    """Check that the address and password of each way are set.

    Raises:
        ConfigError: names the variables that are missing, or the one that is no port.
    """
    for way in ways:
        if missing := [name for name in VARIABLES[way] if not os.environ.get(name)]:
            raise ConfigError(
                f"track.notify={way} needs {', '.join(missing)} in the environment: addresses and passwords are not "
                "written into recipes"
            )
    port = os.environ.get("SPANTUNE_EMAIL_PORT") or "587"
    if "email" in ways and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"SPANTUNE_EMAIL_PORT is {port!r} in the environment; expected a port such as 587")


class NotifyTracker:
    """What is said of a run when it ends: how, its last step, and its F1."""

    def __init__(self, info: RunInfo):
        self._info = info
        self._step = 0
        self._figures: dict[str, Mapping[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Keep the last F1, of the dev documents the best."""
        self._step = max(self._step, step)
        known = self._figures.get(split, {}) if split == "dev" else {}
        if "f1" in values and values["f1"] >= known.get("f1", 0.0) and (split != "test" or step > 0):
            self._figures[split] = values

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Nothing: predictions are not sent."""

    def chart(self, step: int, chart: Chart) -> None:
        """Nothing: charts are not sent."""

    def attach(self, step: int, path: Path) -> None:
        """Nothing: the report is not sent."""

    def finish(self, state: str) -> None:
        """Send the notifications, each of which may fail by itself."""
        message = self._message(state)
        for way in self._info.settings.notify:
            try:
                _send(way, message)
            except Exception as error:  # whatever a plugin raises
                log.warning("no notification was sent by %s: %s", way, first_line(error))

    def _message(self, state: str) -> dict[str, object]:
        """What is sent as JSON to a webhook; `text` is what people read."""
        killed = state == "aborted" and RunFolder(self._info.folder).state == "killed"
        ended = "killed" if killed else _STATES[state]
        split = next((split for split in ("test", "dev") if split in self._figures), None)
        figures = self._figures[split] if split else {}
        f1, low, high = (figures.get(key) for key in ("f1", "f1_low", "f1_high"))
        url = self._info.remembered("swanlab").get("url")
        lines = [f"spantune: {self._info.name} {ended} after step {self._step}"]
        if f1 is not None:
            bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            lines.append(f"F1 {f1:.3f}{bounds} on {split}")
        lines += [str(self._info.folder), *([url] if url else [])]
        return {
            "run": self._info.name,
            "state": ended,
            "step": self._step,
            "f1": f1,
            "f1_low": low,
            "f1_high": high,
            "f1_on": split,
            "url": url,
            "text": "\n".join(lines),
        }


def _send(way: str, message: Mapping[str, object]) -> None:
    """Send a message in one way.

    Raises:
        RunError: the plugin says that it was not sent.
        Exception: anything that a library raises for an address that does not answer.
    """
    text = str(message["text"])
    if way == "webhook":  # SwanLab's own webhook is called when a run begins, and not when it ends
        import requests

        body, kind = to_json(message).encode(), {"Content-Type": "application/json"}
        requests.post(os.environ["SPANTUNE_WEBHOOK"], body, headers=kind, timeout=SECONDS).raise_for_status()
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        _plugin(way, text)._send_notification("success", None)
    if "sent successfully" not in printed.getvalue():  # a plugin prints why, and raises nothing
        why = " ".join(printed.getvalue().split()).rpartition("❌ ")[2]
        raise RunError(why or "the plugin does not say that it was sent")


def _plugin(way: str, text: str) -> Any:
    """SwanLab's plugin, with our text in the place of its own, which names neither the run nor its F1."""
    from swanlab import plugin

    def value(name: str) -> str | None:
        return os.environ.get(f"SPANTUNE_{way.upper()}_{name}")

    classes = {
        "email": plugin.EmailCallback,
        "lark": plugin.LarkCallback,
        "dingtalk": plugin.DingTalkCallback,
        "wecom": plugin.WeComCallback,
    }
    words = {
        "_build_content": lambda *_: text,
        "_build_subject": lambda *_: text.splitlines()[0],
        "_build_html": lambda *_: f"<pre>{escape(text)}</pre>",
    }
    worded = type("_Worded", (classes[way],), words)
    if way == "email":
        return worded(value("FROM"), value("TO"), value("PASSWORD"), value("SERVER"), int(value("PORT") or 587))
    return worded(value("WEBHOOK"), *([] if way == "wecom" else [value("SECRET")]))
