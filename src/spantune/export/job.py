"""The export of a run: written under a temporary name, compared with the run, and then renamed to its place."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from spantune.core import (
    ConfigError,
    DataError,
    expect,
    first_line,
    nearest,
    overwriting,
    replacing_path,
    require_folder,
    require_new,
    waiting,
)
from spantune.export.adapter import write_adapter
from spantune.export.commands import Command, commands_for, write_example
from spantune.export.gguf import write_gguf
from spantune.export.merged import write_merged
from spantune.export.push import parse_place, push, require_login
from spantune.export.source import DTYPES, FORMS, ExportSettings, Form, Source
from spantune.export.spans import write_spans
from spantune.export.verify import Differs, Verified, Written
from spantune.models import count_weights, silenced
from spantune.runs import RunFolder

WRITERS: Mapping[Form, Callable[[Source, Path], Written]] = {
    "merged": write_merged,
    "adapter": write_adapter,
    "gguf": write_gguf,
    "spans": write_spans,
}
"""The function for each form: it writes the form into an empty folder, and compares it with the run."""
SPARE = 1 << 28
"""Bytes that must be free beyond the weights, for the tokenizer and the file system."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Args:
        folder: the folder of the export.
        form: `merged`, `adapter`, `gguf` or `spans`.
        bytes: the size of its files.
        seconds: how long the export took.
        verified: the result of the comparison with the run; None if there was no comparison.
        notes: sentences for the user.
        commands: commands with which other engines load the export.
    """

    folder: Path
    form: Form
    bytes: int
    seconds: float
    verified: Verified | None
    notes: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()
    page: str | None = None
    """The URL of the export on a hub, if it was pushed."""

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values."""
        return {**asdict(self), "folder": str(self.folder)}


@silenced()
def export_run(
    run: str | Path,
    to: str,
    out: str | Path,
    settings: ExportSettings | None = None,
    *,
    force: bool = False,
) -> Exported:
    """Export a finished run as a folder that other engines load, and compare it with the run.

        exported = spantune.export_run("runs/demo", "merged", "demo-merged")

    Nothing is at `out` before the whole export is written and compared.

    Args:
        run: the run folder.
        to: `merged` (weights), `adapter` (plain LoRA), `gguf` (for llama.cpp) or `spans` (weights, head and loader).
        out: the folder to write; it must be absent or empty, unless `force` is True.
        settings: types, sizes and the number of documents to compare; None takes the defaults.
        force: whether to replace what is at `out`.

    Raises:
        ConfigError: an argument is invalid, or the form does not suit the run.
        RunError: the folder is not a finished run, or its adapter was changed.
        ModelError: the model cannot be loaded, the export computes something else than the run, or a hub refuses it.
        DataError: the export cannot be written, or the documents for the comparison cannot be read.
    """
    began = time.perf_counter()
    expect(run, (str, Path), "export_run", "the path of a run folder, such as runs/demo")
    target = Path(expect(out, (str, Path), "out", "the path of a folder to write"))
    form = _form(to)
    run_folder = RunFolder(Path(run))
    require_new(target, run_folder.parts, force=force)
    require_folder(target)
    settings = settings or ExportSettings()
    place = parse_place(settings.push) if settings.push else None
    source = Source.open(Path(run), settings)
    _require_suited(source, form)
    _require_space(source, form, target)
    _ = source.documents  # read now, so that an error in them is found before the model is loaded
    if place is not None:
        require_login(place)
    with overwriting(target, force=force) as new, _complete(new, settings.keep) as folder:
        written = WRITERS[form](source, folder)
        write_example(source, form, folder, target.name)
        _let_others_read(folder)
    page = None
    if place is not None:
        with waiting(f"uploading to {place} …"):
            page = push(target, place, public=settings.public, license=settings.license)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    seconds, commands = round(time.perf_counter() - began, 1), commands_for(source, form, target)
    return Exported(target, form, size, seconds, written.verified, written.notes, commands, page)


def _let_others_read(folder: Path) -> None:
    """Give every file the mode of the model card, since safetensors makes its files readable by their owner only."""
    mode = stat.S_IMODE((folder / "README.md").stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _form(to: str) -> Form:
    for form in FORMS:
        if form == to:
            return form
    raise ConfigError(f"to {to!r} is unknown; {nearest(str(to), FORMS)}")


def _require_suited(source: Source, form: Form) -> None:
    """Check that a run can be exported in this form.

    Raises:
        ConfigError: the run reads spans and the form has no span head, or the other way round.
    """
    name = source.folder.path
    if form == "spans" and not source.task.reads:
        raise ConfigError(f"{name} writes its answers and has no head (task.answer); export it with --to merged")
    if form in ("merged", "gguf") and source.task.reads:
        raise ConfigError(
            f"{name} reads spans with a head, which {form} weights do not have; export it with --to spans"
        )


def _require_space(source: Source, form: Form, target: Path) -> None:
    """Check that the disk has room for the export.

    Raises:
        DataError: it has not.
    """
    weights = count_weights(source.files.folder)
    needed = SPARE + (0 if form == "adapter" else weights * DTYPES[source.dtype].itemsize)
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise DataError(
            f"the export needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; free some space, or "
            "name a place on another disk",
            path=target,
        )


@contextmanager
def _complete(target: Path, keep: bool) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it is renamed to `target` if the block succeeds and removed if it raises.

    With `keep`, an export that differs from the run is kept as `TARGET.differs`.
    """
    with replacing_path(target) as folder:
        folder.mkdir()
        try:
            yield folder
        except SafetensorError as error:
            raise DataError(
                f"cannot be written: {first_line(error)}; free some space, or name a place on another disk",
                path=target,
            ) from None
        except Differs as error:
            if not keep:
                raise
            kept = target.with_name(f"{target.name}.differs")
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
            raise Differs(f"{error}; what was written is in {kept}") from None
