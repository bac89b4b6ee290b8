"""Corrections by people: which are accepted, how they are stored and read back, and their use as a corpus."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.command import Outcome, last_object
from spantune.core import ConfigError, DataError, Document, Entity, Label, TaskSpec, config
from spantune.data import formats, read_splits
from spantune.serving.corrections import FILE, HALF_LINES, Correction, Corrections, checked

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find entities.")


def correction(text: str, *entities: Entity, id: str = "", **fields: object) -> Correction:
    values = {"model": "demo", "fingerprint": "0123456789ab", "source": "api", **fields}
    return Correction(Document(id, text, entities), **values)  # type: ignore[arg-type]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def test_a_line_says_what_was_corrected_and_what_had_been_predicted(tmp_path: Path) -> None:
    store = Corrections(tmp_path / "new" / "folder")
    store.append([correction("肺炎😀咳嗽", Entity(3, 5, "sym", 0.5), id="a", predicted=(Entity(0, 2, "dis", 0.25),))])
    (line,) = lines(tmp_path / "new" / "folder")
    time = line["meta"].pop("time")  # type: ignore[attr-defined]
    assert time.endswith("Z") and "T" in time
    assert line == {
        "id": "a",
        "text": "肺炎😀咳嗽",
        "entities": [{"start": 3, "end": 5, "label": "sym", "text": "咳嗽"}],  # a person's annotation has no score
        "meta": {
            "model": "demo",
            "fingerprint": "0123456789ab",
            "source": "api",
            "predicted": [{"start": 0, "end": 2, "label": "dis", "text": "肺炎", "score": 0.25}],
        },
    }


def _append_many(folder: Path, writer: int) -> None:
    store = Corrections(folder)
    for number in range(20):
        store.append([correction(f"{writer}-{number} " + "长" * 5000)])


def test_processes_and_threads_write_at_once_and_tear_no_line(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=_append_many, args=(tmp_path, writer)) for writer in (0, 1)
    ]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda writer: _append_many(tmp_path, writer), (2, 3, 4)))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    texts = {str(line["text"]).split()[0] for line in lines(tmp_path)}
    assert texts == {f"{writer}-{number}" for writer in range(5) for number in range(20)}
    assert len(lines(tmp_path)) == 100


@pytest.mark.parametrize("already_open", [False, True])
def test_a_half_written_last_line_is_moved_aside(tmp_path: Path, already_open: bool) -> None:
    store = Corrections(tmp_path)
    store.append([correction("one")])
    whole = (tmp_path / FILE).read_bytes()
    half = '{"id": "two", "text": "肺'.encode()[:-1] + b"x" * 70_000  # longer than the block that is searched at once
    (tmp_path / FILE).write_bytes(whole + half)
    assert b"".join(store.stream()) == whole  # the incomplete line is not streamed
    if not already_open:
        store = Corrections(tmp_path)
        assert (tmp_path / FILE).read_bytes() == whole
    store.append([correction("three")])
    assert [line["text"] for line in lines(tmp_path)] == ["one", "three"]
    assert (tmp_path / HALF_LINES).read_bytes() == half + b"\n"


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    store = Corrections(tmp_path)
    store.append([correction("one")])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes().rstrip(b"\n"))
    store.append([correction("two")])
    assert [line["text"] for line in lines(tmp_path)] == ["one", "two"]
    assert not (tmp_path / HALF_LINES).exists()


def test_a_full_disk_leaves_no_half_line(small_disk: object, tmp_path: Path) -> None:
    folder = small_disk(64 << 10)  # type: ignore[operator]
    store = Corrections(folder)
    store.append([correction("one")])
    with pytest.raises(DataError, match=r"not saved: No space left.*free some space"):
        store.append([correction("x" * 100_000)])
    store.append([correction("two")])
    assert [line["text"] for line in lines(folder)] == ["one", "two"]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--corrections .*file.*; name a folder in which"):
        Corrections(tmp_path / "file")
    (tmp_path / "folder" / FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"--corrections .*Is a directory; name a folder"):
        Corrections(tmp_path / "folder")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("", " \n"), "the text is empty"),
        (Document("", "a\ud800"), "half of a surrogate pair"),
        (Document("\ud800", "a"), "half of a surrogate pair"),
        (Document("", "ab", (Entity(0, 1, "Dis"),)), "'Dis' is not one of the run's; did you mean 'dis'"),
        (Document("", "ab", (Entity(0, 1, "dis"), Entity(0, 1, "dis"))), r"'dis' \[0, 1\) is there twice"),
    ],
)
def test_what_is_no_correction_of_the_task_is_refused(document: Document, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(document, TASK)


def test_overlaps_are_refused_where_the_task_has_none() -> None:
    nested = Document("", "abc", (Entity(0, 2, "dis"), Entity(1, 3, "sym")))
    assert checked(nested, TASK) is nested
    with pytest.raises(DataError, match=r"'sym' \[1, 3\) overlaps the one before it"):
        checked(nested, TASK.model_copy(update={"nested": False}))


def test_reading_takes_the_last_correction_of_a_text_and_none_that_was_withdrawn(tmp_path: Path) -> None:
    store = Corrections(tmp_path)
    store.append([correction("a b", Entity(0, 1, "dis")), correction("other", id="x"), correction("third", id="x")])
    store.append([correction("a b", Entity(2, 3, "sym"))])
    store.append([correction("c d", Entity(0, 1, "dis"), annotation="1 7", id="ls")])
    store.append([correction("c d", Entity(2, 3, "dis"), annotation="1 8", id="ls")])
    deleted = store.find("1 8")
    assert deleted == Document("ls", "c d")
    store.append([correction(deleted.text, id="ls", annotation="1 8", withdrawn=True)])
    assert store.find("1 8") is None and store.find("1 9") is None
    corpus = formats.read(tmp_path / FILE)
    assert corpus.format == "native"
    found = {document.text: document.entities for document in corpus.documents}
    assert found == {
        "a b": (Entity(2, 3, "sym"),),
        "other": (),
        "third": (),
        "c d": (Entity(0, 1, "dis"),),  # it is the annotation of another annotator, and still exists
    }
    assert [document.id for document in corpus.documents if document.text in ("other", "third")] == ["x", "x-2"]
    assert corpus.notes["correction withdrawn"] == 1
    assert corpus.notes["correction replaced by a later one of the same text"] == 1


def test_training_and_merging_take_the_file_as_it_is(
    tmp_path: Path, command: Callable[..., Outcome], corpus: Path
) -> None:
    first = formats.read(corpus / "train.jsonl").documents[20]
    store = Corrections(tmp_path)
    store.append([correction(first.text, id="page-1", predicted=())])
    store.append(
        [correction(first.text, Entity(0, 1, "sym"), id="page-2"), correction("新的一句话", Entity(0, 2, "dis"))]
    )
    done = command("data", "merge", corpus / "train.jsonl", tmp_path / FILE, "--out", tmp_path / "all.jsonl", "--json")
    assert done.code == 0, done.err
    assert last_object(done) == {
        **last_object(done),
        "documents": 25,
        "added": 1,
        "replaced": 1,
        "unchanged": 0,
        "conflicts": 0,
    }
    merged = {document.id: document for document in formats.read(tmp_path / "all.jsonl").documents}
    assert merged[first.id].entities == (Entity(0, 1, "sym"),)
    splits = read_splits(config.Data(train=(str(corpus / "train.jsonl"), str(tmp_path / FILE)), holdout=0.5))
    trained = {document.text: document.entities for document in splits.train}
    assert trained[first.text] == (Entity(0, 1, "sym"),) and trained["新的一句话"] == (Entity(0, 2, "dis"),)
