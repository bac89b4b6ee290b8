"""A local S3 server (moto) over HTTP, in a thread; like S3, it refuses requests without credentials."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pyarrow import fs

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "of tests"}
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True)
class S3:
    """A running server and a client of its file system."""

    port: int
    filesystem: Any

    def url(self, key: str) -> str:
        """Return the URL of `key` (bucket and path), with the server's address."""
        return f"s3://{key}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in a folder."""
        infos = self.filesystem.get_file_info(fs.FileSelector(folder))
        return sorted(info.base_name for info in infos if info.is_file)


@contextmanager
def s3_server(bucket: str) -> Iterator[S3]:
    """Serve until the end of the block, with `bucket` created and the credentials in the environment.

    All servers of a process share their buckets.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    backend = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if "HTTP_AUTHORIZATION" in environment:
            return backend(environment, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [DENIED]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # hide the line for each request
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
                patch.setenv(name, value)
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
                patch.delenv(name, raising=False)
            address = f"127.0.0.1:{server.server_port}"
            filesystem = fs.S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True)
            filesystem.create_dir(bucket)
            yield S3(server.server_port, filesystem)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
