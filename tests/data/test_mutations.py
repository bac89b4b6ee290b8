"""Damaged files of every format: reading gives documents or a SpantuneError; converting writes everything or nothing.

By default some mutations are tried. `SPANTUNE_MUTATIONS=200 pytest tests/data/test_mutations.py` tries 200 per format.
"""

from __future__ import annotations

import gc
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from spantune.core import Document, Entity, SpantuneError
from spantune.data import Demands, Options, check, formats, read_source

COUNT = int(os.environ.get("SPANTUNE_MUTATIONS", "30"))
SECONDS = 60
"""A limit that reading a few hundred bytes never reaches, even on a slow machine."""

TEXT = "Ann 患带状疱疹，右肩疼痛🙂 in Rome."
DOCUMENTS = [
    Document("a-1", TEXT, (Entity(0, 3, "PER"), Entity(5, 9, "dis"), Entity(10, 14, "sym"), Entity(19, 23, "LOC"))),
    Document("a-2", "无不适。", ()),
    Document("a-3", "Bo left Lyon.", (Entity(0, 2, "PER"), Entity(8, 12, "LOC"))),
]
SUFFIXES = {"cmeee": ".json", "label_studio": ".json", "table": ".csv", "conll": ".conll", "bioc": ".json"}
READ_ONLY = {
    "webanno": (
        "#FORMAT=WebAnno TSV 3.3\n#T_SP=webanno.custom.NE|value\n\n\n#Text=Ann left Rome.\n1-1\t0-3\tAnn\tPER\n"
        "1-2\t4-8\tleft\t_\n1-3\t9-13\tRome\tLOC\n1-4\t13-14\t.\t_\n"
    ),
    "dataturks": '{"content": "Ann left.", "annotation": [{"label": ["PER"], "points": [{"start": 0, "end": 2, '
    '"text": "Ann"}]}], "extras": null}\n',
    "conll": "# newdoc id = a\n# text = Ann left.\n1\tAnn\tB-PER\tO\t_\n2\tleft\tO\tB-ACT\tSpaceAfter=No\n"
    "3\t.\tO\tO\t_\n\n",
    "table": "text,id,label,annotator,annotation_id,lead_time\nAnn left,7,"
    '"[{""start"": 0, ""end"": 3, ""labels"": [""PER""]}]",1,2,3\n',
}
"""Layouts that can be read and not written."""

Mutation = Callable[[bytes, random.Random], bytes]


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def _inserted(content: bytes, rng: random.Random, what: bytes) -> bytes:
    place = _place(content, rng)
    return content[:place] + what + content[place:]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 5))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def encoded(content: bytes, rng: random.Random) -> bytes:
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "gb18030", "cp1252"))
    return content.decode("utf-8").encode(encoding, "replace")


def nested(content: bytes, rng: random.Random) -> bytes:
    opening = rng.choice((b"[", b'{"a":', b"{x|", b"<a>", b'[{"a":[')) * rng.choice((50, 900, 3000))
    if rng.random() < 0.5 and (match := _value(content, rng)):
        closing = opening.replace(b"[", b"]")[::-1] if opening.strip(b"[") == b"" else b""
        return content[: match.start()] + opening + closing + content[match.end() :]
    return _inserted(content, rng, opening)


def relined(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place : place + 1] = rng.choice(([], [lines[place]] * 2, [b""], [lines[place].strip()], [lines[0]]))
    return b"\n".join(lines)


def retyped(content: bytes, rng: random.Random) -> bytes:
    """Replace a string or number by a value of another type, in JSON or in columns."""
    values = (
        b"7",
        b'"7"',
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'[[0, 1, "x"]]',
        b"-1",
        b"1.5",
        b'""',
        b'"\\ud83d"',
        b"NaN",
    )
    if not (match := _value(content, rng)):
        return _inserted(content, rng, rng.choice(values))
    return content[: match.start()] + rng.choice(values) + content[match.end() :]


