"""The Dockerfile and the compose file: pinned base images, no root user, a health check, and only the needed files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line.split(None, 1) for line in TEXT.splitlines() if line and not line.startswith("#")]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    return [rest for word, rest in LINES if word == name]


def test_bases_are_pinned_and_the_service_is_no_root() -> None:
    bases = [base.split()[0] for base in instructions("FROM")]
    assert len(bases) == 2 and all(
        re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+(@sha256:\w{64})?", base) for base in bases
    )
    last_user = instructions("USER")[-1]
    assert last_user.isdecimal() and int(last_user) > 0
    assert f"--uid {last_user}" in TEXT
    assert instructions("ENTRYPOINT") == ['["spantune", "serve"]']
    assert "http://127.0.0.1:8000/health" in instructions("HEALTHCHECK")[0]


def test_what_is_copied_is_there_and_goes_to_the_builder() -> None:
    copied = [name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]]
    admitted = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied and all((ROOT / name).exists() and f"!{name}" in admitted for name in copied)
    assert "*" in admitted


def test_ports_of_the_compose_file_are_of_this_machine_and_images_are_pinned() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "no-new-privileges:true" in service["security_opt"]
        names = {volume.split(":")[0] for volume in service["volumes"]} - {"${RUN"}
        assert names <= set(COMPOSE["volumes"])
    assert re.fullmatch(r"heartexlabs/label-studio:\d+\.\d+\.\d+", services["label-studio"]["image"])
    assert services["spantune"]["environment"]["SPANTUNE_TOKEN"].startswith("${SPANTUNE_TOKEN:?")
