"""The real Label Studio connects to the service, asks for predictions and sends annotations.

The tests are skipped without a `label-studio` command: `make test-peers` installs one, or SPANTUNE_LABEL_STUDIO names
one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spantune.core import Entity
from spantune.data import formats, labelling_interface
from spantune.extraction import Extractor

COMMAND = os.environ.get("SPANTUNE_LABEL_STUDIO") or shutil.which("label-studio")
KEY = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "token-of-the-service"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="no label-studio command; see make test-peers"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a new Label Studio with an empty database."""
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": "annotator@example.org",
        "LABEL_STUDIO_PASSWORD": "a-password-of-tests",
        "LABEL_STUDIO_USER_TOKEN": KEY,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    arguments = [str(COMMAND), "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"]
    with (folder / "log.txt").open("wb") as output:
        process = subprocess.Popen(
            arguments, env={**environment, **settings}, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Token {KEY}"}, timeout=120)
    try:
        until = time.monotonic() + 600  # a busy machine takes minutes
        while True:
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            said = (folder / "log.txt").read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < until, said
            time.sleep(0.5)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def asked(studio: httpx2.Client, method: str, path: str, body: object = None) -> Any:
    response = studio.request(method, path, json=body)
    assert response.status_code < 300, (path, response.text)
    return response.json() if response.content else None


def stored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "corrections.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_project_is_predicted_and_its_annotations_come_back(
    studio: httpx2.Client, serve_with: Callable[..., Any], offline: Extractor, tmp_path: Path
) -> None:
    texts = ["😀痨和疮", "未见异常。", "疮痈"]
    with serve_with(token=TOKEN, corrections=tmp_path) as served:
        (run,) = served.service.runs
        version = f"toy-{run.fingerprint}"
        config = labelling_interface(offline.task.labels)
        project = asked(studio, "POST", "/api/projects", {"title": "peers", "label_config": config})["id"]
        backend = {"url": served.url, "project": project, "title": "spantune", "auth_method": "BASIC_AUTH"}
        backend |= {"basic_auth_user": "spantune", "basic_auth_pass": TOKEN}
        connected = asked(studio, "POST", "/api/ml", backend)
        assert (connected["state"], connected["model_version"]) == ("CO", version)
        assert asked(studio, "GET", f"/api/ml/{connected['id']}/versions") == {"versions": [version]}
        for hook in asked(studio, "GET", f"/api/webhooks/?project={project}"):  # webhooks carry no login
            asked(studio, "PATCH", f"/api/webhooks/{hook['id']}/", {"headers": {"Authorization": f"Bearer {TOKEN}"}})

        tasks = [{"text": text} for text in texts] + [{"text": "https://example.org/x"}]
        asked(studio, "POST", f"/api/projects/{project}/import", tasks)
        everything = {"selectedItems": {"all": True, "excluded": []}, "ordering": []}
        asked(studio, "POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", everything)
        listed = asked(studio, "GET", f"/api/tasks?project={project}&fields=all")["tasks"]
        by_text = {task["data"]["text"]: task for task in listed}
        for text in texts:
            (prediction,) = by_text[text]["predictions"]
            found = [
                Entity(region["value"]["start"], region["value"]["end"], region["value"]["labels"][0])
                for region in prediction["result"]
            ]
            assert found == list(offline.extract(text).entities)
            assert prediction["model_version"] == version
        assert by_text["https://example.org/x"]["predictions"] == []
        behind_emoji = by_text["😀痨和疮"]["predictions"][0]["result"]
        assert {region["value"]["text"] for region in behind_emoji} <= {"痨", "疮", "痨和疮"}
        assert behind_emoji and all(region["value"]["start"] > 0 for region in behind_emoji)

        names = {"from_name": "label", "to_name": "text", "type": "labels"}
        result = [{"id": "a", **names, "value": {"start": 1, "end": 2, "text": "痨", "labels": ["sym"]}}]
        task = by_text["😀痨和疮"]["id"]
        annotation = asked(studio, "POST", f"/api/tasks/{task}/annotations/", {"result": result})["id"]
        (line,) = stored(tmp_path)
        assert [(e["start"], e["end"], e["label"], e["text"]) for e in line["entities"]] == [(1, 2, "sym", "痨")]
        result[0]["value"]["labels"] = ["bod"]  # type: ignore[index]
        asked(studio, "PATCH", f"/api/annotations/{annotation}/", {"result": result})
        (document,) = formats.read(tmp_path / "corrections.jsonl").documents
        assert document.entities == (Entity(1, 2, "bod"),)
        other = by_text["疮痈"]["id"]
        asked(studio, "POST", f"/api/tasks/{other}/annotations/", {"result": []})
        asked(studio, "DELETE", f"/api/annotations/{annotation}/")
        (document,) = formats.read(tmp_path / "corrections.jsonl").documents
        assert (document.text, document.entities) == ("疮痈", ())
        asked(studio, "POST", f"/api/ml/{connected['id']}/train", {})
