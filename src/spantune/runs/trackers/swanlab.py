"""SwanLab: a local board on this machine, or SwanLab's cloud, during training or later.

This module calls `swanlab.init`. SwanLab's Trainer callback is not used, since it loses the config. Version 0.10 of
SwanLab behaves in these ways, which could lose or spoil the record of a run:

- It reads every environment variable SWANLAB_…, and some values crash it. So its process gets only the variables for
  the address of the cloud and the account. Everything else is set by the recipe.
- It writes its store only when it finishes, so killing its process leaves an empty file. So a resumed run and `sync`
  send it everything again.
- Its local board cannot continue a run and would show a second one. So the record of a killed run is moved aside.
- Its boards show a nested value of the config as `[object Object]`. So the config is flattened to dotted keys.
- It waits for an unreachable cloud without a time limit. So its process is killed, and `sync` sends the rest.
- It handles Ctrl-C, prints to stdout and finishes its record at exit. So it has its own process.
- Its local board shows no ECharts and no HTML pages, and shows one chart for each scalar. So charts are pictures there,
  and only these pictures have the intervals of types. The module `board` lets several runs share a board.

SwanLab itself reads its API key, from SWANLAB_API_KEY or from the file of `swanlab login`. The key is never written to
a file. SWANLAB_DEBUG is hidden from SwanLab, since with this variable it writes credentials into its log.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spantune.core import ConfigError, RunError, to_json
from spantune.runs.folder import RunFolder
from spantune.runs.trackers import board
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo, flattened

ANSWER_SECONDS = 5.0
"""The maximum time, in seconds, in which the cloud must answer; otherwise the run is recorded offline."""
NAME = "swanlab"
_ALLOWED = ("API_KEY", "API_HOST", "WEB_HOST", "WORKSPACE", "ROOT", "SAVE_DIR", "CONFIG_DIR", "SECRETS_DIR")
_ALLOWED_VARIABLES = {f"SWANLAB_{name}" for name in _ALLOWED}
log = logging.getLogger(__name__)


class SwanlabTracker:
    """A SwanLab experiment: config, scalars, predictions as a text panel, charts, and the closing report.

    Args:
        info: the facts about the run.
        aside: None for the tracker of a run that trains. A temporary folder if the whole record is sent to the cloud
            again; the record in the run folder is then not changed.

    Raises:
        RunError: `aside` is given and the cloud cannot be used. Without `aside`, the run is then recorded offline.
    """

    def __init__(self, info: RunInfo, aside: Path | None = None):
        import swanlab

        self._swanlab, self._info, self._aside = swanlab, info, aside
        self._mode = "online" if aside else info.settings.swanlab
        self._folder = aside or (info.board if self._mode == "local" else RunFolder(info.folder).swanlab)
        self._defined: set[str] = set()  # the keys whose chart group was given to SwanLab
        # key to (number of points, value) of a scalar whose points are all equal; None for other scalars
        self._values: dict[str, tuple[int, float] | None] = {}
        note = info.remembered(NAME)
        self._id = note.get("id") or secrets.token_hex(10)
        info.remember(NAME, id=self._id, sent=False)
        if aside is None:
            _move_aside(info, note.get("directory", ""))
        if self._mode == "local":
            board.group_charts(self._folder)
        self._run = self._begin()
        if aside is None:
            url = self._run.url if self._mode == "online" else None
            info.remember(NAME, mode=self._mode, directory=self._run.dir.name, state="running", url=url)
            info.remember(NAME, hint=self._hint(finished=False))

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record a chart for each key. On the local board, the intervals of types are not recorded as scalars."""
        if self._mode == "local":
            values = {key: value for key, value in values.items() if not key.startswith(("f1_low/", "f1_high/"))}
        named = {f"{split}/{key}": value for key, value in values.items()}
        for key, value in named.items():
            count, first = self._values.get(key, (0, value)) or (0, None)
            self._values[key] = (count + 1, value) if value == first else None
        self._log(step, named)

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Record a panel of texts, and in the cloud also a table that can be sorted."""
        self._log(step, {name: [self._swanlab.Text(row.summary, caption=row.id) for row in rows]})
        if self._mode == "local":
            return
        table = self._swanlab.echarts.Table()
        table.add(list(PredictionRow.COLUMNS), [list(row.cells) for row in rows])
        self._log(step, {f"{name} table": self._swanlab.ECharts(table)})

    def chart(self, step: int, chart: Chart) -> None:
        """Record a chart: as a picture on the local board, which shows no ECharts, and as ECharts in the cloud."""
        if self._mode == "local":
            media = self._swanlab.Image(chart.image(), caption=chart.caption)
        else:
            media = self._swanlab.ECharts(_Options(chart.options()), caption=chart.caption)
        self._log(step, {chart.name: media})

    def attach(self, step: int, path: Path) -> None:
        """Record the report as text. In the cloud, also show its page and store it as a file."""
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        self._log(step, {"Report": self._swanlab.Text(text, caption=path.name)})
        if self._mode != "local":
            self._log(step, {"Report page": self._swanlab.Html(path, caption=path.name)})
            self._run.save(str(path), base_path=str(path.parent), policy="end")

    def finish(self, state: str) -> None:
        """Close the experiment. This may wait for the cloud without a time limit."""
        url = self._run.url if self._mode == "online" else None
        self._run.finish(state=state, error=None if state == "success" else f"the run was {state}")
        if self._mode == "local":
            flat = [key for key, known in self._values.items() if known and known[0] > 1]
            board.hide_constants(self._folder, self._run.dir.name, flat)
        hint = self._hint(finished=True)
        self._info.remember(NAME, state=state, sent=self._mode == "online", url=url, hint=hint)

    def _log(self, step: int, values: Mapping[str, object]) -> None:
        """Record scalars or media. A key that is new is first assigned to its chart group."""
        for key in values.keys() - self._defined:
            self._run.define_metric(key, section_name=board.section(key), hidden=board.is_summary(key))
        self._defined.update(values)
        self._run.log(dict(values), step=step)

    def _begin(self) -> Any:
        if self._mode != "online":
            return self._init(self._mode)
        reason = unreachable()
        try:
            if reason is None:
                return self._init("online")
        except Exception as error:  # the SDK may raise any error if a login is refused
            reason = str(error).strip() or type(error).__name__
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._aside:
            raise RunError(f"SwanLab's cloud cannot be had: {reason}")
        log.warning(
            "SwanLab's cloud cannot be had: %s. The run goes on and is recorded offline; when it is finished, send it "
            "with: spantune sync %s", reason, self._info.folder,
        )  # fmt: skip
        self._mode = "offline"
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        info, settings, swanlab = self._info, self._info.settings, self._swanlab
        # the output of the console is in run.log already; the host name, command line and git remote are private
        quiet = {"terminal": {"proxy_type": "none"}, "probe": {"runtime": False, "git": False, "requirements": False}}
        return swanlab.init(
            project=settings.project,
            name=info.name,
            description=settings.description,
            tags=list(settings.tags),
            group=settings.group,
            job_type=settings.job_type,
            workspace=settings.workspace,
            config=flattened(info.config),
            log_dir=str(self._folder),
            mode=mode,
            id=self._id,
            resume="allow",  # needed for SwanLab to accept our id; it begins a new run if there is none with this id
            settings=swanlab.Settings(interactive=False, **quiet),
        )

    def _hint(self, finished: bool) -> str:
        if self._mode == "local":
            return f"dashboard: swanlab watch {self._folder}"
        if self._mode == "online" and finished:
            return f"dashboard: {self._run.url}"
        return f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {self._info.folder}"


class _Options:
    """ECharts options in the form that SwanLab accepts: an object with the method `dump_options`."""

    def __init__(self, options: Mapping[str, object]):
        self._options = options

    def dump_options(self) -> str:
        """Return the options as JSON."""
        return to_json(self._options)


def require_key() -> None:
    """Check that there is an API key for the online mode.

    Raises:
        ConfigError: there is no API key. SwanLab would wait at a prompt.
    """
    root = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab"
    if os.environ.get("SWANLAB_API_KEY") or any((Path(folder) / ".netrc").is_file() for folder in (root, ".swanlab")):
        return
    raise ConfigError(
        "SwanLab's cloud needs an API key: set SWANLAB_API_KEY or run `swanlab login`; or set track.swanlab=local"
    )


def swanlab_environment() -> dict[str, str]:
    """Return the environment variables for SwanLab's process, without those that override the recipe or crash it."""
    variables = {name for name in os.environ if name.startswith("SWANLAB_")}
    hidden = variables - _ALLOWED_VARIABLES
    if hidden:
        log.info("%s: not used; the recipe's section track decides", ", ".join(sorted(hidden)))
    return {name: value for name, value in os.environ.items() if name not in hidden}


