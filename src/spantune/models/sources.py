"""Resolves a model source, as a recipe names it, to a complete local folder.

A source is `bundled:NAME`, `modelscope:OWNER/NAME[@REVISION]`, `hf:OWNER/NAME[@REVISION]` or a folder. The folder has a
configuration, a tokenizer and complete safetensors weights, or it is refused. Downloaded files must match the hashes
that the hub reports; damaged files are downloaded once more. An interrupted download is continued and never taken for
complete. Pickled weights are neither downloaded nor accepted. If a hub cannot be reached, that is reported within
seconds; with SPANTUNE_OFFLINE=1 no hub is contacted.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import math
import os
import re
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from spantune.core import ModelError, file_lock, first_line, nearest, replace_text, to_json
from spantune.models import bundled
from spantune.models.hashes import WANTED, hash_files
from spantune.models.hubs import HUBS, Hub, HubFile

REACH_SECONDS = 8.0  # how long any answer of a hub is waited for, name look-up included
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
UNWANTED = ("consolidated", "adapter_")  # a second copy of the weights in Mistral's models; an adapter beside a model
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE")
PREFIXES = ("bundled", "modelscope", "hf")

log = logging.getLogger(__name__)


def resolve(source: str) -> Path:
    """Return the local folder of a model source, downloaded or converted on first use.

    Raises:
        ModelError: the source is malformed, does not exist, is incomplete or damaged, or its hub cannot be reached.
    """
    prefix, colon, rest = source.partition(":")
    if not colon or Path(source).exists():
        return _check_folder(Path(source).expanduser(), source)
    if prefix == "bundled":
        return _bundled(rest)
    if prefix in HUBS:
        repo, revision = _parse(prefix, rest)
        return _from_hub(prefix, repo, revision)
    raise ModelError(f"model source {source!r}: prefix {prefix!r} is unknown; {nearest(prefix, PREFIXES)}, or a folder")


def pinned(source: str) -> str:
    """Return `source` with the commit that it was last resolved to, so that it means the same files later.

    The source is returned unchanged if it is not on a hub, if it names a revision, or if the hub reports no commit.
    """
    prefix, _, rest = source.partition(":")
    if prefix not in HUBS or _parse(prefix, rest)[1]:
        return source
    record = _read_record(source)
    return f"{source}@{record.commit}" if record and record.commit else source


def public_name(source: str) -> str:
    """Return the name of a model that also has a meaning on other machines; "" for a folder.

    It is OWNER/NAME for a model on a hub, and `bundled:NAME` for a bundled model, whose weights differ from those of
    the original on the hubs.
    """
    prefix, _, rest = source.partition(":")
    if prefix in HUBS:
        return _parse(prefix, rest)[0]
    return source if prefix == "bundled" else ""


def _bundled(name: str) -> Path:
    if bundled.is_available(name):
        return bundled.bundled_folder(name)
    model = bundled.BUNDLED[name]
    log.warning("bundled:%s: %s is not installed (%s); trying %s", name, model.package, model.install, model.hub)
    try:
        return resolve(model.hub)
    except ModelError as error:
        raise ModelError(f"bundled:{name}: install it with {model.install}; instead of it, {error}") from error


def _parse(prefix: str, rest: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", rest)
    if match is None or ".." in rest:
        raise ModelError(
            f"model source '{prefix}:{rest}': expected {prefix}:OWNER/NAME or {prefix}:OWNER/NAME@REVISION"
        )
    return match[1], match[2]


# -- hubs ------------------------------------------------------------------------------------------------------------


def _from_hub(prefix: str, repo: str, revision: str | None) -> Path:
    """List and download the files, verify them, and then record the folder as complete.

    For each source this is done by one process at a time.
    """
    hub, source = HUBS[prefix], f"{prefix}:{repo}" + (f"@{revision}" if revision else "")
    record = _read_record(source)
    if record is not None and record.commit == revision and revision and _is_whole(record, source):
        return record.folder  # the hub is not asked, since the files of a commit never change
    if not _reachable(prefix):
        return _offline(prefix, repo, revision, source)
    listing = hub.list_files(repo, revision)
    wanted = _wanted(listing.files, source)
    lock = _record_path(source).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock, math.inf):
        record = _read_record(source)
        if record is not None and record.files == wanted and _is_whole(record, source):
            return record.folder
        _write_record(source, None)
        folder = _download(hub, repo, revision, wanted, source)
        record = Record(folder, wanted, _times(folder, wanted), listing.commit)
        _write_record(source, record)
    if listing.commit and not revision:
        _write_record(f"{source}@{listing.commit}", record)
    return folder


def _download(hub: Hub, repo: str, revision: str | None, wanted: Sequence[HubFile], source: str) -> Path:
    """Download the files; damaged ones are downloaded once more.

    Raises:
        ModelError: a file is still missing or damaged.
    """
    names = [file.name for file in wanted]
    folder = hub.download(repo, revision, names)
    try:
        _verify(folder, wanted, source)
    except ModelError as error:
        log.warning("%s; fetching it once more", error)
        folder = hub.download(repo, revision, names)
        _verify(folder, wanted, source)
    return _check_folder(folder, source)


def _offline(prefix: str, repo: str, revision: str | None, source: str) -> Path:
    """Return the local copy: a folder that was verified, or a complete one that another tool downloaded.

    Raises:
        ModelError: there is no complete copy.
    """
    record = _read_record(source)
    if record is not None and _is_whole(record, source):
        log.warning("%s: the hub is out of reach; using the verified copy in %s", source, record.folder)
        return record.folder
    if _record_path(source).exists():
        _unreachable(prefix, source, " The copy in its cache is incomplete.")
    try:
        folder = _check_folder(HUBS[prefix].cached(repo, revision), source)
    except ModelError as error:
        _unreachable(prefix, source, "", error)
    log.warning("%s: the hub is out of reach; using %s, whose hashes could not be compared", source, folder)
    return folder


def _unreachable(prefix: str, source: str, remark: str, cause: Exception | None = None) -> NoReturn:
    hosts = " or ".join(HUBS[prefix].endpoints())
    offline = " (SPANTUNE_OFFLINE or HF_HUB_OFFLINE is set)" if HUBS[prefix].offline() else ""
    raise ModelError(
        f"{source}: this machine could not reach {hosts}{offline} and has no whole copy in its cache.{remark} Download "
        "the model on another machine and give its folder as the source, or copy that machine's hub cache here"
    ) from cause


def _reachable(prefix: str) -> bool:
    """Whether the hub answers within REACH_SECONDS, through the proxies of the environment if it sets some."""
    if HUBS[prefix].offline():
        return False
    answered, urls = threading.Event(), HUBS[prefix].endpoints()
    threads = [threading.Thread(target=_knock, args=(url, answered), daemon=True) for url in urls]
    for thread in threads:  # threads are used, since a name look-up has no timeout
        thread.start()
    deadline = time.monotonic() + REACH_SECONDS
    while any(thread.is_alive() for thread in threads) and not answered.is_set() and time.monotonic() < deadline:
        answered.wait(0.05)
    return answered.is_set()


def _knock(url: str, answered: threading.Event) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS):
            answered.set()
    except urllib.error.HTTPError:
        answered.set()  # an HTTP error is an answer too
    except urllib.error.URLError as error:
        if "CERTIFICATE" in str(error.reason):
            answered.set()  # the hub is there; its SDK may have other certificates, and reports its own errors
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.debug("%s: %s", url, error)


def _wanted(files: Sequence[HubFile], source: str) -> tuple[HubFile, ...]:
    """Return the files to download.

    Raises:
        ModelError: the model could not be used, so that it is not downloaded.
    """
    top = [file for file in files if "/" not in file.name]
    _check_names({file.name for file in top}, source)
    wanted = (file for file in top if file.name.endswith(WANTED) and not file.name.startswith(UNWANTED))
    return tuple(sorted(wanted, key=lambda file: file.name))


def _verify(folder: Path, files: Sequence[HubFile], source: str) -> None:
    missing = [file.name for file in files if not (folder / file.name).is_file()]
    if missing:
        raise ModelError(f"{source}: {missing[0]} is missing from {folder}; run again to fetch it")
    wrong = _damaged(folder, files)
    for name in wrong:
        path = folder / name
        for copy in {path.resolve(), path}:  # Hugging Face's cache has a link, and the file that it points to
            copy.unlink(missing_ok=True)
    if wrong:
        damage = "; ".join(wrong.values())
        raise ModelError(f"{source}: damaged download in {folder}: {damage}; removed: run again to fetch anew")


def _damaged(folder: Path, files: Sequence[HubFile]) -> dict[str, str]:
    """Return a sentence on each file whose hash differs from the listed one, by the name of the file."""
    hashes = hash_files(folder, [file.name for file in files if file.sha256], anew=True)
    hashes |= {file.name: _git_oid(folder / file.name) for file in files if file.git_oid and not file.sha256}
    wrong = {}
    for file in files:
        expected, actual = file.sha256 or file.git_oid, hashes.get(file.name)
        if expected and actual and actual != expected:
            wrong[file.name] = f"{file.name} has {actual[:16]}…, the hub reports {expected[:16]}…"
    return wrong


def _git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


# -- what was verified -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """A verified folder: the files and the commit that the hub listed, and when each file was last changed (ns)."""

    folder: Path
    files: tuple[HubFile, ...]
    times: tuple[int, ...]
    commit: str | None = None


def _is_whole(record: Record, source: str) -> bool:
    """Whether every file is as it was when it was verified.

    Size and time of the last change are compared. If a time differs, the hashes are compared, and the times recorded.
    """
    folder, files = record.folder, record.files
    paths = [(folder / file.name, file.size) for file in files]
    if not all(path.is_file() and path.stat().st_size == size for path, size in paths):
        return False
    if record.times != _times(folder, files):
        if _damaged(folder, files):
            return False
        _write_record(source, replace(record, times=_times(folder, files)))
    return True


def _times(folder: Path, files: Sequence[HubFile]) -> tuple[int, ...]:
    return tuple((folder / file.name).stat().st_mtime_ns for file in files)


def _record_path(source: str) -> Path:
    """Return the path of the record of a source; each hub cache, such as that of another user, has its own record."""
    where = "|".join([source, *(os.environ.get(name, "") for name in CACHE_VARIABLES)])
    return bundled.cache_root() / "hub" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"


def _read_record(source: str) -> Record | None:
    try:
        data = json.loads(_record_path(source).read_text("utf-8"))
        files = tuple(HubFile(**file) for file in data["files"])
        return Record(Path(data["folder"]), files, tuple(data["times"]), data["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is no record, or its download has not ended


def _write_record(source: str, record: Record | None) -> None:
    """Record that `source` is complete; with None, record that its download has begun."""
    data: dict[str, object] = {"source": source}
    if record is not None:
        files = [{key: getattr(file, key) for key in HubFile.__slots__} for file in record.files]
        data |= {"folder": str(record.folder), "files": files, "times": record.times, "commit": record.commit}
    path = _record_path(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, to_json(data, indent=1, ascii_only=True))


# -- folders ---------------------------------------------------------------------------------------------------------


def _check_folder(folder: Path, source: str) -> Path:
    """Return `folder` if it holds a complete model in safetensors.

    Raises:
        ModelError: it does not.
    """
    if not folder.exists():
        hint = f"; for the model of that name on a hub write modelscope:{source} or hf:{source}"
        hint = hint if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) else "; give an existing folder"
        raise ModelError(f"model folder {source!r} does not exist{hint}")
    if not folder.is_dir():
        raise ModelError(f"model source {source!r} is a file; give the folder that holds config.json and safetensors")
    _check_names({path.name for path in folder.iterdir()}, source)
    if (folder / "adapter_config.json").exists():  # transformers would load the adapter and the base that it names
        raise ModelError(
            f"{source}: holds a model and an adapter_config.json, so that either could be meant; move the adapter "
            "to a folder of its own"
        )
    for shard in weight_files(folder):
        _check_shard(shard)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: those of its index, and `model.safetensors`.

    If the folder has neither, all its safetensors files are returned.

    Raises:
        ModelError: the index of the shards is damaged.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    single = [whole] if whole.exists() else []
    if not index.exists():
        return single or sorted(folder.glob("*.safetensors"))
    problem = None
    try:
        data = json.loads(index.read_text("utf-8"))
        weight_map = data.get("weight_map") if isinstance(data, dict) else None
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        if not names or any(name != Path(name).name for name in names):
            problem = "expected weight_map, a mapping of weights to names of files beside it"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problem = first_line(error)
    if problem is not None:
        raise ModelError(f"{index}: not an index of shards ({problem}); download the model again")
    return sorted({*single, *(folder / name for name in names)})


def count_weights(folder: Path) -> int:
    """Return the number of weights in the safetensors files of a model folder, by their headers."""
    total = 0
    for shard in weight_files(folder):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _check_names(names: set[str], source: str) -> None:
    if "config.json" not in names:
        hint = "give a model in the format of transformers"
        if "adapter_config.json" in names:
            hint = "this is an adapter: give the model it was trained on"
        raise ModelError(f"{source}: no config.json; {hint}")
    if not any(Path(name).match(pattern) for name in names for pattern in TOKENIZERS):
        raise ModelError(f"{source}: no tokenizer files; expected one of {', '.join(TOKENIZERS)} beside config.json")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        weights = f"only pickles ({', '.join(pickles[:3])}), which can run code" if pickles else "no weights"
        raise ModelError(f"{source}: {weights}; expected safetensors: choose a revision or a conversion that has them")


def _check_shard(shard: Path) -> None:
    """Check that a shard exists and has the length that its header implies.

    Raises:
        ModelError: the shard is missing, damaged, or cut short.
    """
    if not shard.is_file():
        raise ModelError(f"{shard}: this shard of the index is missing; copy or download the model again")
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{shard}: not a safetensors file ({first_line(error)}); download it again") from error
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(
            f"{shard}: {size} bytes, its header expects more or fewer; it was cut short: download it again"
        )
