"""A corpus in object storage is checked and split by Ray's workers with the same result as a local one."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.command import one_line_error
from helpers.s3_server import S3, s3_server
from spantune.core import ConfigError, DataError
from spantune.data import Demands, SplitJob, check, formats, open_source, parts, read_source, size_of, split_file
from spantune.data.engines import HERE, OnRay
from spantune.data.parts import Divided
from spantune.data.raw.document import Options
from spantune.data.raw.stored import LARGEST, SMALLEST, Fetched, StoredFile
from spantune.data.splitting import Rule

Command = Callable[..., Any]
BUCKET, LOCAL = "s3://corpora/", Path("localcorpora")
"""Both names have the same length, so that a report cuts its lines at the same place."""


class RayHere(OnRay):
    """The Ray engine without Ray: tasks and shared values are pickled as for Ray and run in this process."""

    def __init__(self) -> None:
        super().__init__(None, 2)

    def map(self, function: Any, shared: Any, tasks: Any, what: str) -> Iterator[Any]:
        """Apply `function` to the tasks as Ray's workers do."""
        function, shared, tasks = pickle.loads(pickle.dumps((function, shared, tasks)))
        return HERE.map(function, shared, tasks, what)


@pytest.fixture(scope="module")
def storage() -> Iterator[S3]:
    with s3_server("corpora") as server:
        yield server


@pytest.fixture
def corpus(storage: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sentences with repetitions, near-duplicates and a broken line, local and in the bucket; read in small parts."""
    monkeypatch.setattr(parts, "SMALLEST", 4000)
    documents = [replace(one, id=f"d{n}") for n, one in enumerate(formats.read("bundled:clinical-zh-test").documents)]
    documents = documents[:60]
    documents += [replace(one, id=f"again-{one.id}") for one in documents[::9]]
    documents += [replace(one, id=f"near-{one.id}", text=f"{one.text}。又") for one in documents[:60:7]]
    monkeypatch.chdir(tmp_path)
    path = LOCAL / "notes.jsonl"
    LOCAL.mkdir()
    formats.write(path, documents)
    with storage.filesystem.open_output_stream("corpora/notes.jsonl") as stream:
        stream.write(path.read_bytes())
    with storage.filesystem.open_output_stream("corpora/faulty.jsonl") as stream:
        stream.write(faulty(path).read_bytes())
    return path


def faulty(path: Path) -> Path:
    """Return the corpus with a broken line and a repeated id."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[40:40] = ["{broken", lines[3]]
    made = path.with_name("faulty.jsonl")
    made.write_text("\n".join(lines), encoding="utf-8")
    return made


def test_a_report_is_that_of_the_local_file(storage: S3, corpus: Path) -> None:
    engine, local = RayHere(), faulty(corpus)
    source = open_source(storage.url("corpora/faulty.jsonl"), None, Options(), engine)
    assert isinstance(source, Divided) and len(source.parts) > 5
    found, expected = check([source], Demands(), engine=engine), check([read_source(local)], Demands())
    assert found.errors and str(found.as_dict()).replace(BUCKET, f"{LOCAL}/") == str(expected.as_dict())


def test_splits_are_those_of_the_local_file(storage: S3, corpus: Path, tmp_path: Path) -> None:
    rule = Rule({"train": 0.8, "test": 0.2})
    for name, file, engine in (("there", storage.url("corpora/notes.jsonl"), RayHere()), ("here", str(corpus), HERE)):
        (tmp_path / name).mkdir()
        split_file(SplitJob(file, rule), tmp_path / name, engine)
    there, here = (
        {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / name).iterdir()}
        for name in ("there", "here")
    )
    there["split.json"] = there["split.json"].replace("s3://corpora/notes.jsonl", str(corpus))
    assert there == here


def test_a_line_costs_a_small_piece_and_reading_on_few_large_ones() -> None:
    content, sizes = os.urandom(30 << 20), []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(size)
            return super().read(size)

    with io.BufferedReader(Fetched(Counted(content)), LARGEST) as file:
        assert b"".join(iter(lambda: file.read(1 << 20), b"")) == content
        assert len(sizes) < 16 and max(sizes) == LARGEST
        file.seek(20 << 20)
        sizes.clear()
        assert content[20 << 20 :].startswith(file.readline()) and sizes == [SMALLEST]
        assert file.tell() - (20 << 20) == len(content[20 << 20 :].split(b"\n")[0]) + 1


def test_what_cannot_be_read_is_said_in_one_sentence(
    storage: S3, corpus: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(key: str) -> None:
        open_source(storage.url(key), None, Options(), RayHere())

    with pytest.raises(DataError, match=r"s3://corpora/no.jsonl.*there is no such file"):
        opened("corpora/no.jsonl")
    with pytest.raises(DataError, match="there is no bucket nowhere at 127"):
        opened("nowhere/notes.jsonl")
    with storage.filesystem.open_output_stream("corpora/array.json") as stream:
        stream.write(b'[{"text": "x", "entities": []}]')
    with pytest.raises(ConfigError, match=r"s3://corpora/array\.json: --engine ray reads JSON lines"):
        opened("corpora/array.json")
    assert size_of("s3://corpora/notes.jsonl") == 0
    split = command("data", "split", corpus, "--to", "s3://corpora/splits")
    one_line_error(split, "--to names a folder, not a URL")
    outcome = command("data", "check", "s3://corpora/notes.jsonl?scheme=http")
    one_line_error(outcome, "s3://corpora/notes.jsonl: a corpus in object storage is read by", "--engine ray")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match="refuses access; set the credentials"):
        StoredFile(storage.url("corpora/notes.jsonl") + "&region=eu").exists()
