"""The examples for clusters: the shell code parses, the Slurm options exist, and the Kubernetes Jobs are complete."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
SBATCH = {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"}
TORCHRUN = {
    "standalone", "nnodes", "node-rank", "nproc-per-node", "master-addr", "master-port", "rdzv-id", "rdzv-backend",
    "rdzv-endpoint",
}  # fmt: skip


def launched(words: list[str]) -> list[str]:
    """Return the arguments of torchrun, after checking that they exist and that `-m spantune train` follows."""
    start = words.index("torchrun") + 1
    end = words.index("-m", start)
    options = {word.removeprefix("--") for word in words[start:end] if word.startswith("--")}
    assert options <= TORCHRUN and words[end : end + 3] == ["-m", "spantune", "train"]
    return words[start:end]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("slurm/*.sbatch")), ids=lambda path: path.stem)
def test_slurm_scripts_parse_and_launch_train(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert set(options) <= SBATCH and len(options) == text.count("#SBATCH")
    lines = text[text.index("set -euo") :].replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if "torchrun" in line and not line.startswith("#")]
    assert any("SLURM_GPUS_ON_NODE" in word for word in launched(shlex.split(command)))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("kubernetes/*.yaml")), ids=lambda path: path.stem)
def test_kubernetes_jobs_are_whole_and_launch_train(path: Path) -> None:
    parts: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    by_kind = {part["kind"]: part for part in parts}
    job = by_kind["Job"]
    assert (job["apiVersion"], job["spec"]["template"]["spec"]["restartPolicy"]) == ("batch/v1", "Never")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name", "image", "command", "resources", "volumeMounts"} <= container.keys()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    command = container["command"]
    words = launched(shlex.split(command[2]) if command[0] == "sh" else command)
    gpus = words[words.index("--nproc-per-node") + 1]
    assert int(gpus) == container["resources"]["limits"]["nvidia.com/gpu"]
    if "Service" in by_kind:
        name = by_kind["Service"]["metadata"]["name"]
        assert pod["subdomain"] == name and f"{job['metadata']['name']}-0.{name}" in words
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(words[words.index("--nnodes") + 1])
