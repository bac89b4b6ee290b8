"""A local stand-in for SwanLab's cloud: an HTTP server with the part of its API that swanlab 0.10.3 calls.

It keeps what it receives and answers from it: a known run is continued, and its summary lists the last step of each
key.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k3y-that-must-not-be-written-anywhere"


@dataclass
class CloudRun:
    """The data of one run in the cloud; points are in the order in which they arrived."""

    id: str
    about: dict[str, Any]
    scalars: list[tuple[str, int, Any]] = field(default_factory=list)
    media: list[tuple[str, int, list[str]]] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[int, Any]]:
        """Return the (step, value) points of a scalar, in the order in which they arrived."""
        return [(step, value) for name, step, value in self.scalars if name == key]


class Cloud:
    """The server on a free port; if `silent` is not 0, it waits so many seconds and closes the connection."""

    def __init__(self) -> None:
        self.runs: dict[str, CloudRun] = {}
        self.files: dict[str, bytes] = {}
        self.projects: set[str] = set()
        self.columns: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.silent = 0.0
        self.gone = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self}))
        self._server.daemon_threads = True
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Shut the server down: new connections are refused, and open ones end."""
        self.gone = True
        self._server.shutdown()
        self._server.server_close()

    @property
    def run(self) -> CloudRun:
        """The only run of the cloud."""
        (found,) = self.runs.values()
        return found

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON value for a request; `path` is the part after `/api`."""
        for verb, pattern, reply in _ROUTES:
            if verb == method and (found := re.fullmatch(pattern, path)):
                status, value = reply(self, found, body)
                return status, value
        return 404, {"code": "NotFound", "message": f"{method} {path}"}


def _project(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    name = found[1]
    if name not in cloud.projects:
        return 404, {}
    count = {"experiments": len(cloud.runs)}
    path = f"/tester/{name}"
    return 200, {
        "cuid": "p1",
        "name": name,
        "path": path,
        "version": 1,
        "group": {"username": "tester"},
        "_count": count,
    }


def _new_project(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    cloud.projects.add(body["name"])
    return 201, {}


def _experiment(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    new = body["cuid"] not in cloud.runs
    run = cloud.runs.setdefault(body["cuid"], CloudRun(body["cuid"], {**body, "project": found[1]}))
    run.states.append("RUNNING")
    about = {"cuid": run.id, "slug": run.id, "name": body["name"], "createdAt": "2026-11-24T00:00:00Z"}
    return (201 if new else 200), about


def _summary(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    run = cloud.runs[found[1]]
    last: dict[str, dict[str, int]] = {"scalar": {}, "media": {}}
    for kind, points in (("scalar", run.scalars), ("media", run.media)):
        for key, step, _ in points:
            last[kind][key] = max(step, last[kind].get(key, -1))
    listed = {kind: [{"key": key, "step": step} for key, step in steps.items()] for kind, steps in last.items()}
    return 200, {"log": [], **listed}


def _points(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    run = cloud.runs[body["experimentId"]]
    for point in body["metrics"]:
        if body["type"] == "scalar" and not point["key"].startswith("__swanlab__"):
            run.scalars.append((point["key"], point["index"], point["data"]))
        elif body["type"] == "media":
            run.media.append((point["key"], point["index"], point["data"]))
    return 200, {}


def _columns(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    for column in body["series"]:
        cloud.columns.setdefault(column["key"], column)
    return 200, {}


def _profile(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    cloud.runs[found[1]].profile.update(body)
    return 200, {}


def _state(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    cloud.runs[found[1]].states.append(body["state"])
    return 200, {}


def _places(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    return 200, {"urls": [f"{cloud.host}/put/{path}" for path in body["paths"]]}


def _save(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    names = [str(file.get("name") or file.get("path")) for file in body["files"]]
    if found[2] == "prepare":
        return 200, {"urls": [f"{cloud.host}/put/saved/{name}" for name in names]}
    cloud.runs[found[1]].saved += names
    return 201, {}


def _nothing(cloud: Cloud, found: re.Match[str], body: Any) -> tuple[int, Any]:
    return 200, {}


_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/project/tester/([^/]+)", _project),
    ("POST", r"/projects/tester", _new_project),
    ("POST", r"/project/tester/([^/]+)/experiment", _experiment),
    ("GET", r"/house/metrics/summaries/p1/([^/]+)", _summary),
    ("POST", r"/house/metrics", _points),
    ("PUT", r"/project/tester/[^/]+/runs/([^/]+)/profile", _profile),
    ("PUT", r"/project/tester/[^/]+/runs/([^/]+)/state", _state),
    ("POST", r"/resources/presigned/put", _places),
    ("POST", r"/experiment/([^/]+)/files/(prepare|complete)", _save),
    ("POST", r"/projects/tester/[^/]+/series", _columns),
    ("POST", r"/house/experiments/[^/]+/heartbeat", _nothing),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self, method: str) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.cloud.requests.append(f"{method} {path}")
        if self.cloud.silent or self.cloud.gone:
            time.sleep(self.cloud.silent)
            self.close_connection = True
            return
        if path.startswith("/put/"):
            self.cloud.files[path.removeprefix("/put/")] = data
            self._reply(200, {})
        elif path == "/api/login/api_key":
            if self.headers.get("authorization") != KEY:
                self._reply(401, {"code": "Unauthorized", "message": "no such key"})
            else:
                user = {"username": "tester", "name": "tester"}
                self._reply(200, {"sid": "s1", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": user})
        else:
            self._reply(*self.cloud.answer(method, path.removeprefix("/api"), json.loads(data) if data else None))

    def _reply(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
