"""What every format owes a user whose file is bad: one error in plain words, and no output left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from spantune.core import DataError, Document
from spantune.data import formats
from spantune.data.raw.document import unique, verified


def assert_unreadable(path: Path, format: str | None, fragments: Iterable[str]) -> None:
    """Reading `path` fails in words that hold `fragments`."""
    with pytest.raises(DataError) as caught:
        formats.read(path, format)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def assert_unwritable(folder: Path, document: Document, format: str, fragments: Iterable[str]) -> None:
    """Writing `document` after a good one fails in words that hold `fragments`, and leaves the file that was there."""
    path = folder / "kept.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        formats.write(path, [Document("first", "fine"), document], format)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert path.read_text("utf-8") == "old"
    assert list(folder.iterdir()) == [path]


def assert_refused(path: Path, format: str, fragments: Iterable[str], target: str) -> None:
    """Reading `path` fails in words that hold `fragments`; so does writing it to `target`, which leaves nothing."""
    before = set(path.parent.iterdir())
    assert_unreadable(path, format, fragments)
    with pytest.raises(DataError):
        formats.write(
            path.with_name(target), verified(unique(formats.items(path, format, Counter())), Counter()), format
        )
    assert set(path.parent.iterdir()) == before
