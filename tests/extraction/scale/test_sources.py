"""Object storage is read and written like a folder, and its errors are one sentence."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from helpers.s3_server import S3, s3_server
from spantune.core import DataError, Document, Extraction, Status, as_extraction
from spantune.extraction.scale.parts import PLAN, Folder, Plan
from spantune.extraction.scale.shards import read, shards_of, survey
from spantune.extraction.scale.sources import Source, find_sources

LINES = "".join(f'{{"id": "d{number}", "text": "疹{number}"}}\n' for number in range(40))


@pytest.fixture(scope="module")
def storage() -> Iterator[S3]:
    with s3_server("notes") as server:
        for key, content in {"a.jsonl": LINES, "b.txt": "瘤\n\n痰\n", "_c.jsonl": LINES, "d.md": "x"}.items():
            with server.filesystem.open_output_stream(f"notes/in/{key}") as stream:
                stream.write(content.encode())
        yield server


def documents_of(sources: list[Source]) -> list[tuple[str, str]]:
    """Return the ids and texts of all parts; each part is read separately."""
    shards = shards_of(sources, [survey(source, len(sources) > 1).marks for source in sources], 16)
    assert len(shards) > len(sources)
    parts = [read(shard, Counter(), several=len(sources) > 1) for shard in shards]
    documents = [as_extraction(document).document for part in parts for document in part]
    return [(document.id, document.text) for document in documents]


def test_files_of_a_bucket_are_found_and_read_by_parts(storage: S3) -> None:
    expected = [(f"d{number}", f"疹{number}") for number in range(40)]
    assert documents_of(find_sources([storage.url("notes/in/a.jsonl")])) == expected
    assert documents_of(find_sources([storage.url("notes/in/*.jsonl")]))[:40] == expected
    found = find_sources([storage.url("notes/in")])
    assert [source.name for source in found] == ["s3://notes/in/a.jsonl", "s3://notes/in/b.txt"]
    lines = [("s3://notes/in/b.txt:1", "瘤"), ("s3://notes/in/b.txt:3", "痰")]
    assert documents_of(found) == [*expected, *lines]


def test_parts_are_written_into_a_bucket_as_a_whole(storage: S3) -> None:
    folder = Folder(storage.url("notes/out"), "native")
    assert folder.begin(resume=False) is None
    (source,) = find_sources([storage.url("notes/in/b.txt")])
    plan = Plan({"to": "native"}, (source,), tuple(shards_of([source], [survey(source, False).marks], 16)))
    folder.save(plan)
    assert folder.begin(resume=True) == plan
    folder.write(0, [Extraction(Document("1", "瘤"), "", Status.STOPPED, ())])

    def failing() -> Iterator[Extraction]:
        yield Extraction(Document("2", "痰"), "", Status.STOPPED, ())
        raise OSError("the network is gone")

    with pytest.raises(DataError, match=r"s3://notes/out/part-000001.jsonl: cannot be written: the network is gone"):
        folder.write(1, failing())
    with storage.filesystem.open_output_stream("notes/out/.writing-0-part-000001.jsonl") as stream:
        stream.write(b"torn")
    folder.clean()
    assert folder.done() == {PLAN, "part-000000.jsonl"} == set(storage.names("notes/out"))


def test_a_bucket_that_is_not_there_is_named(storage: S3) -> None:
    for inputs in ("nowhere", "nowhere/a.jsonl", "nowhere/*.jsonl"):
        with pytest.raises(DataError, match=rf"s3://{inputs.replace('*', '.')}: there is no bucket nowhere at 127"):
            find_sources([storage.url(inputs)])
    with pytest.raises(DataError, match="there is no bucket nowhere"):
        Folder(storage.url("nowhere/out"), "native").begin(resume=False)
    with pytest.raises(DataError, match="there is no file to extract from"):
        find_sources([storage.url("notes/none.jsonl")])


def test_missing_credentials_are_named(storage: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    denied = r"refuses access; set the credentials .* AWS_ACCESS_KEY_ID \(which is not set\) and AWS_SECRET_ACCESS_KEY"
    with pytest.raises(DataError, match=denied):
        find_sources([storage.url("notes/in/a.jsonl")])
    with pytest.raises(DataError, match=denied):
        Folder(storage.url("notes/out"), "native").begin(resume=False)


def test_a_storage_that_does_not_answer_is_named(storage: S3) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = S3(free.getsockname()[1], None).url("notes/in")
        with pytest.raises(DataError, match=r"no storage answers at 127.0.0.1:\d+ \(curlCode: 7.*check the address"):
            find_sources([closed])
    with pytest.raises(DataError, match=r"Unexpected query parameter.*check what stands after \? in the URL"):
        find_sources(["s3://notes/in?endpoint=127.0.0.1"])
