"""Results survive a kill at any byte: resuming gives the same file as an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import DataError, Document, Entity, Extraction, Problem, ProblemKind, Status, to_document, to_record
from spantune.data import formats
from spantune.extraction import resumable
from spantune.extraction.result import failure

EXTRACTIONS = [
    Extraction(Document("1", '肺炎患者\u2028 "x" \\', (Entity(0, 2, "dis", 0.5),))),
    failure(Document("2", ""), Status.UNREADABLE, Problem(ProblemKind.UNREADABLE, "why")),
    Extraction(Document("3", "", meta={"status": "published"})),
    Extraction(Document("4", "last\nline")),
]
INPUTS = [extraction.document.with_entities(()) for extraction in EXTRACTIONS]
DOCUMENTS = [to_document(extraction) for extraction in EXTRACTIONS]
WHOLE = "".join(json.dumps(to_record(document), ensure_ascii=False) + "\n" for document in DOCUMENTS).encode()


def lost(path: Path) -> Iterator[Extraction]:
    """Yield the extractions and then raise, in place of a kill."""
    yield from EXTRACTIONS[:2]
    assert resumable.partial(path).read_bytes() == b"".join(WHOLE.splitlines(keepends=True)[:2])  # at once, no later
    assert not path.exists()
    raise KeyboardInterrupt


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    resumable.require_free(path)
    with pytest.raises(KeyboardInterrupt):
        resumable.append(path, lost(path))
    with pytest.raises(DataError, match=r"out\.jsonl\.partial: is here from a run that was interrupted.*--resume"):
        resumable.require_free(path)
    rest = iter(INPUTS)
    assert resumable.resume(path, rest) == resumable.Done(2, 1, sum(map(len, WHOLE.splitlines(keepends=True)[:2])))
    assert list(rest) == INPUTS[2:]
    resumable.append(path, iter(EXTRACTIONS[2:]))
    resumable.finish(path)
    assert path.read_bytes() == WHOLE and list(tmp_path.iterdir()) == [path]
    assert formats.read(path).documents == tuple(DOCUMENTS)


def test_nothing_stands_there_before_the_first_document(tmp_path: Path) -> None:
    def fails() -> Iterator[Extraction]:
        assert list(tmp_path.iterdir()) == []
        raise DataError("no model")
        yield

    with pytest.raises(DataError, match="no model"):
        resumable.append(tmp_path / "out.jsonl", fails())
    assert list(tmp_path.iterdir()) == []
    resumable.append(tmp_path / "out.jsonl", [])
    resumable.finish(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(WHOLE)), st.booleans())
def test_a_kill_at_any_byte_loses_and_repeats_nothing(place: int, renamed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        (path if renamed else resumable.partial(path)).write_bytes(WHOLE[:place])
        rest = iter(INPUTS)
        done = resumable.resume(path, rest)
        assert done.documents == WHOLE[:place].count(b"\n") and done.with_problem == (done.documents > 1)
        assert [item.id for item in rest] == [document.id for document in DOCUMENTS[done.documents :]]
        resumable.append(path, EXTRACTIONS[done.documents :])
        resumable.finish(path)
        assert path.read_bytes() == WHOLE and list(Path(folder).iterdir()) == [path]


def test_going_on_where_there_is_nothing_begins(tmp_path: Path) -> None:
    rest = iter(INPUTS)
    assert resumable.resume(tmp_path / "out.jsonl", rest) == resumable.Done()
    assert list(rest) == INPUTS
    with pytest.raises(DataError, match="no folder"):
        resumable.resume(tmp_path / "none" / "out.jsonl", rest)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([INPUTS[0], Document("other", "")], r"partial:2: holds '2' where the inputs have 'other'"),
        ([INPUTS[0], Document("2", "text")], r"partial:2: holds another text where the inputs have '2'"),
        ([INPUTS[0]], r"partial:2: holds '2', but the inputs end after 1 documents"),
    ],
)
def test_other_inputs_are_refused_and_nothing_is_touched(tmp_path: Path, inputs: list[Document], words: str) -> None:
    (tmp_path / "out.jsonl.partial").write_bytes(WHOLE)
    with pytest.raises(DataError, match=words):
        resumable.resume(tmp_path / "out.jsonl", iter(inputs))
    assert (tmp_path / "out.jsonl.partial").read_bytes() == WHOLE
    (tmp_path / "whole.jsonl").write_bytes(WHOLE)
    with pytest.raises(DataError, match=words.replace("partial", "jsonl")):
        resumable.resume(tmp_path / "whole.jsonl", iter(inputs))
    assert (tmp_path / "whole.jsonl").read_bytes() == WHOLE


DAMAGED = [b"\0\0\0\n", b"{}\n", b"[]\n", b"\n", b'{"id": "5", "text": "", "entities": [], "meta": null}\n']


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_said(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "out.jsonl.partial").write_bytes(WHOLE + line + WHOLE)
    with pytest.raises(DataError, match=r"partial:5: not a document"):
        resumable.resume(tmp_path / "out.jsonl", iter([*INPUTS, *INPUTS]))


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    other = (
        "import sys, pathlib, spantune.extraction.resumable as p\nwith p.held(pathlib.Path(sys.argv[1])): print('held')"
    )
    with resumable.held(path):
        done = subprocess.run([sys.executable, "-c", other, str(path)], capture_output=True, text=True, check=False)
        assert "another process is writing it" in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run([sys.executable, "-c", other, str(path)], capture_output=True, check=True).stdout == b"held\n"


def test_a_full_disk_is_said_in_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        resumable.partial(path).symlink_to("/dev/full")
        with pytest.raises(DataError, match=r"out\.jsonl: cannot be written: No space left"):
            resumable.append(path, EXTRACTIONS)
