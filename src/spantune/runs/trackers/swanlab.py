"""SwanLab: a board on this machine, or its cloud, now or later.

`swanlab.init` is called here and SwanLab's Trainer callback is not used, since that loses the config. What else version
0.10 does that would lose the record of a run, and what is done about it:

- It reads every SWANLAB_ variable, some of which crash it: its process gets those for the address of the cloud and the
  account, and no other, since the recipe decides.
- It writes its store when it finishes, so that killing its process leaves an empty file; a resumed run and `sync` send
  it everything again.
- Its local board cannot continue a run and would show a second one: what a killed run wrote is moved aside.
- Its boards show a nested value of the config as `[object Object]`: the config is flattened to dotted keys.
- It waits for an unreachable cloud without a limit; its process is killed then, and `sync` sends the rest.
- It handles Ctrl-C, prints to stdout and finishes its record at exit: in its process, not in the run's.
- Its local board shows no ECharts and no pages, and one chart for each scalar: charts are pictures there, and have the
  intervals of types. How several runs share a board is in `board`.

SwanLab itself reads its key: from SWANLAB_API_KEY, or from what `swanlab login` has stored. The key is written nowhere;
SWANLAB_DEBUG is hidden for this reason: with it SwanLab logs the credentials that it logs in with.
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
"""Longest that the cloud may take to answer at all before a run is recorded offline."""
NAME = "swanlab"
_ALLOWED = ("API_KEY", "API_HOST", "WEB_HOST", "WORKSPACE", "ROOT", "SAVE_DIR", "CONFIG_DIR", "SECRETS_DIR")
_ALLOWED_VARIABLES = {f"SWANLAB_{name}" for name in _ALLOWED}
log = logging.getLogger(__name__)


class SwanlabTracker:
    """A SwanLab experiment: config, scalars, predictions as a text panel, charts, and the closing report.

    Args:
        info: what is told about the run.
        aside: a temporary folder, from which the whole record is sent again while that of the run is not changed.

    Raises:
        RunError: the record is to be sent again and the cloud cannot be used; a new run is recorded offline instead.
    """

    def __init__(self, info: RunInfo, aside: Path | None = None):
        import swanlab

        self._swanlab, self._info, self._aside = swanlab, info, aside
        self._mode = "online" if aside else info.settings.swanlab
        self._folder = aside or (info.board if self._mode == "local" else RunFolder(info.folder).swanlab)
        self._defined: set[str] = set()  # the keys whose place among the charts SwanLab knows
        self._values: dict[str, tuple[int, float] | None] = {}  # points and value of a scalar; None: no flat line
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
        """One chart for each key; on the local board the intervals of types are in the pictures only."""
        if self._mode == "local":
            values = {key: value for key, value in values.items() if not key.startswith(("f1_low/", "f1_high/"))}
        named = {f"{split}/{key}": value for key, value in values.items()}
        for key, value in named.items():
            count, first = self._values.get(key, (0, value)) or (0, None)
            self._values[key] = (count + 1, value) if value == first else None
        self._log(step, named)

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """A panel of texts; in the cloud a table too, which can be sorted."""
        self._log(step, {name: [self._swanlab.Text(row.summary, caption=row.id) for row in rows]})
        if self._mode == "local":
            return
        table = self._swanlab.echarts.Table()
        table.add(list(PredictionRow.COLUMNS), [list(row.cells) for row in rows])
        self._log(step, {f"{name} table": self._swanlab.ECharts(table)})

    def chart(self, step: int, chart: Chart) -> None:
        """A picture on the local board, which shows no ECharts; ECharts for the cloud."""
        if self._mode == "local":
            media = self._swanlab.Image(chart.image(), caption=chart.caption)
        else:
            media = self._swanlab.ECharts(_Options(chart.options()), caption=chart.caption)
        self._log(step, {chart.name: media})

    def attach(self, step: int, path: Path) -> None:
        """The report as text, and for the cloud its page, which it shows, and keeps as a file."""
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        self._log(step, {"Report": self._swanlab.Text(text, caption=path.name)})
        if self._mode != "local":
            self._log(step, {"Report page": self._swanlab.Html(path, caption=path.name)})
            self._run.save(str(path), base_path=str(path.parent), policy="end")

    def finish(self, state: str) -> None:
        """Close the experiment; this may wait for the cloud without a limit."""
        url = self._run.url if self._mode == "online" else None
        self._run.finish(state=state, error=None if state == "success" else f"the run was {state}")
        if self._mode == "local":
            flat = [key for key, known in self._values.items() if known and known[0] > 1]
            board.hide_constants(self._folder, self._run.dir.name, flat)
        hint = self._hint(finished=True)
        self._info.remember(NAME, state=state, sent=self._mode == "online", url=url, hint=hint)

    def _log(self, step: int, values: Mapping[str, object]) -> None:
        """Record scalars or media, each new one with its place among the charts."""
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
        except Exception as error:  # whatever its SDK raises for a refused login
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
        # the console is in run.log; host name, command line and git remote are private
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
            resume="allow",  # only so does it accept our id; it begins a new run where there is none
            settings=swanlab.Settings(interactive=False, **quiet),
        )

    def _hint(self, finished: bool) -> str:
        if self._mode == "local":
            return f"dashboard: swanlab watch {self._folder}"
        if self._mode == "online" and finished:
            return f"dashboard: {self._run.url}"
        return f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {self._info.folder}"


class _Options:
    """ECharts options as SwanLab takes them."""

    def __init__(self, options: Mapping[str, object]):
        self._options = options

    def dump_options(self) -> str:
        """The options as JSON."""
        return to_json(self._options)


def require_key() -> None:
    """Check that there is an API key for the online mode.

    Raises:
        ConfigError: there is no API key; SwanLab would block on a prompt.
    """
    root = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab"
    if os.environ.get("SWANLAB_API_KEY") or any((Path(folder) / ".netrc").is_file() for folder in (root, ".swanlab")):
        return
    raise ConfigError(
        "SwanLab's cloud needs an API key: set SWANLAB_API_KEY or run `swanlab login`; or set track.swanlab=local"
    )


def swanlab_environment() -> dict[str, str]:
    """The environment of SwanLab's process, without variables that would override the recipe or crash it."""
    variables = {name for name in os.environ if name.startswith("SWANLAB_")}
    hidden = variables - _ALLOWED_VARIABLES
    if hidden:
        log.info("%s: not used; the recipe's section track decides", ", ".join(sorted(hidden)))
    return {name: value for name, value in os.environ.items() if name not in hidden}


