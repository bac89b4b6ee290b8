"""A corpus that is processed in parts gives the same findings and files as one process with all of it in memory."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.command import one_line_error
from spantune.core import ConfigError, DataError, Document, Entity, RunError
from spantune.data import Demands, SplitJob, check, formats, read_source, split_file
from spantune.data.calls import check_files
from spantune.data.engines import HERE, Engine, Here, on_ray, processes, workers_for
from spantune.data.parts import Divided, divide
from spantune.data.raw.document import Options
from spantune.data.raw.stretches import count_lines, divided, is_divisible, line_starts
from spantune.data.raw.text_files import Stretch, try_lines
from spantune.data.splitting import Fewer, Rule

Command = Callable[..., Any]
SIZE = 3000
"""Bytes of a part; small, so that these corpora have dozens of parts."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real sentences with repetitions, near-duplicates, groups and different annotations, and blank lines."""
    documents = list(formats.read("bundled:clinical-zh-train").documents[:90])
    documents += formats.read("bundled:biomedical-en-train").documents[:50]
    documents = [
        replace(one, id=f"d{number}", meta={"group": f"g{number % 90}"}) for number, one in enumerate(documents)
    ]
    documents += [replace(one, id=f"again-{one.id}", meta={}) for one in documents[5:90:9]]
    documents += [Document(f"near-{one.id}", one.text + "。又", one.entities) for one in documents[3:140:7]]
    documents += [Document(f"bare-{one.id}", one.text, one.entities[:1]) for one in documents[4:140:9]]
    documents += [Document(f"sign-{one.id}", f"{one.text}！", one.entities[1:]) for one in documents[0:140:9]]
    cut = [replace(one, start=one.start + 1) for one in documents[8].entities if one.end - one.start > 2]
    documents += [Document("cut", f"又{documents[8].text[::2]}又{documents[8].text}", ())]
    documents += [Document("cut-2", documents[8].text + "又" * 40, tuple(cut))]
    documents += [Document("e\u0301", "cafe\u0301 caf\u00e9 \u200b", ()), Document("blank", " ", ())]
    path = tmp_path_factory.mktemp("parts") / "corpus.jsonl"
    formats.write(path, documents)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines[:40]) + b"\n\n \n" + b"\n".join(lines[40:]))
    return path


