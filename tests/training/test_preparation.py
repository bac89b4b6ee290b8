"""The preparation of a run reads source, configuration and tokenizer once, and refuses some settings before that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spantune.core import ConfigError, parse_config
from spantune.models import load, loading
from spantune.training import prepare


def test_the_weights_are_loaded_without_reading_source_or_tokenizer_again(
    tree: Callable[..., dict[str, Any]], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("resolve", "load_config_of", "load_tokenizer"):
        original = getattr(loading, name)
        monkeypatch.setattr(loading, name, lambda *given, _of=original, _name=name: calls.append(_name) or _of(*given))
    prepared = prepare(parse_config(tree(tmp_path)))
    loaded = load(prepared.recipe.model, prepared.files)
    assert calls == ["resolve", "load_config_of", "load_tokenizer"]
    assert loaded.tokenizer is prepared.tokenizer and loaded.path == prepared.files.folder == tiny_folder
    again = load(prepared.recipe.model).model
    states, expected = loaded.model.state_dict(), again.state_dict()
    assert states.keys() == expected.keys() and all(states[name].equal(expected[name]) for name in states)
    assert loaded.model.config.to_dict() == again.config.to_dict()


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_a_base_that_takes_no_adapter_up_is_refused_before_anything_is_read(base: str, tmp_path: Path) -> None:
    recipe = parse_config(
        {
            "model": {"source": str(tmp_path / "none"), "base": base},
            "task": {"preset": "cmeee"},
            "data": {"train": str(tmp_path / "none.jsonl")},
            "extract": {"merge": "always"},
        }
    )
    with pytest.raises(
        ConfigError, match=f"extract.merge=always, and the run's base is {base}.*set extract.merge=auto"
    ):
        prepare(recipe)
