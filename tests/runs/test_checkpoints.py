"""An incomplete checkpoint is ignored, the best and the last are never deleted, a full disk keeps the earlier ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spantune.runs import Checkpoints, step_of, torn
from spantune.runs.manifest import MANIFEST, seal


def filled(content: bytes = b"weights" * 100) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "adapter.bin").write_bytes(content)
        (folder / "deep").mkdir()
        (folder / "deep" / "state.json").write_text("{}")

    return fill


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.iterdir())


def written(folder: Path, *wanted: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    assert all(checkpoints.write(step, filled()) for step in wanted)
    return checkpoints


def test_a_checkpoint_is_sealed_and_has_its_name_last(tmp_path: Path) -> None:
    seen = []

    def fill(folder: Path) -> None:
        filled()(folder)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.write(8, fill)
    assert seen == [[".part"]] and steps(tmp_path) == [8]
    newest = checkpoints.newest()
    assert newest == tmp_path / "checkpoint-8" == checkpoints.at(8) and step_of(newest) == 8 and torn(newest) is None


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


TEARS: dict[str, Callable[[Path], object]] = {
    "a byte differs": lambda folder: flip(folder / "adapter.bin"),
    "cut short": lambda folder: (folder / "adapter.bin").write_bytes(b"weights"),
    "a file is gone": lambda folder: (folder / "deep" / "state.json").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text('{"step": 8, "fi'),
    "no object": lambda folder: (folder / MANIFEST).write_text("[]"),
    "of another step": lambda folder: seal(folder, step=7),
}


@pytest.mark.parametrize("name", TEARS)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = written(tmp_path, 4, 8)
    TEARS[name](tmp_path / "checkpoint-8")
    assert checkpoints.newest() == tmp_path / "checkpoint-4"
    assert checkpoints.at(8) is None and "checkpoint-8 is torn and passed over" in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert checkpoints.newest() is None


def test_newest_is_by_number_whatever_the_files_say(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 12, 4)  # as if the clock had been set back in between
    (tmp_path / "checkpoint-tmp").mkdir()
    assert checkpoints.newest() == tmp_path / "checkpoint-12"


def test_the_best_and_the_newest_are_never_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 4, 6, 8, 10):
        if step == 4:
            checkpoints.best = step
        assert checkpoints.write(step, filled())
    assert steps(tmp_path) == [4, 8, 10]
    checkpoints.best = 10
    assert checkpoints.write(12, filled()) and steps(tmp_path) == [10, 12]


def test_what_is_being_removed_has_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = written(tmp_path, 2, keep=1)
    remove = shutil.rmtree

    def killed_half_way(path: Path, ignore_errors: bool = False) -> None:
        if (path / MANIFEST).is_file():  # a complete checkpoint: remove one file and exit, as a kill would
            (path / "adapter.bin").unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed_half_way)
        checkpoints.write(4, filled())
    assert all(torn(path) is None for path in tmp_path.glob("checkpoint-*"))
    assert checkpoints.newest() == tmp_path / "checkpoint-4"
    checkpoints.discard_after(4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_what_comes_later_is_discarded_torn_or_not(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 4, 8, 12)
    (tmp_path / "checkpoint-12" / MANIFEST).unlink()
    for leftover in (".part", ".gone"):
        (tmp_path / leftover / "checkpoint-16").mkdir(parents=True)
    checkpoints.discard_after(4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        filled()(folder)
        raise KeyboardInterrupt

    checkpoints = written(tmp_path, 4)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(8, fill)
    assert steps(tmp_path) == [4]


def test_a_full_disk_loses_no_checkpoint_and_is_tried_again(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(1 << 20)
    checkpoints = Checkpoints(disk / "checkpoints", keep=1)
    assert checkpoints.write(4, filled()) and not checkpoints.is_owed(5)
    writers: list[Callable[[Path], object]] = [
        lambda folder: (folder / "a.bin").write_bytes(bytes(2 << 20)),
        lambda folder: torch.save(torch.zeros(1 << 20), folder / "a.pt"),
        lambda folder: save_safetensors(folder / "a.safetensors"),
    ]
    for attempt, (step, fill) in enumerate(zip((8, 9, 11), writers, strict=True)):
        assert not checkpoints.write(step, lambda folder, fill=fill: fill(folder) and None)
        assert steps(disk / "checkpoints") == [4] and checkpoints.newest() is not None
        again = step + 2**attempt
        assert not checkpoints.is_owed(again - 1) and checkpoints.is_owed(again)
    assert "step 8: the checkpoint could not be written (No space left on device" in caplog.text
    assert "the last checkpoint is checkpoint-4, and the next attempt is after step 9" in caplog.text
    assert checkpoints.write(15, filled()) and steps(disk / "checkpoints") == [15]
    assert "could be written again" in caplog.text and not checkpoints.is_owed(16)


def save_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1 << 20)}, str(path))


def test_a_read_only_disk_is_like_a_full_one(
    small_disk: Callable[[int], Path], remount: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(1 << 20)
    checkpoints = written(disk / "checkpoints", 4)
    remount(disk, "ro")
    with caplog.at_level(logging.WARNING):
        assert not checkpoints.write(8, filled())
    assert "Read-only file system" in caplog.text and checkpoints.newest() == disk / "checkpoints" / "checkpoint-4"
    remount(disk, "rw")
    assert checkpoints.write(9, filled())
