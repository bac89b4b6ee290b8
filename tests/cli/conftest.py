"""Fixtures that the tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.data import formats


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """A native file of twenty documents, to which the test may write."""
    formats.write(tmp_path / "in.jsonl", formats.read("bundled:clinical-zh-test").documents[:20])
    return tmp_path / "in.jsonl"
