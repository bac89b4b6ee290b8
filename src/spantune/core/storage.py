"""Files in object storage, named by a URL such as `s3://bucket/file`, and local files, both opened by pyarrow."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

from spantune.core.errors import ConfigError, DataError
from spantune.core.extras import need
from spantune.core.files import first_line

Result = TypeVar("Result")
BUCKETS = ("s3", "gs", "gcs")
"""The URL schemes of object storages. After the scheme, their URLs name a bucket."""
PATIENCE = 60.0
"""The maximum time, in seconds, in which an object storage must answer one call."""
_DENIED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]|PERMISSION_DENIED", re.I
)
_NO_ANSWER = re.compile("NETWORK_CONNECTION|curlCode")


@dataclass(frozen=True)
class Place:
    """A file or folder in a filesystem of pyarrow. Use `Place.of` to construct it.

    Args:
        outer: its local path or URL, as the user gave it.
        filesystem: the filesystem of pyarrow.
        inner: its path in this filesystem.
    """

    outer: str
    filesystem: Any  # pyarrow has no types
    inner: str

    @classmethod
    def of(cls, path: str) -> Place:
        """Return the place of a local path or a URL.

        Raises:
            ConfigError: pyarrow is not installed, or the URL has a credential in it.
            DataError: the URL is wrong, or the storage does not answer.
        """
        fs = need("pyarrow.fs", "ray", "reading and writing on several machines")
        if not is_url(path):
            return cls(path, fs.LocalFileSystem(), os.path.abspath(path))
        if "@" in urlsplit(path).netloc:
            raise ConfigError(
                f"{shown_url(path)}: a URL holds no credentials, since it is written into files; set the variables of "
                "the storage in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        filesystem, inner = answered(path, lambda: fs.FileSystem.from_uri(path))
        return cls(path, filesystem, inner)

    def at(self, inner: str) -> Place:
        """Return the place of the path `inner` in the same filesystem."""
        if not is_url(self.outer):
            return Place(inner, self.filesystem, inner)
        parts = urlsplit(self.outer)
        key = inner if not parts.netloc else f"/{inner.partition('/')[2]}"
        return Place(parts._replace(path=key).geturl(), self.filesystem, inner)

    def child(self, name: str) -> Place:
        """Return the place of the file `name` in this folder."""
        return self.at(f"{self.inner.rstrip('/')}/{name}")

    def info(self) -> Any:
        """Return pyarrow's FileInfo of this place.

        Raises:
            DataError: the storage refuses access or does not answer.
        """
        return answered(self.outer, lambda: self.filesystem.get_file_info(self.inner))

    def require_bucket(self) -> None:
        """Check that the bucket exists. Nothing is checked for a place that is not in an object storage.

        Raises:
            DataError: there is no bucket of this name, or the storage does not answer.
        """
        fs = need("pyarrow.fs", "ray")
        if not is_url(self.outer) or urlsplit(self.outer).scheme not in BUCKETS:
            return
        bucket = self.inner.partition("/")[0]
        info = answered(self.outer, lambda: self.filesystem.get_file_info(bucket))
        if info.type == fs.FileType.NotFound:
            raise DataError(
                f"there is no bucket {bucket} at {_server(self.outer)}; check its name, or make it first",
                path=shown_url(self.outer),
            )

    def files(self, *, recursive: bool = False) -> list[Any]:
        """Return pyarrow's FileInfo of each file in this folder, sorted by path; an empty list if there is no folder.

        Args:
            recursive: whether files in subfolders are included.

        Raises:
            DataError: the storage refuses access or does not answer.
        """
        fs = need("pyarrow.fs", "ray")
        selector = fs.FileSelector(self.inner, allow_not_found=True, recursive=recursive)
        found = answered(self.outer, lambda: self.filesystem.get_file_info(selector))
        return sorted((info for info in found if info.is_file), key=lambda info: str(info.path))

    def open(self) -> BinaryIO:
        """Open the file for buffered binary reading, with seeking.

        Raises:
            DataError: the file does not exist, or the storage refuses access or does not answer.
        """
        return cast(BinaryIO, io.BufferedReader(self.open_raw(), 1 << 20))

    def open_raw(self) -> Any:
        """Open the file as pyarrow's input file, without a buffer: only the bytes that are read are fetched.

        Raises:
            DataError: the file does not exist, or the storage refuses access or does not answer.
        """
        return answered(self.outer, lambda: self.filesystem.open_input_file(self.inner))


def is_url(path: str) -> bool:
    """Whether `path` is a URL, not a local path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


def shown_url(path: str) -> str:
    """Return `path` for a message: a URL without its user, password and query; a local path unchanged."""
    if not is_url(path):
        return path
    scheme, _, rest = path.partition("?")[0].partition("://")
    host, slash, key = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{key}"


def answered(path: str, ask: Callable[[], Result]) -> Result:
    """Call `ask`, which asks the filesystem of `path` for something, and return its result.

    If `path` is a URL of a storage, the call runs in a thread and may take `PATIENCE` seconds.

    Raises:
        DataError: the file does not exist, or the storage refused access or did not answer in time.
    """
    if not is_url(path) or urlsplit(path).scheme == "file":
        return _asked(path, ask)
    results: list[Result | BaseException] = []

    def run() -> None:
        try:
            results.append(_asked(path, ask))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)  # libraries may retry for minutes, which is too long to wait
    thread.start()
    thread.join(PATIENCE)
    if not results:
        raise DataError(
            f"the storage did not answer within {PATIENCE:g} s; check the network, the credentials and the address",
            path=shown_url(path),
        )
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _asked(path: str, ask: Callable[[], Result]) -> Result:
    try:
        return ask()
    except FileNotFoundError:
        raise DataError("there is no such file; check the path", path=shown_url(path)) from None
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"cannot be reached: {storage_problem(path, error)}", path=shown_url(path)) from None


def storage_problem(path: str, error: Exception) -> str:
    """Describe the error of a filesystem in one sentence, with a remedy.

    Args:
        path: the local path or URL that was used.
        error: the error that pyarrow raised.
    """
    said = first_line(error)
    if not is_url(path):
        return f"{said}; check its permissions"
    server, scheme = _server(path), urlsplit(path).scheme
    if _DENIED.search(said):
        unset = "" if "AWS_ACCESS_KEY_ID" in os.environ else " (which is not set)"
        of_s3 = f"AWS_ACCESS_KEY_ID{unset} and AWS_SECRET_ACCESS_KEY"
        names = of_s3 if scheme == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
        return f"{server} refuses access; set the credentials of an account that may use it in the environment: {names}"
    if _NO_ANSWER.search(said):
        reason = said.rpartition("operation: ")[2] or said
        return f"no storage answers at {server} ({reason}); check the address, the scheme in the URL, and the network"
    if isinstance(error, ValueError):
        return f"{said}; check what stands after ? in the URL"
    return f"{said}; check the address, the network, and the credentials in the environment"


def _server(path: str) -> str:
    """Return the server of a URL for a message: its `endpoint_override` if it has one, else that of the scheme."""
    parts = urlsplit(path)
    of_options = parse_qs(parts.query).get("endpoint_override")
    return of_options[0] if of_options else {"s3": "Amazon S3"}.get(parts.scheme, f"{parts.scheme}://{parts.netloc}")