def unreachable() -> str | None:
    """Return why SwanLab's cloud cannot be reached within ANSWER_SECONDS; None if it sends any answer."""
    import requests
    import swanlab

    host = swanlab.Settings().api_host
    try:
        requests.get(f"{host}/api", timeout=ANSWER_SECONDS)
    except requests.Timeout:
        return f"{host} does not answer within {ANSWER_SECONDS:.0f} s"
    except requests.RequestException as error:
        return f"{host} cannot be reached ({type(error).__name__})"
    return None


def sync_store(info: RunInfo) -> None:
    """Send the store of a run that was recorded offline to its end to SwanLab's cloud, under the id of the run.

    Raises:
        RunError: the cloud cannot be used or refuses the upload, or another process records the run.
    """
    import swanlab

    if reason := unreachable():
        raise RunError(f"SwanLab's cloud cannot be had: {reason}")
    with info.owned(NAME):
        note = info.remembered(NAME)
        settings = swanlab.Settings(run=swanlab.Settings.Run(id=note["id"]))
        try:
            swanlab.sync(RunFolder(info.folder).swanlab / note["directory"], settings)
        except Exception as error:  # the SDK may raise any error if an upload is refused
            raise RunError(f"SwanLab's cloud cannot be had: {error}") from error
        info.remember(NAME, sent=True, hint=f"dashboard: in SwanLab's cloud, run {note['id']}")


def _move_aside(info: RunInfo, directory: str) -> None:
    """Move the record of an earlier process of the run aside, since the new record contains the same points.

    Args:
        info: the facts about the run.
        directory: the name of the folder of the earlier record; "" if there is none.
    """
    own = RunFolder(info.folder).swanlab
    number = 1 + len(list(own.parent.glob(f"{own.name}.killed-*")))
    aside = own.with_name(f"{own.name}.killed-{number}")
    if any(own.glob("run-*")):
        own.rename(aside)
    elif info.settings.swanlab == "local":
        board.take_out(info.board, directory, aside)
