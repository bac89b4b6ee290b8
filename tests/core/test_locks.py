"""A lock has one holder at a time and may be deleted with its folder."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest

from spantune.core import Locked, file_lock


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with file_lock(path), pytest.raises(Locked, match=r"x\.lock"), file_lock(path):
        pytest.fail("held twice")
    with file_lock(path):
        assert path.is_file()


def test_one_that_waits_without_a_limit_gets_the_lock_when_it_is_released(tmp_path: Path) -> None:
    path, order = tmp_path / "x.lock", []

    def wait() -> None:
        with file_lock(path, math.inf):
            order.append("second")

    with file_lock(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]


def test_a_lock_goes_with_its_folder_and_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(ValueError, match="body"), file_lock(tmp_path / "before" / "x.lock"):
        (tmp_path / "before").rename(tmp_path / "after")
        with pytest.raises(Locked), file_lock(tmp_path / "after" / "x.lock"):
            pytest.fail("held twice")
        raise ValueError("body")
    with file_lock(tmp_path / "after" / "x.lock"):
        pass


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"), file_lock(tmp_path):
        pytest.fail("held")
