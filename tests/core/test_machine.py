"""What a process asks of Python for the time that it uses a model."""

from __future__ import annotations

import gc

from spantune.core import keep_for_good


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
