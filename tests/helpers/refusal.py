"""Check what every corpus format must do with a bad file: raise one clear error and leave no output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from spantune.core import DataError, Document
from spantune.data import formats
from spantune.data.raw.document import unique, verified


def assert_unreadable(path: Path, format: str | None, fragments: Iterable[str]) -> None:
    """Check that reading `path` fails with a message that contains all `fragments`."""
    with pytest.raises(DataError) as caught:
        formats.read(path, format)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def assert_unwritable(folder: Path, document: Document, format: str, fragments: Iterable[str]) -> None:
    """Check that writing a good document and then `document` fails with all `fragments`, and keeps the old file."""
    path = folder / "kept.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        formats.write(path, [Document("first", "fine"), document], format)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert path.read_text("utf-8") == "old"
    assert list(folder.iterdir()) == [path]


def assert_refused(path: Path, format: str, fragments: Iterable[str], target: str) -> None:
    """Check that reading `path` and converting it to `target` fail with all `fragments`, and leave no output."""
    before = set(path.parent.iterdir())
    assert_unreadable(path, format, fragments)
    with pytest.raises(DataError):
        formats.write(
            path.with_name(target), verified(unique(formats.items(path, format, Counter())), Counter()), format
        )
    assert set(path.parent.iterdir()) == before
