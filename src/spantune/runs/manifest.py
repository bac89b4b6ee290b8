"""The manifest of a folder: size and SHA-256 of its files, written last, so that a later change is noticed.

Checkpoints have one, which is compared when a run is resumed, and so has the adapter, which is compared when the run is
loaded.
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
"""What a run trains, in its `adapter/` and its checkpoints, the weights first: those of these files that are there."""
READ = (".json", ".jinja", ".model", ".safetensors", ".tiktoken", ".txt")
"""How the names of the files end that libraries look for beside an adapter: one that is added may change answers."""


def seal(folder: Path, **about: object) -> None:
    """Sync every file of a filled folder and write its manifest last, with the values of `about`.

    Notes for people, `*.md`, may be edited and are not in it.
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
    """What differs between a folder and its manifest, in words; None where nothing does.

    Files that the manifest does not name are not looked at; `about` is what it must say beside the files.
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
    """Return the files of an adapter folder or a checkpoint that hold what the run trained, the weights first."""
    return [folder / name for name in TRAINED_FILES if (folder / name).is_file()]


def change_since(folder: Path) -> str | None:
    """What was changed in a folder, or added to it, since its manifest was written; None where nothing was, or where it
    has no manifest."""
    if not (folder / MANIFEST).exists():
        return None
    return first_difference(folder) or first_addition(folder)


def first_addition(folder: Path) -> str | None:
    """What was added to a folder after its manifest, of the files that libraries look for; None where nothing was."""
    named = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(READ))
    present = sorted(name for name in files if name != MANIFEST)
    added = (name for name in present if name not in named)
    return next((f"{name} was added" for name in added), None)
