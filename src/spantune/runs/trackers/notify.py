"""Notifications when a run ends: by a webhook, or by e-mail, Lark, DingTalk or WeCom with SwanLab's plugins.

Addresses and passwords are taken from environment variables and are never written to a file. The plugins are used
outside of a SwanLab run, which would write their errors, and the address in them, into its log. So notifications also
work without SwanLab. They are sent for a killed run too, since this process notices its end. If a notification cannot
be sent, a warning is logged.
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
"""The environment variables that each way of notification needs.

SPANTUNE_LARK_SECRET, SPANTUNE_DINGTALK_SECRET and SPANTUNE_EMAIL_PORT are optional.
"""
SECONDS = 10.0
"""The maximum time, in seconds, in which a webhook must answer."""
_STATES = {"success": "finished", "crashed": "failed", "aborted": "stopped"}
log = logging.getLogger(__name__)


def require_variables(ways: Sequence[str]) -> None:
    """Check that the environment variables of each way of notification are set.

    Raises:
        ConfigError: a variable is missing, or SPANTUNE_EMAIL_PORT is not a port. The message names the variables.
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
    """A tracker that sends notifications when the run ends, with its state, its last step and its F1."""

    def __init__(self, info: RunInfo):
        self._info = info
        self._step = 0
        self._figures: dict[str, Mapping[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Keep the figures with the best F1 on dev, and the last figures with an F1 on test after training."""
        self._step = max(self._step, step)
        known = self._figures.get(split, {}) if split == "dev" else {}
        if "f1" in values and values["f1"] >= known.get("f1", 0.0) and (split != "test" or step > 0):
            self._figures[split] = values

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Do nothing, since predictions are not sent."""

    def chart(self, step: int, chart: Chart) -> None:
        """Do nothing, since charts are not sent."""

    def attach(self, step: int, path: Path) -> None:
        """Do nothing, since the report is not sent."""

    def finish(self, state: str) -> None:
        """Send the notifications. If one of them fails, a warning is logged and the others are still sent."""
        message = self._message(state)
        for way in self._info.settings.notify:
            try:
                _send(way, message)
            except Exception as error:  # plugins raise errors of many types
                log.warning("no notification was sent by %s: %s", way, first_line(error))

    def _message(self, state: str) -> dict[str, object]:
        """Return the message, a JSON object, which a webhook gets as it is. Its key `text` is a text for people."""
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
    """Send a message in one way, such as `email`.

    Raises:
        RunError: the plugin does not confirm that the message was sent.
        Exception: any error that a library raises, for example if an address does not answer.
    """
    text = str(message["text"])
    if way == "webhook":  # SwanLab's webhook plugin is not used, since it is called when a run begins
        import requests

        body, kind = to_json(message).encode(), {"Content-Type": "application/json"}
        requests.post(os.environ["SPANTUNE_WEBHOOK"], body, headers=kind, timeout=SECONDS).raise_for_status()
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        _plugin(way, text)._send_notification("success", None)
    if "sent successfully" not in printed.getvalue():  # a plugin prints its error and does not raise it
        why = " ".join(printed.getvalue().split()).rpartition("❌ ")[2]
        raise RunError(why or "the plugin does not say that it was sent")


def _plugin(way: str, text: str) -> Any:
    """Return SwanLab's plugin for a way of notification, changed to send `text`.

    The plugin's own text names neither the run nor its F1.
    """
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
