"""Errors of libraries become one error of spantune; errors of spantune pass unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.core import ModelError, RunError, foreign


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("XXX"), "KeyError: 'XXX'"),
        (TypeError("first line\nsecond line"), "TypeError: first line"),
        (IsADirectoryError(21, "Is a directory"), "IsADirectoryError: Is a directory"),
        (RecursionError(), "RecursionError: RecursionError"),
    ],
)
def test_any_error_of_a_library_is_one_line_that_says_where(error: Exception, said: str) -> None:
    with pytest.raises(ModelError) as caught, foreign(Path("model"), "it cannot be read", "restore it"):
        raise error
    assert str(caught.value) == f"model: it cannot be read ({said}); restore it" and caught.value.__cause__ is error


def test_a_failed_assertion_of_a_library_in_rust_is_one_too() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(ModelError, match="PanicException"), foreign("x", "it cannot be read", "restore it"):
        raise panic("index out of bounds")
    with pytest.raises(ModelError, match="OverflowError"), foreign("x", "it cannot be read", "restore it"):
        Tokenizer(BPE({"a": 0}, [])).decode([-1])


def test_errors_of_ours_and_the_end_of_the_process_pass() -> None:
    for error in (RunError("ours"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, foreign("x", "it cannot be read", "restore it"):
            raise error
        assert caught.value is error
