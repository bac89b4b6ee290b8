"""Layers are compiled where this saves time, and not where compiled layers would compute something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers import row_kernel
from helpers.fakes import tiny_model
from spantune.core import config
from spantune.extraction.compiling import compile_checked, is_worth_compiling
from spantune.extraction.slot_cache import SlotCache
from spantune.models import decoder_layers


def fine(forward: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*args, **kwargs)


def wrong(forward: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*args, **kwargs) * -1


def broken(forward: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler here\nand a long explanation")

    return fail


@pytest.mark.parametrize(
    ("compiler", "warning"), [(fine, None), (wrong, "they are off by"), (broken, "faster: no compiler here")]
)
def test_compiled_layers_are_used_where_they_compute_the_same(
    compiler: Any, warning: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    made = tiny_model("phi3").requires_grad_(False)
    cache = SlotCache(2, 16, 24, row_kernel.CPU)
    with row_kernel.on_cpu():
        done = compile_checked(made, lambda is_compiled: row_kernel.written(made, cache, compiled=is_compiled), 5)
    assert done == (warning is None)
    assert all(hasattr(layer.forward, "plain") == done for layer in decoder_layers(made))
    assert not any(layer._forward_hooks for layer in decoder_layers(made))
    assert [record.levelname for record in caplog.records] == ([] if done else ["WARNING"])
    assert warning is None or (warning in caplog.messages[0] and "long" not in caplog.messages[0])


def test_nothing_is_compiled_on_a_cpu() -> None:
    made = tiny_model("phi3").requires_grad_(False)
    assert not is_worth_compiling(made, config.Extract(compile="on"), is_bulk=True)
