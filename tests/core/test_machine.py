"""Properties of the machine and of Python that a process asks for."""

from __future__ import annotations

import gc
import os

import pytest

from spantune.core import keep_for_good, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to cores")
def test_cores_are_those_that_this_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_what_was_made_before_is_left_out_of_garbage_collections() -> None:
    kept = [[number] for number in range(1000)]
    try:
        keep_for_good()
        assert gc.get_freeze_count() > len(kept)
        assert not any(each is kept for each in gc.get_objects())
        later = [[number] for number in range(10)]
        assert any(each is later for each in gc.get_objects())
    finally:
        gc.unfreeze()
