"""The hashes of what a run is made from (model, documents, task and code), and what has changed since it began.

Documents are hashed after they were read, limited and split, so that the same content in another format or path has the
same hash. A model is hashed by its files; each file is read once until it changes. A run is resumed only with the same
model, documents and task. Another release of spantune or torch is reported, and the run resumes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from spantune import __version__
from spantune.core import RunError, TaskSpec, hash_documents, sha256_of, world_size
from spantune.models import hash_model, pinned
from spantune.runs import RunFolder, trained_files
from spantune.training.preparation import Prepared

_SOURCE = Path(__file__).parents[1]

FIXED = {
    "model_sha256": "the model",
    "train_sha256": "the training documents",
    "dev_sha256": "the dev documents",
    "test_sha256": "the test documents",
    "task_sha256": "the task",
}
"""The keys of `environment.json` that must be the same when a run is resumed, and what they stand for."""


def fingerprint(prepared: Prepared) -> dict[str, str]:
    """Return the SHA-256 of model, documents, task, code and the adapter of a warm start, by key.

    `model_source` is the source of the model, with the commit of a model from a hub; for `commit` see `code`.
    """
    splits = prepared.splits
    hashes = {"model_sha256": hash_model(prepared.files.folder), "task_sha256": hash_task(prepared.task)}
    hashes |= {
        f"{name}_sha256": hash_documents(documents)
        for name, documents in (("train", splits.train), ("dev", splits.dev), ("test", splits.test))
    }
    if prepared.start is not None:
        hashes["start_sha256"] = sha256_of(trained_files(prepared.start.folder)[0])
    return hashes | {"model_source": pinned(prepared.recipe.model.source)} | code()


def require_unchanged(folder: Path, now: Mapping[str, str]) -> list[str]:
    """Compare what a run began with, as its `environment.json` records it, with `now`.

    Returns:
        The differences with which a run may be resumed, such as another release, in sentences.

    Raises:
        RunError: model, data or task have changed, or `environment.json` is missing or damaged.
    """
    before = read_environment(folder)
    changed = [what for key, what in FIXED.items() if before.get(key) != now[key]]
    if (
        not any(what == FIXED["task_sha256"] for what in changed)
        and hash_task(TaskSpec.load(folder)) != now["task_sha256"]
    ):
        changed.append("task.json")
    if changed:
        raise RunError(
            f"{folder}: {', '.join(changed)} changed since the run began; put back what it began with, or begin a "
            "new run"
        )
    updated = (key for key in before if key not in FIXED and key in now and before[key] != now[key])
    return [f"{key} was {before[key]} and is {now[key]}" for key in updated]


def read_environment(folder: Path) -> dict[str, str]:
    """Read the `environment.json` of a run.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = RunFolder(folder).environment_file
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged ({error}); restore it, or train again") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: expected an object; restore it, or train again")
    return {str(key): str(value) for key, value in values.items()}


def hash_task(task: TaskSpec) -> str:
    """Return the SHA-256 of a task.

    A nested task is hashed without the field `nested`, so that its hash is the same as before this field was added.
    """
    return _hash([task.model_dump_json(exclude={"nested"} if task.nested else None)])


def code() -> dict[str, str]:
    """Return the SHA-256 of spantune's source, and in a git checkout its commit, with `+` if files differ from it."""
    hashes = {
        "code_sha256": _hash(f"{p.relative_to(_SOURCE)}\t{sha256_of(p)}\n" for p in sorted(_SOURCE.rglob("*.py")))
    }
    root = _SOURCE.parents[1]
    if not (root / ".git").exists():
        return hashes
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    return hashes if not commit else hashes | {"commit": commit + ("+" if changed else "")}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


_PACKAGES = ("torch", "transformers", "peft", "accelerate", "llguidance", "swanlab", "modelscope")


def environment() -> dict[str, str]:
    """Return the versions of packages and the machine, without names of hosts or users."""
    import torch

    values = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    values["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    )
    values["ranks"] = str(world_size())
    values["spantune"] = __version__  # the code that runs; installed metadata may be those of an earlier checkout
    for name in _PACKAGES:
        try:
            values[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            values[name] = "absent"
    return values
