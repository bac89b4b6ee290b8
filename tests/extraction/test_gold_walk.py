"""The choices in gold answers are the same from one process, from several processes and from the cache."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MERGES, byte_tokenizer
from spantune.core import Document, Entity, Label, ModelError, TaskSpec
from spantune.encoding import Encoder, Example
from spantune.extraction import Guide, constraint_of, gold_walk, mark_choices

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find.")
DOCUMENTS = [
    Document(f"d{number}", text, (Entity(0, 2, "dis"), Entity(len(text) - 1, len(text), "sym")))
    for number, text in enumerate(["肺炎患者咳嗽", "abcab it", 'ab "q" \\ b'] * 40)
]

FEW = DOCUMENTS[:12]


def encoder(task: TaskSpec = TASK, tokenizer: Any = None) -> Encoder:
    return Encoder(tokenizer or byte_tokenizer(MERGES), task)


def mark(cache: Path, documents: Sequence[Document] = DOCUMENTS, coder: Encoder | None = None) -> tuple[Example, ...]:
    coder = coder or encoder()
    examples = [coder.example(document) for document in documents]
    return mark_choices(examples, documents, coder, len(coder.tokenizer) + 3, cache)


def answers_of(coder: Encoder, documents: Sequence[Document] = DOCUMENTS) -> list[gold_walk.Answer]:
    return [(document.text, tuple(coder.answer_ids(document))) for document in documents]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of answers of each call of `walk`."""
    sizes: list[int] = []
    original = gold_walk.walk

    def counted(answers: Sequence[gold_walk.Answer], *arguments: Any) -> Any:
        sizes.append(len(answers))
        return original(answers, *arguments)

    monkeypatch.setattr(gold_walk, "walk", counted)
    return sizes


@pytest.mark.no_cover
@pytest.mark.parametrize(("answer", "processes"), [("jsonl", 1), ("inline", 2), ("grouped", 1)])
def test_two_processes_find_what_one_finds_in_the_same_order(answer: str, processes: int) -> None:
    coder = encoder(TASK.model_copy(update={"answer": answer}))
    answers, vocabulary = answers_of(coder), len(coder.tokenizer) + 3
    constraint = constraint_of(coder.tokenizer, vocabulary, coder.stop_id)
    plain = [Guide(constraint, coder, text).choices(ids) for text, ids in answers]
    for count in range(1, processes + 1):
        assert list(gold_walk.walk(answers, coder, vocabulary, processes=count)) == plain


def test_many_answers_are_walked_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serial = mark(tmp_path / "serial")
    coder = encoder()
    constraint = constraint_of(coder.tokenizer, len(coder.tokenizer) + 3, coder.stop_id)
    for example, (text, ids) in zip(serial, answers_of(coder), strict=True):
        choices = Guide(constraint, coder, text).choices(ids)
        assert example.choices == {example.answer_start + index: allowed for index, allowed in choices.items()}
    monkeypatch.setattr(gold_walk, "SERIAL_UNDER", len(DOCUMENTS))
    monkeypatch.setattr(gold_walk, "_processes", lambda: 2)
    assert mark(tmp_path / "parallel") == serial
    assert not caplog.records


def test_a_worker_raises_the_error_that_this_process_would() -> None:
    coder = encoder()
    answers = answers_of(coder)
    answers[50] = ("b", answers[50][1])
    with pytest.raises(ModelError) as serial:
        list(gold_walk.walk(answers, coder, len(coder.tokenizer)))
    with pytest.raises(ModelError) as parallel:
        list(gold_walk.walk(answers, coder, len(coder.tokenizer), processes=2))
    assert str(parallel.value) == str(serial.value) and "set train.loss_on=answer" in str(serial.value)


def test_a_killed_worker_is_replaced_by_this_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coder = encoder()
    monkeypatch.setattr(gold_walk, "_start_worker", os.kill)  # os.kill gets (pickled, vocabulary), so the worker fails
    monkeypatch.setattr(logging.getLogger("concurrent.futures"), "disabled", True)
    walked = list(gold_walk.walk(answers_of(coder), coder, len(coder.tokenizer), processes=2))
    assert walked == list(gold_walk.walk(answers_of(coder), coder, len(coder.tokenizer)))
    assert "was killed" in caplog.text


SCRIPT = """
import pickle, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import spantune.extraction.gold_walk as gold_walk
with open(sys.argv[1], "rb") as file:  # as a worker gets it: what makes it would import torch
    answers, coder, vocabulary = pickle.load(file)
print("start", flush=True)  # no `if __name__ == "__main__"`: a worker must not run this script
for _ in gold_walk.walk(answers * 1000, coder, vocabulary, processes=2):
    print("walked", flush=True)
"""


