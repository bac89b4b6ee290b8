"""Hugging Face and ModelScope through one interface: addresses, offline setting, listing, download and cache.

Addresses are read from the environment at every call (HF_ENDPOINT, MODELSCOPE_ENDPOINT); SPANTUNE_OFFLINE=1 switches
the network off. The expected errors of an SDK become a ModelError of one sentence.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spantune.core import ModelError, first_line

TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as a hub lists it.

    Attributes:
        name: the path of the file in the repository.
        size: the size in bytes.
        sha256: the SHA-256; None if the hub does not list it.
        git_oid: the git blob id of a file whose SHA-256 is not listed.
    """

    name: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model at a revision; `commit` is a revision whose files never change."""

    files: tuple[HubFile, ...]
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub. `download` and `cached` return the folder of a repository; each function may raise ModelError.

    Attributes:
        endpoints: returns the addresses of the hub.
        offline: returns whether the user has switched the network off.
        list_files: lists the files of a repository at a revision.
        download: downloads the named files of a repository at a revision.
        cached: finds a repository at a revision in the local cache, without the network.
    """

    endpoints: Callable[[], list[str]]
    offline: Callable[[], bool]
    list_files: Callable[[str, str | None], Listing]
    download: Callable[[str, str | None, list[str]], Path]
    cached: Callable[[str, str | None], Path]


def _is_offline(*names: str) -> bool:
    values = (os.environ.get(name, "").upper() for name in ("SPANTUNE_OFFLINE", *names))
    return any(value in {"1", "TRUE", "YES", "ON"} for value in values)


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Show what an SDK prints, such as progress bars, on stderr if that is a terminal, and else not at all.

    Nothing goes to stdout. Errors are raised and messages logged as before.
    """
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
        yield


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def _hf_endpoints() -> list[str]:
    return [(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")]


def _hf_list(repo: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    with _hf_errors(f"hf:{repo}"):
        info = HfApi(endpoint=_hf_endpoints()[0]).model_info(
            repo, revision=revision or "main", files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    files = []
    for entry in info.siblings or []:
        sha256 = entry.lfs.sha256 if entry.lfs else None
        size = entry.lfs.size if entry.lfs else entry.size
        files.append(HubFile(entry.rfilename, size or 0, sha256, None if sha256 else entry.blob_id))
    return Listing(tuple(files), info.sha)


def _hf_download(repo: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _hf_errors(f"hf:{repo}"), _bars_on_terminals_only():
        folder = snapshot_download(
            repo, revision=revision, endpoint=_hf_endpoints()[0], allow_patterns=names, max_workers=4
        )
    return Path(folder)


def _hf_cached(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with _hf_errors(f"hf:{repo}"):
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))


def hf_http_error() -> type[Exception]:
    """Return the error class of the HTTP client of huggingface_hub: that of httpx (1.x) or of httpx2 (2.x)."""
    from huggingface_hub import get_session

    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = client.HTTPError
    return error


@contextlib.contextmanager
def _hf_errors(source: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{source}: gated; accept its terms on its page and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{source}: no such revision; look at the branches and tags on its page") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"{source}: no such model, or a private one; check the name, or set HF_TOKEN") from error
    except (errors.HfHubHTTPError, hf_http_error(), OSError) as error:
        raise ModelError(f"{source}: the download failed ({first_line(error)}); run again to go on with it") from error


# -- ModelScope ------------------------------------------------------------------------------------------------------


def _ms_endpoints() -> list[str]:
    chosen = os.environ.get("MODELSCOPE_ENDPOINT")
    return [chosen.rstrip("/")] if chosen else ["https://www.modelscope.cn", "https://www.modelscope.ai"]


def _ms_endpoint(repo: str) -> str:
    """Return the address that has the model, by the present environment; the SDK reads it at its first call only."""
    from modelscope_hub import HubApi

    addresses = _ms_endpoints()
    return addresses[0] if len(addresses) == 1 else HubApi().resolve_endpoint_for_read(repo)


def _ms_list(repo: str, revision: str | None) -> Listing:
    """List the files of a repository.

    The commit is the last one that changed a file, since the hub only reports the commit of each file.
    """
    from modelscope_hub import HubApi

    with _ms_errors(f"modelscope:{repo}"):
        api = HubApi(endpoint=_ms_endpoint(repo)).legacy  # unlike those of HubApi, its entries have commits
        entries = api.list_repo_files(repo, "model", revision=revision or "master", recursive=False)
    entries = [entry for entry in entries if entry.get("Type") != "tree"]
    files = tuple(HubFile(entry["Path"], int(entry.get("Size") or 0), entry.get("Sha256")) for entry in entries)
    dated = [entry for entry in entries if entry.get("Revision") and entry.get("CommittedDate")]
    last = max(dated, key=lambda entry: int(entry["CommittedDate"]), default=None)
    return Listing(files, str(last["Revision"]) if last else None)


def _ms_download(repo: str, revision: str | None, names: list[str]) -> Path:
    from modelscope import snapshot_download

    with _ms_errors(f"modelscope:{repo}"), _bars_on_terminals_only():
        folder = snapshot_download(repo, revision=revision, allow_patterns=names, endpoint=_ms_endpoint(repo))
    return Path(folder)


def _ms_cached(repo: str, revision: str | None) -> Path:
    from modelscope import snapshot_download

    with _ms_errors(f"modelscope:{repo}"), _bars_on_terminals_only():
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))


@contextlib.contextmanager
def _ms_errors(source: str) -> Iterator[None]:
    from modelscope_hub.errors import AuthenticationError, HubError, NotExistError, PermissionDeniedError

    try:
        yield
    except NotExistError as error:
        raise ModelError(f"{source}: no such model or revision; check the name on its page") from error
    except (AuthenticationError, PermissionDeniedError) as error:
        raise ModelError(f"{source}: private or gated; accept its terms and set MODELSCOPE_API_TOKEN") from error
    except (HubError, OSError) as error:
        raise ModelError(f"{source}: the download failed ({first_line(error)}); run again to go on with it") from error


HUBS: dict[str, Hub] = {
    "modelscope": Hub(_ms_endpoints, _is_offline, _ms_list, _ms_download, _ms_cached),
    "hf": Hub(_hf_endpoints, lambda: _is_offline("HF_HUB_OFFLINE"), _hf_list, _hf_download, _hf_cached),
}
