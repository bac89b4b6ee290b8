"""Which recipes run their packs as CUDA graphs, and on which device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spantune.core import Config, parse_config
from spantune.training.layers import graphing

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def recipe(**sections: dict[str, Any]) -> Config:
    plain: dict[str, Any] = {"model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": "t"}}
    return parse_config({**plain, **{name: {**plain.get(name, {}), **values} for name, values in sections.items()}})


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({}, True),
        ({"train": {"compile": "off", "gradient_checkpointing": "off"}}, True),
        ({"train": {"graphs": "off"}}, False),
        ({"train": {"compile": "off"}}, False),  # its layers are recomputed
        ({"train": {"pack": "none"}}, False),
        ({"model": {"base": "nf4"}, "train": {"compile": "on"}}, False),
        ({"distributed": {"strategy": "fsdp"}}, False),
        ({"lora": {"dropout": 0.1}}, True),
    ],
)
def test_where_packs_can_become_graphs(sections: dict[str, Any], wanted: bool) -> None:
    assert graphing(recipe(**sections), CUDA) is wanted
    assert not graphing(recipe(**sections), CPU)