@pytest.mark.no_cover
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_workers_end_when_the_walk_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    coder, given = encoder(), tmp_path / "given"
    given.write_bytes(pickle.dumps((answers_of(coder), coder, len(coder.tokenizer))))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, str(script), str(given)], **pipes, text=True, start_new_session=True)
    assert process.stdout is not None and process.stderr is not None
    assert [process.stdout.readline() for _ in range(2)] == ["start\n", "walked\n"]
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, also to the workers
    else:
        process.kill()
    errors = process.communicate(timeout=60)[1]
    deadline = time.monotonic() + 20
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_running(pid) for pid in workers)
    assert errors.count("Traceback") == (number == signal.SIGINT)  # only the traceback of the script itself


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_second_time_nothing_is_walked(tmp_path: Path, walks: list[int]) -> None:
    first, second = mark(tmp_path), mark(tmp_path)
    assert walks == [len(DOCUMENTS)] and first == second
    assert mark(tmp_path, DOCUMENTS[:60]) == first[:60] and mark(tmp_path, DOCUMENTS[:60]) == first[:60]
    assert walks == [120, 60, 60], "few answers are not cached"


def test_equal_sets_and_ids_are_stored_once(tmp_path: Path) -> None:
    for marked in (mark(tmp_path), mark(tmp_path)):
        sets = [ids for example in marked for ids in (example.choices or {}).values()]
        assert len({id(ids) for ids in sets}) == len(set(sets)) < len(sets) / 20
        ids = [token for allowed in sets for token in allowed]
        assert len({id(token) for token in ids}) == len(set(ids))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Document]:
    """A few documents, enough to be cached in this test."""
    monkeypatch.setattr(gold_walk, "CACHED_FROM", len(FEW))
    return FEW


class _Changed:
    """Documents and encoders that differ in one thing on which the choices depend."""

    label = staticmethod(lambda: ([FEW[0].with_entities([Entity(0, 2, "sym")]), *FEW[1:]], encoder()))
    text = staticmethod(lambda: ([replace(FEW[0], text="肺炎患者咳痰"), *FEW[1:]], encoder()))
    task = staticmethod(lambda: (FEW, encoder(TASK.model_copy(update={"instruction": "Find entities."}))))
    tokenizer = staticmethod(lambda: (FEW, encoder(tokenizer=byte_tokenizer(MERGES[:-1]))))

    @staticmethod
    def template() -> tuple[list[Document], Encoder]:
        tokenizer = byte_tokenizer(MERGES)
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")
        return FEW, encoder(tokenizer=tokenizer)


@pytest.mark.parametrize("what", ["label", "text", "task", "tokenizer", "template"])
def test_any_change_is_walked_again(what: str, few: list[Document], tmp_path: Path, walks: list[int]) -> None:
    mark(tmp_path, few)
    mark(tmp_path, *getattr(_Changed, what)())
    assert walks == [len(few)] * 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["torn", "empty", "pickle", "foreign"])
def test_a_damaged_cache_is_made_again(
    damage: str, few: list[Document], tmp_path: Path, walks: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    whole = mark(tmp_path, few)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "foreign":
        mark(tmp_path, [*few, replace(few[0], id="more")])
        (other,) = set(tmp_path.iterdir()) - {file}
        other.replace(file)
    else:
        file.write_bytes({"torn": content[: len(content) // 2], "empty": b"", "pickle": b"\x80\x04]."}[damage])
    walks.clear()
    assert mark(tmp_path, few) == whole == mark(tmp_path, few)
    assert walks == [len(few)] and file.read_bytes() == content
    assert f"{file}: damaged cache" in caplog.text


def test_the_least_recently_used_results_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gold_walk, "CACHE_FILES", 2)
    monkeypatch.setattr(gold_walk, "CACHED_FROM", 1)
    files: list[Path] = []
    for number in (0, 1, 0, 2):  # 0 is used again before 2 is added
        mark(tmp_path, DOCUMENTS[number : number + 1])
        files += set(tmp_path.iterdir()) - set(files)
        time.sleep(0.01)
    assert len(files) == 3 and set(tmp_path.iterdir()) == {files[0], files[2]}


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert mark(tmp_path / "file")[0].choices
    assert "cannot be cached" in caplog.text


def test_a_worker_does_not_import_torch() -> None:
    program = "import sys, spantune.extraction.gold_walk; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
