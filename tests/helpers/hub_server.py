"""A local stand-in for Hugging Face and ModelScope: takes uploads over the clients' own protocols and keeps them."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_abcdefghijklmnop0123"
"""The only token that the server accepts."""


class HubServer(ThreadingHTTPServer):
    """A hub on this machine.

    Attributes:
        files: the content of each committed file, by (repository, path).
        private: whether each created repository is private, by repository.
        blobs: the content of each uploaded blob, by its SHA-256.
        licenses: the licence of each repository created on ModelScope, in order.
        requests: method and path of each request, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.licenses: list[str] = []
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if TOKEN not in self.headers.get("Authorization", "") + self.headers.get("Cookie", ""):
            self._send(401, {"error": "Invalid credentials", "message": "Invalid token"})
        else:
            self._send(*self._reply(self.path.partition("?")[0].strip("/").split("/"), body))

    def _reply(self, path: list[str], body: bytes) -> tuple[int, object]:
        match path:
            case ["api", "whoami-v2"]:
                return 200, {"type": "user", "name": "me"}
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", "repos", "create"]:
                made = json.loads(body)
                repo = f"{made.get('organization') or 'me'}/{made['name']}"
                self.server.private[repo] = made.get("private", made.get("visibility") == "private")
                return 200, {"url": f"{self.server.url}/{repo}", "name": repo}
            case ["api", "models", _, _, "preupload", _]:
                names = [file["path"] for file in json.loads(body)["files"]]
                rows = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
                return 200, {"files": rows}
            case ["api", "models", owner, name, "commit", _]:
                for line in body.splitlines():
                    row = json.loads(line)
                    if row["key"] == "file":
                        content = base64.b64decode(row["value"]["content"])
                        self.server.files[f"{owner}/{name}", row["value"]["path"]] = content
                return 200, {"commitUrl": f"{self.server.url}/{owner}/{name}/commit/0", "commitOid": "0" * 40}
            case ["api", "models", owner, name, *_]:
                return 200, {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": []}
            case _:
                return self._modelscope(path, body)

    def _modelscope(self, path: list[str], body: bytes) -> tuple[int, object]:
        server, sent = self.server, json.loads(body) if body[:1] == b"{" else {}
        match path:
            case ["openapi", "v1", "users", "me"]:
                return 200, {"success": True, "data": {"username": "me"}}
            case ["api", "v1", "models"]:
                repo = f"{sent['Path']}/{sent['Name']}"
                if repo in server.private:
                    return 400, {"Code": 10010101001, "Success": False, "Message": "the model exists"}
                server.private[repo] = sent["Visibility"] == 1
                server.licenses.append(sent["License"])
                return 200, {"Code": 200, "Success": True, "Data": {}}
            case ["api", "v1", "repos", "models", *_, "objects", "batch"]:
                rows = [
                    {"oid": blob["oid"], "actions": {"upload": {"href": f"{server.url}/blobs/{blob['oid']}"}}}
                    for blob in sent["objects"]
                ]
                return 200, {"Code": 200, "Success": True, "Data": {"objects": rows}}
            case ["blobs", oid]:
                server.blobs[oid] = body
                return 200, {"Code": 200, "Success": True, "Data": {}}
            case ["api", "v1", "repos", "models", owner, name, "commit", _]:
                for action in sent["actions"]:
                    is_blob = action["type"] == "lfs"
                    content = server.blobs[action["sha256"]] if is_blob else base64.b64decode(action["content"])
                    server.files[f"{owner}/{name}", action["path"]] = content
                return 200, {"Code": 200, "Success": True, "Data": {"oid": "0" * 40}}
        return 404, {"message": "there is nothing of this name"}

    def _send(self, code: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
