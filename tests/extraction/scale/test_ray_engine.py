"""Extraction on Ray: each document once, as by one process and in the same parts, whichever process is killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest

from helpers.command import one_line_error
from helpers.completions_server import CompletionsServer, serving
from helpers.run_folders import READING, save_run
from helpers.s3_server import S3, s3_server
from spantune.core import Cluster, Resources, config, resources_of
from spantune.extraction import Server, Task, load_run
from spantune.extraction.scale.parts import Folder
from spantune.extraction.scale.ray_engine import Worker
from spantune.extraction.scale.shards import shards_of, survey
from spantune.extraction.scale.sources import find_sources

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("default")]
Command = Callable[..., Any]
COUNT = 240


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that reads spans, a corpus, and what one process extracts from it."""
    from spantune.extraction.inputs import Texts
    from spantune.extraction.resumable import json_line

    folder = tmp_path_factory.mktemp("ray")
    save_run(folder / "run", tiny_folder, READING)
    rows = [{"id": f"d{number}", "text": f"疹{number}肺炎患者咳嗽"} for number in range(COUNT)]
    rows[5]["text"] *= 100_000  # too long, so it is refused
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[3] = "{broken"
    (folder / "in.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    texts = Texts.open([str(folder / "in.jsonl")], "native").read(Counter())
    stream = load_run(folder / "run", "cpu", config.Extract(max_new_tokens=40)).stream(texts, strict=False)
    (folder / "expected.jsonl").write_bytes(b"".join(map(json_line, stream)))
    return folder


@pytest.fixture(scope="module")
def storage() -> Iterator[S3]:
    """A local object storage; its credentials are in the environment."""
    with s3_server("corpora") as server:
        yield server


@pytest.fixture(scope="module")
def ray_here(storage: S3) -> Iterator[None]:
    """Ray on this machine for all tests that run the command in this process; its workers inherit the credentials."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # At their usual, low priority the workers would get no time while other tests run.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray reads this spelling
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all parts in order, without the last digits of scores, which depend on the batch."""
    return rows_of(*sorted(folder.glob("part-*.jsonl")))


def rows_of(*files: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for entity in row["entities"]:
            entity["score"] = round(entity["score"], 4)
    return rows


def arguments(place: Path, out: Path, *more: object) -> list[object]:
    ray = ("--engine", "ray", "--device", "cpu", "--workers", 2, "--out", out)
    return ["extract", place / "run", place / "in.jsonl", *ray, *more]


def test_the_parts_are_what_one_process_extracts(place: Path, ray_here: None, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = command(*arguments(place, out))
    assert outcome.code == 1 and outcome.out == "", outcome.err  # two documents have problems
    assert results(out) == rows_of(place / "expected.jsonl")
    assert any(row["entities"] for row in results(out)) and "2 of 240 answers had a problem" in outcome.err
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_plan.json", *(f"part-{number:06d}.jsonl" for number in range(15))]
    # The same command is refused; with --resume it extracts only the missing parts.
    one_line_error(command(*arguments(place, out)), "holds an extraction already", "--resume")
    before = (out / names[3]).read_bytes()
    (out / names[3]).unlink()
    (out / ".writing-0-part-000002.jsonl").write_text("torn")
    again = command(*arguments(place, out, "--resume"))
    assert "224 documents were done" in again.err and "1 part" in again.err
    assert (out / names[3]).read_bytes() == before and not list(out.glob(".writing*"))
    refused = command(*arguments(place, out, "--resume", "--min-score", 0.5))
    one_line_error(refused, "was begun with calibration")
    refused = command(*arguments(place, out, "--resume"), place / "expected.jsonl")
    one_line_error(refused, "expected.jsonl: is not among the files")


def test_parquet_in_an_object_storage_says_the_same(place: Path, storage: S3, ray_here: None, command: Command) -> None:
    table = pyarrow.table({"id": ["a", "b"], "text": ["疹肺炎患者咳嗽", None]})
    pyarrow.parquet.write_table(table, "corpora/in.parquet", filesystem=storage.filesystem)
    url, out = storage.url("corpora/in.parquet"), storage.url("corpora/out")
    call = ["extract", place / "run", url, "--engine", "ray", "--device", "cpu", "--workers", 1, "--to", "parquet"]
    outcome = command(*call, "--out", out)
    assert outcome.code == 1, outcome.err
    assert storage.names("corpora/out") == ["_plan.json", "part-000000.parquet"]
    again = command(*call, "--out", out, "--resume")
    assert again.code == 0 and "2 documents were done" in again.err, again.err
    parts = pyarrow.parquet.read_table("corpora/out/part-000000.parquet", filesystem=storage.filesystem)
    first, second = parts.to_pylist()
    assert first["id"] == "a" and first["status"] == "stopped" and first["entities"]
    assert all(first["text"][e["start"] : e["end"]] == e["text"] for e in first["entities"])
    assert second["status"] == "unreadable" and second["problems"][0]["kind"] == "unreadable"


def test_a_worker_may_ask_a_server_instead_of_holding_the_model(trained: Any, tmp_path: Path) -> None:
    settings = config.Extract(max_new_tokens=40)
    extractor = load_run(trained.folder, "cpu", settings)
    texts = ["疹", "瘤", "痰", "疹疹", "痛", "咳"]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    (shard,) = shards_of(sources := find_sources([str(tmp_path / "in.txt")]), [survey(sources[0], False).marks], 100)
    with serving(CompletionsServer(extractor.model, extractor.encoder.tokenizer)) as server:
        task = Task(trained.folder, (), settings, device="cpu", server=Server(server.url, concurrency=6))
        worker = Worker(task.for_workers(3), folder := Folder(str(tmp_path / "out"), "native"), False, 1)
        outcome = pickle.loads(worker({"part": [pickle.dumps(shard)]})["outcome"][0])
        assert outcome.error is None and outcome.documents == 6 and server.most_at_once <= 2
        assert len(server.requests) == 6 and all("structured_outputs" in request for request in server.requests)
    expected = [extraction.document.entities for extraction in extractor.stream(texts)]
    assert any(expected)
    rows = rows_of(tmp_path / "out" / folder.part(0))
    assert [[(e["start"], e["end"], e["label"]) for e in row["entities"]] for row in rows] == [
        [(e.start, e.end, e.label) for e in entities] for entities in expected
    ]
    # If the server is gone, the extraction ends; and the terms with a server differ from those without one.
    worker = Worker(task, Folder(str(tmp_path / "none"), "native"), False, 1)
    assert server.url in pickle.loads(worker({"part": [pickle.dumps(shard)]})["outcome"][0]).error
    assert replace(task, server=None).terms()["server"] is None != task.terms()["server"]


def test_what_cannot_be_is_one_line(place: Path, storage: S3, ray_here: None, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one_line_error(command(*arguments(place, out, "--workers", 3)), "3 workers need a CPU core each")
    one_line_error(command(*arguments(place, out, "--gpus-per-worker", 1)), "need 2, and Ray sees 0")
    asking = [
        "extract",
        place / "run",
        place / "in.jsonl",
        "--engine",
        "ray",
        "--out",
        out,
        "--url",
        "http://[::1]:9/v1",
    ]
    one_line_error(command(*asking), "the run reads spans")
    one_line_error(command(*asking, "--gpus-per-worker", 1), "with --url they hold none")
    one_line_error(command(*arguments(place, out, "--to", "brat")), "native or parquet")
    one_line_error(command(*arguments(place, out, "--html", "x.html")), "--html is not of --engine ray")
    double = tmp_path / "double.jsonl"
    double.write_text('{"id": "a", "text": "疹"}\n' * 2)
    call = ["extract", place / "run", double, "--engine", "ray", "--device", "cpu", "--out", out]
    one_line_error(command(*call), "double.jsonl:2", "the id 'a' is repeated")
    out.mkdir()
    (out / "mine").touch()
    one_line_error(command(*call), "is not empty: it holds mine")
    one_line_error(command(*call[:5], "--device", "cpu"), "give --out FOLDER")
    to_storage = [*call[:-1], storage.url("nowhere/out")]
    one_line_error(command(*to_storage), "s3://nowhere/out: there is no bucket nowhere at 127.0.0.1")
    one_line_error(command("extract", place / "run", double, "--workers", 2), "give --engine ray too")


def test_an_address_that_does_not_answer_is_one_line() -> None:
    from spantune.core import ConfigError
    from spantune.core.cluster import _require_answer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address, match in ((f"127.0.0.1:{port}", "no Ray cluster answers"), ("nowhere", "expected HOST:PORT")):
        with pytest.raises(ConfigError, match=match):
            _require_answer(address)


@pytest.mark.parametrize(
    ("there", "cluster", "expected"),
    [
        ({"CPU": 2}, Cluster(), (1, 2, 0)),  # the cores are used as threads of one worker
        ({"CPU": 10}, Cluster(), (3, 3, 0)),
        ({"CPU": 10}, Cluster("auto"), (10, 1, 0)),
        ({"CPU": 32, "GPU": 4}, Cluster(), (4, 1, 1)),
        ({"CPU": 32, "GPU": 4}, Cluster(gpus_per_worker=0.5), (8, 1, 0.5)),
    ],
)
def test_workers_that_nobody_counted(
    there: dict[str, float], cluster: Cluster, expected: tuple[int, int, float]
) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: there)
    assert resources_of(ray, cluster, "auto") == Resources(*expected)


def test_without_ray_the_extra_is_named(
    place: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    known = util.find_spec
    monkeypatch.setattr("spantune.core.extras.find_spec", lambda name: None if name == "ray" else known(name))
    one_line_error(command(*arguments(place, tmp_path / "out")), "--engine ray needs ray", "ray]'")


@pytest.mark.peers
def test_killed_workers_and_drivers_lose_and_repeat_nothing(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = [sys.executable, "-m", "spantune", *map(str, arguments(place, out, "--workers", 1))]
    first = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("part-*"))) > 1)
    first.kill()
    first.wait()
    second = subprocess.Popen([*call, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = kill_a_worker(second)
    _, said = second.communicate(timeout=120)
    assert killed and second.returncode in (0, 1), said  # 1: a document of this call has a problem
    assert results(out) == rows_of(place / "expected.jsonl") and not list(out.glob(".writing*"))


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_a_worker(driver: subprocess.Popen[str]) -> bool:
    """Kill an actor that Ray started for `driver`, as soon as there is one; return False if the driver ended before."""
    while driver.poll() is None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
                if b"ray::MapWorker" in title and session_of(int(process.name)) == session_of(driver.pid):
                    os.kill(int(process.name), signal.SIGKILL)
                    return True
            except OSError:
                continue
        time.sleep(0.02)
    return False


def session_of(pid: int) -> str:
    """Return the test's variable in the environment of a process; child processes inherit it."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.decode() for v in variables if v.startswith(b"PYTEST_CURRENT_TEST=")), "")
