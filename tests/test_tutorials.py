"""The tutorials run: every command and every Python block, in order, with a tiny model.

What a tiny model cannot do is replaced by overrides, which are added to the commands that train or plan. Everything
else is run as the pages show it.
"""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.command import Outcome

ROOT = Path(__file__).parents[1]
PAGES = ("own-labels", "label-studio")
"""The tutorials that need no GPU and no network, in the order in which they build on each other."""
TOY = (
    *("model.base=fp32", "model.device=cpu", "lora.rank=4", "train.max_steps=2", "train.batch_examples=2"),
    *("train.eval_documents=2", "train.eval_before=false", "train.loss_on=choices", "track.swanlab=off"),
    *("extract.max_new_tokens=16", "data.test_limit=2"),
)
NOT_RUN = ("watch", "--resume")
"""Commands that are left out: `watch` serves until it is stopped, and `--resume` needs a stopped run."""
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples and recipes of a checkout, in which the tutorials may write."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.no_cover
def test_own_labels_and_the_way_back_from_label_studio(
    checkout: Path, tiny_folder: Path, command: Callable[..., Outcome]
) -> None:
    run = []
    for language, block in _blocks():
        if language == "python":
            exec(compile(block, "tutorial", "exec"), {})
            continue
        for arguments in _commands(block):
            toy = [f"model.source={tiny_folder}", *TOY] if arguments[0] in ("plan", "train") else []
            outcome = command(*arguments, *toy)
            assert outcome.code == 0 or (arguments[0] == "extract" and outcome.code == 1), (arguments, outcome)
            run.append(arguments[0])
    assert {"init", "plan", "train", "extract", "data", "compare"} <= set(run)
    for made in ("recipe.yaml", "review.json", "review.xml", "entities.html", "runs/notes-2/report.html"):
        assert (checkout / made).is_file(), made


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile(page: Path) -> None:
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(textwrap.dedent(block))


def _blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = (ROOT / "docs" / "tutorials" / f"{page}.md").read_text(encoding="utf-8")
        yield from ((language, block) for language, block in _BLOCK.findall(text) if language in ("bash", "python"))


def _commands(block: str) -> Iterator[list[Any]]:
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["spantune"] and not set(words) & set(NOT_RUN):
            yield words[1:]
