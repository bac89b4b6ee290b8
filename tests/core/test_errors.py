"""The error classes have one root; messages name the place and the nearest valid name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spantune
from spantune.core import ConfigError, DataError, errors, nearest


def test_every_error_is_a_spantune_error_and_no_assertion_or_value_error() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {kind.__name__ for kind in kinds} == {
        "SpantuneError", "ConfigError", "DataError", "ModelError", "RunError", "RankLost"
    }  # fmt: skip
    assert all(issubclass(kind, errors.SpantuneError) for kind in kinds)
    assert not any(issubclass(kind, AssertionError | ValueError) for kind in kinds)


@pytest.mark.parametrize(
    ("path", "line", "field", "message"),
    [
        (None, None, None, "mend it"),
        ("a.jsonl", None, None, "a.jsonl: mend it"),
        (Path("a.jsonl"), 3, None, "a.jsonl:3: mend it"),
        ("a.jsonl", 3, "text", "a.jsonl:3, field text: mend it"),
        (None, 3, None, "line 3: mend it"),
        (None, 0, "text", "line 0, field text: mend it"),
        (None, None, "text", "field text: mend it"),
    ],
)
def test_data_error_says_where(path: str | Path | None, line: int | None, field: str | None, message: str) -> None:
    error = DataError("mend it", path=path, line=line, field=field)
    assert str(error) == message
    assert (error.message, error.path, error.line, error.field) == ("mend it", path, line, field)


def test_nearest_names_the_nearest_and_all_in_order() -> None:
    assert nearest("rnak", ["targets", "rank", "alpha"]) == "did you mean 'rank'? valid: alpha, rank, targets"
    assert nearest("zzz", {"rank": 1, "alpha": 2}) == "valid: alpha, rank"
    assert nearest("rank", []) == "valid: "


def test_windows_is_refused_at_the_start_and_told_of_wsl(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--version").code == 0
    monkeypatch.setattr(sys, "platform", "win32")
    for arguments in (["--version"], ["data", "check", "x.jsonl"]):
        outcome = command(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("error: spantune runs on Linux and macOS; on Windows install it inside WSL, ")
        assert outcome.err.count("\n") == 1
    for name in spantune.__all__:
        with pytest.raises(ConfigError, match="WSL"):
            spantune.__getattr__(name)
    with pytest.raises(AttributeError):
        _ = spantune.nothing
