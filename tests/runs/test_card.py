"""An adapter's model card states its purpose, and nothing about the machine on which it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from helpers.run_folders import save_run
from spantune.core import Label, TaskSpec
from spantune.runs import write_card

TASK = TaskSpec(labels=(Label(code="疾病", name="disease"), Label(code="sym")), instruction="x", language="zh")


def test_nothing_in_an_adapter_names_a_folder_of_this_machine(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = save_run(tmp_path / "alice" / "run", tiny_folder) / "adapter"
    for path in adapter.iterdir():
        content = path.read_bytes()
        assert str(tmp_path.parent.parent).encode() not in content and b"alice" not in content, path.name
    assert '"base_model_name_or_path": null' in (adapter / "adapter_config.json").read_text()
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in card and "base_model" not in card
    assert "After step 4 its strict micro F1 on the dev documents was 0.5000 (95 % interval 0.2500 to 0.7500)" in card


@pytest.mark.parametrize(
    ("base", "hub"), [("microsoft/phi-4", "microsoft/phi-4"), ("bundled:gemma3-270m", None), ("", None)]
)
def test_a_card_names_the_base_and_the_types(tmp_path: Path, base: str, hub: str | None) -> None:
    write_card(tmp_path, TASK, base)
    _, front_matter, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front_matter).get("base_model") == hub
    assert yaml.safe_load(front_matter)["language"] == "zh"
    assert "- `疾病`: disease\n- `sym`\n" in text and "How well it does was not recorded." in text
    assert (f"on `{base}`" if base else "on a model in a local folder") in text
    assert (f"from_pretrained('{hub}')" in text) == (hub is not None)
