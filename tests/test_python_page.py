"""The code of docs/tutorials/python.md runs from top to bottom, with a small trained run in place of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "python.md"
_BLOCK = re.compile(r"(<!-- trained -->\n)?```python\n(.*?)```", re.DOTALL)


def test_the_code_of_the_page_runs(
    tmp_path: Path, corpus: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus / "train.jsonl", "notes.jsonl")
    shutil.copy(corpus / "test.jsonl", "test.jsonl")
    for name in ("notes", "notes-2"):
        shutil.copytree(trained.folder, Path("runs", name), ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    values: dict[str, Any] = {}
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 8 and sum(bool(is_trained) for is_trained, _ in blocks) == 1
    for is_trained, code in blocks:
        compiled = compile(code, str(PAGE), "exec")
        if is_trained:
            values["result"] = trained
        else:
            exec(compiled, values)
    printed = capsys.readouterr().out
    assert "Corpus('notes.jsonl', native, 24 documents" in printed and "have the same F1" in printed
    assert "texts: expected a list of texts or Documents, found int 5" in printed
    assert len(values["documents"]) == 2 and Path("entities.jsonl").is_file() and Path("splits", "dev.jsonl").is_file()