def with_nul(content: bytes, rng: random.Random) -> bytes:
    return _inserted(
        content, rng, rng.choice((b"\0", b"\0" * 40, b"\x1b[31m", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r"))
    )


def with_huge_number(content: bytes, rng: random.Random) -> bytes:
    numbers = [match for match in re.finditer(rb"\d+", content)]
    number = rng.choice((b"9" * 25, b"9" * 5000, b"1e999", b"-" + b"9" * 30, b"99999999999"))
    if not numbers:
        return _inserted(content, rng, number)
    match = rng.choice(numbers)
    return content[: match.start()] + number + content[match.end() :]


def _value(content: bytes, rng: random.Random) -> re.Match[bytes] | None:
    values = list(re.finditer(rb'"(?:[^"\\]|\\.)*"|-?\b\d+(?:\.\d+)?\b|\[[^\[\]]*\]', content))
    return rng.choice(values) if values else None


MUTATIONS: tuple[Mutation, ...] = (
    truncated, flipped, encoded, nested, relined, retyped, retyped, with_nul, with_huge_number,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """Turn the garbage collector off, because finalisers of other objects fail deep in the recursion of JSON."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@contextmanager
def _no_hang(what: str) -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what} takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _examine(path: Path, name: str, folder: Path, options: Options) -> None:
    """Recognise, read, check and convert `path`; every exception except SpantuneError is a bug."""
    try:
        formats.detect(path, options)
    except SpantuneError as error:
        assert str(error).strip()
    out = folder / "out.jsonl"
    try:
        source = read_source(path, name, options)
        check([source], Demands())
        readable = bool(source.items)
    except SpantuneError:
        readable = False
    try:
        formats.write(out, formats.stream(path, name, Counter(), options))
    except SpantuneError:
        assert not out.exists()
    else:
        count = out.read_bytes().count(b"\n")
        assert readable or count == 0
        if count:
            assert len(list(formats.items(out, "native", Counter()))) == count
        out.unlink()
    assert [left.name for left in folder.iterdir() if left != path] == []


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _originals(name: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield valid files or folders of a format, with the name of the file to mutate ("" for the path itself)."""
    suffix = SUFFIXES.get(name, ".jsonl")
    if name in READ_ONLY:
        path = folder / f"only{suffix}"
        path.write_text(READ_ONLY[name], encoding="utf-8")
        yield path, ""
    if formats.FORMATS[name].write is not None:
        path = folder / ("folder" if formats.FORMATS[name].folder else f"file{suffix}")
        formats.write(path, DOCUMENTS, name, Options(nested="outermost"))
        yield from ((path, inner) for inner in sorted(_files(path))) if path.is_dir() else [(path, "")]


@pytest.mark.no_cover
@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_a_damaged_file_gives_documents_or_a_clear_error(name: str, tmp_path: Path) -> None:
    if name == "datasets":
        pytest.importorskip("datasets")
    originals = list(_originals(name, tmp_path))
    assert originals, f"{name} has no writer: give an example in READ_ONLY"
    for seed in range(COUNT):
        rng = random.Random(f"{name}-{seed}")
        original, inner = originals[seed % len(originals)]
        mutation = MUTATIONS[seed % len(MUTATIONS)]
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        path = folder / original.name
        for file, content in (_files(original) if inner else {"": original.read_bytes()}).items():
            target = path / file if inner else path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(mutation(content, rng) if file == inner else content)
        options = Options(encoding=rng.choice((None, None, None, "gb18030", "latin-1")))
        case = f"{name}, seed {seed}, {mutation.__name__}"
        try:
            with _no_hang(case):
                _examine(path, name, folder, options)
        except (SpantuneError, AssertionError, Exception) as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error


@pytest.mark.no_cover
@pytest.mark.parametrize("content", [b"[" * 1_000_000, b'{"a":' * 200_000, b'[{"text": "a", "x": ' + b"[" * 1_000_000])
@pytest.mark.parametrize("name", ["native", "label_studio", "marked", "conll"])
def test_deep_nesting_is_an_error_and_not_a_hang(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_bytes(content)
    with _no_hang(name):
        _examine(path, name, tmp_path, Options())


@pytest.mark.parametrize("name", ["native", "cmeee", "marked", "chip", "table"])
def test_a_long_line_is_read_whole(name: str, tmp_path: Path) -> None:
    text = TEXT * 10_000
    path = tmp_path / f"long{SUFFIXES.get(name, '.jsonl')}"
    formats.write(path, [Document("a", text, (Entity(5, 9, "dis"),))], name)
    with _no_hang(name):
        assert [(d.text, d.entities) for d in formats.read(path, name).documents] == [(text, (Entity(5, 9, "dis"),))]