@pytest.fixture(scope="module")
def faulty(corpus: Path) -> Path:
    """The corpus with faults that a check finds: broken lines, repeated ids, wrong kinds of offsets, unknown labels."""
    records = [json.loads(line) for line in corpus.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for record in records[::7]:
        for entity in record["entities"]:
            entity["end"] += 1
    for record in records[3::30]:
        record["entities"] += [{"start": 0, "end": 900, "label": "sym"}, {"start": 0, "end": 2, "label": "Sym"}]
    records[150]["id"] = records[20]["id"]
    records[151]["id"] = records[1]["id"]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    lines[30:30] = ["{broken", '{"text": "\\ud800", "entities": []}']
    lines[160:160] = ["[]", '{"text": "x"}']
    path = corpus.with_name("faulty.jsonl")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shifted(corpus: Path) -> Path:
    """The corpus with offsets that count from 1."""
    records = [json.loads(line) for line in corpus.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for record in records:
        for entity in record["entities"]:
            entity["start"], entity["end"] = entity["start"] + 1, entity["end"] + 1
    path = corpus.with_name("shifted.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def in_parts(path: Path, engine: Engine = HERE, options: Options | None = None, size: int = SIZE) -> Divided:
    return divide(path, formats.detect(path), options or Options(), engine, size)


LINES = st.lists(st.sampled_from([b"", b" ", b"x", b"\xe7\x97\x9b", b"long line" * 9, b"\r", b"\xff"]), max_size=12)


@given(LINES, st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_stretches_have_each_line_once_with_its_number(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size: int, is_ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(b"\n".join([b"\xef\xbb\xbffirst", *lines]) + b"\n" * is_ended)
    whole = [(number, str(text)) for number, text in try_lines(path, Counter(), blank=True)]
    found, line = [], 1
    for part in divided(path, size):
        stretch = Stretch(part.begin, part.end, line)
        read = list(try_lines(path, Counter(), blank=True, stretch=stretch))
        found += [(number, str(text)) for number, text in read]
        starts = line_starts(path, stretch)
        assert [starts[number - line] for number, _ in read] == starts[: len(read)]
        assert all(start == 0 or path.read_bytes()[start - 1 : start] == b"\n" for start in starts[: len(read)])
        line += count_lines(None, part)
    assert found == whole


def test_what_is_found_is_what_is_found_in_memory(corpus: Path, faulty: Path, shifted: Path) -> None:
    names: set[str] = set()
    for paths in ([faulty], [shifted], [corpus, faulty]):
        demands = Demands(("dis", "sym"), 50, lambda texts: [len(text) for text in texts])
        expected = check([read_source(path) for path in paths], demands)
        sources = [in_parts(path) for path in paths]
        assert min(len(source.parts) for source in sources) > 20
        assert check(sources, demands) == expected
        names |= {finding.name for finding in expected.findings}
        assert any("1-based" in finding.message for finding in expected.findings) == (paths == [shifted])
    assert {
        "unreadable",
        "lone-surrogate",
        "repeated-id",
        "end-mismatch",
        "out-of-range",
        "conflicting-shared-text",
        "boundary-inconsistency",
        "conflicting-near-duplicate",
        "label-spelling",
        "mixed-normalisation",
        "conflicting-duplicate",
        "shared-near-duplicate",
        "too-long",
        "crlf",
        "byte-order-mark",
    } <= names


def test_labels_of_one_file_only_are_named_in_the_order_of_its_documents(tmp_path: Path) -> None:
    ids = [f"{number:02}" for number in range(40)]
    both = Document("both", "肺炎", (Entity(0, 2, "dis"),))
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    formats.write(paths[0], [replace(both, id=number) for number in ids])
    formats.write(paths[1], [both, *(Document(number, f"{number} 肺炎", (Entity(0, 2, number),)) for number in ids)])
    expected = check([read_source(path) for path in paths], Demands())
    found = check([in_parts(path, size=300) for path in paths], Demands())
    (finding,) = [one for one in found.findings if one.name == "label-in-one-file"]
    assert found == expected and finding.example.startswith("00:")


def test_a_part_is_read_with_what_the_file_was_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "astral.jsonl"
    rows = [{"text": f"😀痛{number}", "entities": [{"start": 2, "end": 3, "label": "sym"}]} for number in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = Options(offsets="utf16")
    expected = check([read_source(path, None, options)], Demands())
    assert check([in_parts(path, options=options, size=200)], Demands()) == expected
    assert "'痛' (sym) [1, 2)" in str(expected.findings)


SPLITS = [{"shares": {"train": 0.8, "dev": 0.1, "test": 0.1}}, {"by": "group", "threshold": 0.6, "seed": 3}]


@pytest.mark.parametrize(("rule", "written"), zip(SPLITS, ["native", "few_shot"], strict=True))
def test_splits_are_those_made_in_memory(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], written: str
) -> None:
    job = SplitJob(str(corpus), Rule(**{"shares": {"a": 0.5, "b": 0.5}} | rule), write_format=written)
    expected = split_file(job, tmp_path / "memory", HERE)
    small_parts(monkeypatch)
    found = split_file(job, tmp_path / "parts", HERE)
    assert found == expected and found.has_groups
    assert len(list(found.record["near_duplicates"])) > 15  # type: ignore[call-overload]
    assert files(tmp_path / "parts") == files(tmp_path / "memory")


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as large and divide it into many parts."""
    monkeypatch.setattr("spantune.data.parts.LARGE", 0)
    monkeypatch.setattr("spantune.data.parts.SMALLEST", SIZE)
    monkeypatch.setattr("spantune.data.parts.PART", SIZE)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({150: {"id": "d5"}}, r"corpus\.jsonl:151, field id: the id 'd5' is repeated; line 6 has it too"),
        ({150: {"id": "d5"}, 151: {"text": ""}}, "the id 'd5' is repeated"),
        ({149: {"text": 5}, 150: {"id": "d5"}}, r"corpus\.jsonl:150, field text: found"),
        ({100: {"entities": [{"start": 0, "end": 900, "label": "x"}]}}, r"corpus\.jsonl:101, field entities\[0\]\.end"),
    ],
)
def test_the_first_error_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[int, dict[str, object]], match: str
) -> None:
    rows: list[dict[str, object]] = [
        {"id": f"d{number}", "text": f"痛{number}", "entities": []} for number in range(300)
    ]
    for number, change in changes.items():
        rows[number] |= change
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = SplitJob(str(path), Rule({"a": 0.5, "b": 0.5}))
    with pytest.raises(DataError, match=match) as in_memory:
        split_file(job, tmp_path / "out", HERE)
    small_parts(monkeypatch)
    with pytest.raises(DataError) as raised:
        split_file(job, tmp_path / "out", HERE)
    assert str(raised.value) == str(in_memory.value) and not (tmp_path / "out").exists()


def test_a_file_of_corrections_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {"model": "m", "fingerprint": "f", "time": "t", "source": "s"}
    rows = [{"id": f"d{number}", "text": f"痛{number}", "entities": []} for number in range(200)]
    rows += [{"id": "c", "text": "咳", "entities": [], "meta": meta | {"time": str(n)}} for n in range(2)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    expected = check_files(path)
    assert expected.documents == 201
    with pytest.raises(DataError, match=r"corpus\.jsonl:201: holds corrections"):
        list(in_parts(path).parts[-1].read(Counter()))
    small_parts(monkeypatch)
    assert check_files(path) == expected
    done = split_file(SplitJob(str(path), Rule({"a": 0.5, "b": 0.5})), tmp_path / "out", HERE)
    assert sum(done.record["documents"].values()) == 201  # type: ignore[attr-defined]


def test_what_cannot_be_read_in_parts_is_not(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [json.loads(line) for line in corpus.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    array, wide = tmp_path / "array.json", tmp_path / "wide.jsonl"
    array.write_text(json.dumps(records), encoding="utf-8")
    wide.write_bytes(corpus.read_text(encoding="utf-8-sig").encode("utf-16"))
    small_parts(monkeypatch)
    assert not is_divisible(wide, None) and is_divisible(corpus, None) and not is_divisible(corpus, "gb18030")
    for path in (array, wide):
        assert check_files(path).documents == len(records)
    fewer = SplitJob(str(corpus), Rule({"a": 0.5, "b": 0.5}), fewer=Fewer(sample=9))
    assert split_file(fewer, tmp_path / "out", HERE).record["documents"]["a"] == 9  # type: ignore[index]


class Cutting(Here):
    """An engine that removes the last line of a file before the work named `what` begins."""

    def __init__(self, path: Path, what: str):
        self._path, self._what = path, what

    def map(self, function: Any, shared: Any, tasks: Any, what: str) -> Any:
        if what == self._what:
            self._path.write_bytes(self._path.read_bytes()[:-1].rpartition(b"\n")[0])
        return super().map(function, shared, tasks, what)


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [document.text for document in formats.read("bundled:clinical-zh-train").documents[:9]]
    lines = [json.dumps({"text": text, "entities": []}) for text in [*texts, f"{texts[8]}甲", f"{texts[8]}乙"]]
    path = tmp_path / "corpus.jsonl"
    small_parts(monkeypatch)
    for what, match in (
        ("compare texts", r"jsonl:11: has changed since it was read first"),
        ("write", "jsonl: has changed"),
    ):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        engine = Cutting(path, what)
        with pytest.raises(DataError, match=match):
            if what == "write":
                split_file(SplitJob(str(path), Rule({"a": 0.5, "b": 0.5})), tmp_path / "out", engine)
            else:
                check([in_parts(path)], Demands(), engine=engine)
    assert not (tmp_path / "out").exists()


def test_a_large_corpus_gets_the_cores_and_a_small_one_does_not() -> None:
    cores = len(os.sched_getaffinity(0))
    assert (workers_for(1 << 20, None), workers_for(1 << 30, None), workers_for(1 << 20, 3)) == (1, cores, 3)


def killed(_: None, number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


@pytest.mark.no_cover
def test_processes_do_the_same(corpus: Path, faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check([read_source(faulty)], Demands())
    job = SplitJob(str(corpus), Rule({"train": 0.5, "dev": 0.5}))
    split_file(job, tmp_path / "memory", HERE)
    small_parts(monkeypatch)
    with processes(2) as engine:
        assert check([in_parts(faulty, engine)], Demands(), engine=engine) == expected
        split_file(job, tmp_path / "parts", engine)
        with pytest.raises(DataError, match="there is no such file"):
            list(
                engine.map(
                    count_lines,
                    None,
                    [stretch._replace(path=tmp_path / "no") for stretch in divided(corpus, SIZE)],
                    "x",
                )
            )
        with pytest.raises(RunError, match="was ended from outside"):
            list(engine.map(killed, None, range(4), "x"))
    assert files(tmp_path / "parts") == files(tmp_path / "memory")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Engine]:
    pytest.importorskip("ray", reason="Ray is not installed")
    with on_ray(None, 2) as engine:
        yield engine


@pytest.mark.peers
@pytest.mark.no_cover
@pytest.mark.filterwarnings("default")
def test_ray_does_the_same(
    corpus: Path, faulty: Path, tmp_path: Path, ray_here: Engine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = check([read_source(faulty)], Demands())
    assert check([in_parts(faulty, ray_here)], Demands(), engine=ray_here) == expected
    ray = ("--engine", "ray", "--workers", 2)
    outcome = command("data", "split", corpus, "--to", tmp_path / "ray", *ray)
    assert outcome.code == 0, outcome.err
    assert command("data", "split", corpus, "--to", tmp_path / "memory").code == 0
    assert files(tmp_path / "ray") == files(tmp_path / "memory")
    monkeypatch.chdir(corpus.parent)
    here, there = (
        command("data", "check", "faulty.jsonl", "--json"),
        command("data", "check", "faulty.jsonl", "--json", *ray),
    )
    assert here.out == there.out and here.code == there.code == 1
    array = tmp_path / "array.json"
    array.write_text('[{"text": "x", "entities": []}]')
    one_line_error(command("data", "check", array, *ray), "array.json: --engine ray reads JSON lines")


def test_options_of_ray_are_refused_where_they_do_not_fit(corpus: Path, tmp_path: Path, command: Command) -> None:
    one_line_error(command("data", "check", corpus, "--address", "auto"), "--address is of Ray; give --engine ray too")
    fix = command("data", "check", corpus, "--engine", "ray", "--fix", tmp_path / "out.jsonl")
    one_line_error(fix, "--fix is not of --engine ray")


def test_without_ray_the_extra_is_named(corpus: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr("spantune.core.extras.import_module", missing)
    outcome = command("data", "check", corpus, "--engine", "ray")
    one_line_error(outcome, "--engine ray needs ray", "ray]'")


def test_ray_refuses_what_needs_the_whole_corpus(corpus: Path, tmp_path: Path) -> None:
    from spantune.data.engines import OnRay

    engine = OnRay(None, 1)  # the engine is never used
    rule = Rule({"a": 0.5, "b": 0.5})
    with pytest.raises(ConfigError, match="--k-shot and --sample are not of --engine ray"):
        split_file(SplitJob(str(corpus), rule, fewer=Fewer(k_shot=1)), tmp_path / "out", engine)
    with pytest.raises(
        ConfigError, match="--write-format conll: a split that is written in parts is one of native, few"
    ):
        split_file(SplitJob(str(corpus), rule, write_format="conll"), tmp_path / "out", engine)
    table = tmp_path / "array.json"
    table.write_text(json.dumps([{"text": "痛", "entities": [{"start": 0, "end": 1, "label": "x", "text": "痛"}]}]))
    with pytest.raises(ConfigError, match=r"array\.json: --engine ray reads JSON lines in UTF-8 of the formats native"):
        split_file(SplitJob(str(table), rule), tmp_path / "out", engine)