def unreachable() -> str | None:
    """Why SwanLab's cloud does not answer within ANSWER_SECONDS; None when it answers anything."""
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
    """Send the store of a run that was recorded offline to its end, under the run's own id.

    Raises:
        RunError: SwanLab's cloud cannot be used or refuses it.
    """
    import swanlab

    if reason := unreachable():
        raise RunError(f"SwanLab's cloud cannot be had: {reason}")
    with info.owned(NAME):
        note = info.remembered(NAME)
        settings = swanlab.Settings(run=swanlab.Settings.Run(id=note["id"]))
        try:
            swanlab.sync(RunFolder(info.folder).swanlab / note["directory"], settings)
        except Exception as error:  # whatever its SDK raises for a refused upload
            raise RunError(f"SwanLab's cloud cannot be had: {error}") from error
        info.remember(NAME, sent=True, hint=f"dashboard: in SwanLab's cloud, run {note['id']}")


def _move_aside(info: RunInfo, directory: str) -> None:
    """Move the record of an earlier process of the run out of the way of the new one, which repeats it."""
    own = RunFolder(info.folder).swanlab
    number = 1 + len(list(own.parent.glob(f"{own.name}.killed-*")))
    aside = own.with_name(f"{own.name}.killed-{number}")
    if any(own.glob("run-*")):
        own.rename(aside)
    elif info.settings.swanlab == "local":
        board.take_out(info.board, directory, aside)
