"""TaskSpec: it is read back as it was saved, and an invalid task is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spantune.core import DataError, Document, Entity, Label, RunError, TaskSpec
from spantune.core.task import TASK_FILE

TASK = TaskSpec(labels=(Label(code="sym", name="症状"), Label(code="bod")), instruction="找出实体：")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(words.filter(bool), min_size=1, max_size=4, unique=True),
    instruction=words.filter(bool),
    name=words,
    empty=words.map(lambda word: " ".join(word.split())),
    answer=st.sampled_from(["jsonl", "jsonl_seed"]),
)
def test_what_is_saved_is_read_back(codes: list[str], instruction: str, name: str, empty: str, answer: str) -> None:
    labels = [{"code": code, "name": name, "description": name * 2} for code in codes]
    task = TaskSpec.model_validate(
        {"labels": labels, "instruction": instruction, "answer": answer, "empty_answer": empty, "template": "tutorial"}
    )
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder))
        assert TaskSpec.load(Path(folder)) == task
    assert task.codes == tuple(codes)


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    text = (tmp_path / TASK_FILE).read_text(encoding="utf-8")
    assert "找出实体" in text and text.count("\n") > 10 and text.endswith("}\n")


@pytest.mark.parametrize(
    "values",
    [
        {"labels": []},
        {"labels": [{"code": ""}]},
        {"instruction": ""},
        {"answer": "xml"},
        {"template": "plain"},
        {"temperature": 1},
        {"labels": [{"code": "a", "colour": "red"}]},
    ],
)
def test_what_is_no_task_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TaskSpec.model_validate({"labels": [{"code": "a"}], "instruction": "x", **values})


def test_repeated_codes_are_refused_by_name() -> None:
    labels = [{"code": code} for code in ("b", "a", "b", "c", "c")]
    with pytest.raises(ValidationError, match="unique; repeated: b, c"):
        TaskSpec.model_validate({"labels": labels, "instruction": "x"})


def test_a_task_is_frozen() -> None:
    for value, key in ((TASK, "instruction"), (TASK.labels[0], "code")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(value, key, "other")


def test_check_names_document_label_and_nearest() -> None:
    documents = [Document("a", "腹痛", (Entity(0, 2, "sym"),)), Document("b/7", "腹痛", (Entity(0, 1, "bdo"),))]
    TASK.check(documents[:1])
    with pytest.raises(DataError, match=r"'b/7'.*'bdo' of '腹' \[0, 1\).*did you mean 'bod'\? valid: bod, sym"):
        TASK.check(documents)


def test_a_folder_without_a_task_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no task\.json here; expected a run or adapter folder"):
        TaskSpec.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"no task\.json here"):
        TaskSpec.load(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"labels": []}', b"\xff\xfe{"])
def test_a_damaged_task_is_a_run_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TASK_FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"task\.json: not a task: .*; restore it"):
        TaskSpec.load(tmp_path)


@pytest.mark.parametrize("answer", [" none", "none ", "no\nentity"])
def test_an_empty_answer_that_reading_would_not_recognise_is_refused(answer: str) -> None:
    with pytest.raises(ValidationError, match="one line without spaces"):
        TaskSpec(labels=(Label(code="dis"),), instruction="find", empty_answer=answer)


def test_a_task_that_was_saved_before_tasks_could_be_flat_is_nested(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    saved = json.loads((tmp_path / TASK_FILE).read_text(encoding="utf-8"))
    del saved["nested"]
    (tmp_path / TASK_FILE).write_text(json.dumps(saved), encoding="utf-8")
    assert TaskSpec.load(tmp_path).nested
    TASK.model_copy(update={"nested": False}).save(tmp_path)
    assert not TaskSpec.load(tmp_path).nested
