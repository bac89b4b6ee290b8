"""The manifest of a folder: the size and SHA-256 of its files, written last, so that a later change is noticed.

A checkpoint is compared with its manifest when the run is resumed, and an adapter when the run is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

from spantune.core import first_line, fsync_path, sha256_of, to_json

MANIFEST = "manifest.json"
TRAINED_FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "full.safetensors",
    "full.json",
    "head.safetensors",
    "head.json",
)
"""The files in `adapter/` and in checkpoints that hold what a run trained, weights first. A folder has some of them."""
READ = (".json", ".jinja", ".model", ".safetensors", ".tiktoken", ".txt")
"""The endings of files that libraries read beside an adapter. Adding a file with such an ending may change answers."""


def seal(folder: Path, **about: object) -> None:
    """Sync every file of a complete folder to the disk, and write its manifest.

    Files `*.md`, which are for people and may be edited, are not in the manifest.

    Args:
        folder: the folder.
        about: further values of the manifest, such as `step`.

    Raises:
        OSError: a file cannot be read, written or synced.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        fsync_path(path)
        if path.suffix == ".md":
            continue
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = folder / MANIFEST
    manifest.write_text(to_json({**about, "files": files}, indent=1, ascii_only=True) + "\n", encoding="utf-8")
    fsync_path(manifest)
    fsync_path(folder)


def first_difference(folder: Path, **about: object) -> str | None:
    """Return the first difference between a folder and its manifest, in words; None if there is none.

    Files that are not in the manifest are ignored; see `first_addition`.

    Args:
        folder: the folder.
        about: further values that the manifest must have, such as `step`.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, its manifest says {expected['bytes']}"
            if sha256_of(path) != expected["sha256"]:
                return f"{name} is not what its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({first_line(error)})"
    wrong = (key for key, value in about.items() if manifest.get(key) != value)
    return next((f"its manifest is of {key} {manifest.get(key)}" for key in wrong), None)


def trained_files(folder: Path) -> list[Path]:
    """Return the files of an adapter folder or a checkpoint that hold what the run trained; weights come first."""
    return [folder / name for name in TRAINED_FILES if (folder / name).is_file()]


def change_since(folder: Path) -> str | None:
    """Return what was changed in a folder, or added to it, since its manifest was written, in words.

    None means that nothing was changed, or that the folder has no manifest.
    """
    if not (folder / MANIFEST).exists():
        return None
    return first_difference(folder) or first_addition(folder)


def first_addition(folder: Path) -> str | None:
    """Return the first file, of the kinds in READ, that is not in the manifest of a folder, in words; None if none is.

    Raises:
        OSError, ValueError, KeyError: the manifest cannot be read.
    """
    named = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(READ))
    present = sorted(name for name in files if name != MANIFEST)
    added = (name for name in present if name not in named)
    return next((f"{name} was added" for name in added), None)
