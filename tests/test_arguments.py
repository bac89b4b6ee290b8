"""Public functions refuse a wrong type in a sentence, and take the obvious: a path or plain values for a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spantune
from spantune.core import SpantuneError
from spantune.report import report_run
from spantune.runs import RunFolder, sync

DOCUMENT = spantune.Document("a", "肺炎", (spantune.Entity(0, 2, "dis"),))
CALLS: dict[str, Callable[[Any], Any]] = {
    "train": lambda value: spantune.train(value),
    "resume": lambda value: spantune.train({"model": {"source": "x"}}, resume=value),
    "load": lambda value: spantune.load(value),
    "load_config": lambda value: spantune.load_config(value),
    "overrides": lambda value: spantune.load_config("x.yaml", value),
    "init": lambda value: spantune.init(value),
    "read": lambda value: spantune.read(value),
    "write to": lambda value: spantune.write(value, [DOCUMENT]),
    "write": lambda value: spantune.write("/dev/shm/never.jsonl", value),
    "score gold": lambda value: spantune.score(value, [DOCUMENT], ["dis"]),
    "score predicted": lambda value: spantune.score([DOCUMENT], value, ["dis"]),
    "score labels": lambda value: spantune.score([DOCUMENT], [DOCUMENT], value),
    "TaskSpec": lambda value: spantune.TaskSpec.load(value),
    "Document": lambda value: spantune.Document("a", "text", value),
    "text": lambda value: spantune.Document("a", value if value != "a text" else 5),
    "Extractor": lambda value: spantune.Extractor(value, value),
    "RunFolder": lambda value: RunFolder(value),
    "report_run": lambda value: report_run(value),
    "sync": lambda value: sync(value),
}


@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.parametrize(
    "value", [None, 5, "a text", [None], object(), {"a": 1}], ids=lambda value: type(value).__name__
)
def test_a_wrong_type_is_an_error_of_ours(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = {("resume", None), ("RunFolder", "a text"), ("write to", "a text")}
    if not isinstance(value, list | dict) and (name, value) in taken:
        pytest.skip("this is taken")
    with pytest.raises(SpantuneError) as error:
        CALLS[name](value)
    assert str(error.value)


def test_extract_takes_a_list_of_texts(trained: Any) -> None:
    extractor = spantune.load(str(trained.folder))
    assert [document.text for document in extractor.extract(iter(["疮", DOCUMENT]))] == ["疮", "肺炎"]
    for value in (None, "疮", 5, [5]):
        with pytest.raises(SpantuneError, match="expected"):
            extractor.extract(value)  # type: ignore[arg-type]


def test_a_recipe_may_be_a_path_or_plain_values(tmp_path: Path) -> None:
    for recipe in (tmp_path / "none.yaml", str(tmp_path / "none.yaml")):
        with pytest.raises(spantune.ConfigError, match="no such recipe"):
            spantune.train(recipe)
    with pytest.raises(spantune.ConfigError, match="unknown key 'modle'"):
        spantune.train({"modle": {}})
