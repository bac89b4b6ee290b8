"""Public functions raise a clear error for a wrong type, and accept paths, plain values and generators."""

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
TASK = spantune.TaskSpec(labels=(spantune.Label(code="dis"),), instruction="Find entities.")
CALLS: dict[str, Callable[[Any], Any]] = {
    "train": lambda value: spantune.train(value),
    "resume": lambda value: spantune.train({"model": {"source": "x"}}, resume=value),
    "load": lambda value: spantune.load(value),
    "load_config": lambda value: spantune.load_config(value),
    "overrides": lambda value: spantune.load_config("x.yaml", value),
    "init": lambda value: spantune.init(value),
    **{
        f"init {key}": lambda value, key=key: spantune.init("bundled:clinical-zh-test", write=False, **{key: value})
        for key in ("model", "minutes", "reading")
    },
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
    "surface": lambda value: DOCUMENT.surface(value),
    "with_entities": lambda value: DOCUMENT.with_entities(value),
    "Entity": lambda value: spantune.Document("a", "肺炎", (spantune.Entity(value if value != 5 else 6, 2, "dis"),)),
    "meta": lambda value: spantune.Document("a", "肺炎", (), value),
    "Extraction": lambda value: spantune.Extraction(value),
    "check": lambda value: TASK.check(value),
    "save a task": lambda value: TASK.save(value),
    "device": lambda value: spantune.load("runs/none", value),
    "settings": lambda value: spantune.load("runs/none", settings=value),
    "min_score": lambda value: spantune.load("runs/none", min_score=value),
    "score protocol": lambda value: spantune.score([DOCUMENT], [DOCUMENT], ["dis"], protocol=value),
    "score train": lambda value: spantune.score([DOCUMENT], [DOCUMENT], ["dis"], train=value),
    "score resamples": lambda value: spantune.score([DOCUMENT], [DOCUMENT], ["dis"], resamples=value),
    "write format": lambda value: spantune.write("never.jsonl", [DOCUMENT], value),
    "write options": lambda value: spantune.write("never.jsonl", [DOCUMENT], options=value),
    "evaluate": lambda value: spantune.evaluate(value, [DOCUMENT]),
    "evaluate data": lambda value: spantune.evaluate("runs/none", value),
    "evaluate protocol": lambda value: spantune.evaluate("runs/none", [DOCUMENT], protocol=value),
    "compare": lambda value: spantune.compare(value),
    "compare gold": lambda value: spantune.compare(["a", "b"], value),
    "compare labels": lambda value: spantune.compare(["a", "b"], labels=value),
    "calibrate": lambda value: spantune.calibrate(value),
    "calibrate precision": lambda value: spantune.calibrate("runs/none", precision=value),
    "check files": lambda value: spantune.check(value),
    "check labels": lambda value: spantune.check("bundled:clinical-zh-test", value if value is not None else 5),
    "check format": lambda value: spantune.check("none.jsonl", format=value),
    "split": lambda value: spantune.split(value),
    "split shares": lambda value: spantune.split([DOCUMENT], value),
    "split names": lambda value: spantune.split([DOCUMENT], {value if isinstance(value, int) else None: 1.0}),
    "split by": lambda value: spantune.split([DOCUMENT], by=value),
    "split seed": lambda value: spantune.split([DOCUMENT], seed=value),
    "split to": lambda value: spantune.split([DOCUMENT], to=value),
    "plan": lambda value: spantune.plan(value),
    "plan overrides": lambda value: spantune.plan("none.yaml", value),
    "train overrides": lambda value: spantune.train("none.yaml", value),
    "to_dicts": lambda value: spantune.to_dicts(value),
    "to_pandas": lambda value: spantune.to_pandas(value),
    "from_dicts": lambda value: spantune.Corpus.from_dicts(value),
    "from_datasets": lambda value: spantune.Corpus.from_datasets(value),
    "read format": lambda value: spantune.read("never.jsonl", value),
}
TAKEN: list[tuple[str, Any]] = [
    ("resume", None),
    ("RunFolder", "a text"),
    ("write to", "a text"),
    ("save a task", "a text"),
    ("meta", {"a": 1}),
    ("score train", None),
    ("score labels", None),
    ("score resamples", 5),
    ("check labels", {"a": 1}),
    ("split shares", {"a": 1}),
    ("init minutes", 5),
]
"""(call, value) pairs in which the value is valid, so that it must not be refused."""


@pytest.mark.no_cover
@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.parametrize(
    "value", [None, 5, "a text", [None], object(), {"a": 1}], ids=lambda value: type(value).__name__
)
def test_a_wrong_type_is_an_error_of_ours(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(name == function and value == right for function, right in TAKEN):
        pytest.skip("this is taken")
    with pytest.raises(SpantuneError) as error:
        CALLS[name](value)
    assert str(error.value)


def test_extract_takes_a_list_of_texts(trained: Any) -> None:
    extractor = spantune.load(str(trained.folder))
    assert [document.text for document in extractor.extract(iter(["疮", DOCUMENT]))] == ["疮", "肺炎"]
    wrong: list[Any] = [None, 5, [5], {"text": "疮"}, [{"text": "疮"}], b"a text"]
    for value in wrong:
        with pytest.raises(SpantuneError, match=r"texts.*: expected"):
            extractor.extract(value)
    with pytest.raises(SpantuneError, match="put it in a list"):
        extractor.stream("疮")


def test_evaluate_refuses_wrong_training_documents_before_it_extracts() -> None:
    wrong: Any = "train.jsonl"
    with pytest.raises(SpantuneError, match="train: expected a list of Documents"):
        spantune.evaluate("runs/none", [DOCUMENT], train=wrong)


def test_extract_takes_a_text(trained: Any) -> None:
    extractor = spantune.load(str(trained.folder))
    document = extractor.extract("疮")
    assert document == extractor.extract(["疮"])[0] and document.text == "疮"
    assert extractor.extract(DOCUMENT).id == DOCUMENT.id
    assert [extraction.document for extraction in extractor.stream(["疮"])] == [document]


def test_score_takes_generators_and_finds_the_labels() -> None:
    given = spantune.score([DOCUMENT], [DOCUMENT], ["dis"], train=[DOCUMENT])
    assert spantune.score(iter([DOCUMENT]), iter([DOCUMENT]), iter(["dis"]), train=iter([DOCUMENT])) == given
    assert list(spantune.score([DOCUMENT], [DOCUMENT]).labels) == ["dis"]


def test_a_recipe_may_be_a_path_or_plain_values(tmp_path: Path) -> None:
    for recipe in (tmp_path / "none.yaml", str(tmp_path / "none.yaml")):
        with pytest.raises(spantune.ConfigError, match="no such recipe"):
            spantune.train(recipe)
    with pytest.raises(spantune.ConfigError, match="unknown key 'modle'"):
        spantune.train({"modle": {}})
