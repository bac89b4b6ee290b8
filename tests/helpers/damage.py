"""Damage a file as disks, transfers, editors and other programs may do; a seed determines the damage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

OTHERS = (None, -1, 0, 1, 7, 10**18, 1.5, float("nan"), True, "", "x", "16", [], {}, [1], ["x"], {"x": 1}, [[]], [None])


def damage(path: Path, seed: int) -> str:
    """Damage a file in place; return the name of the file and the kind of damage."""
    choice = random.Random(seed)
    kinds = ["bits", "truncated", "gone", "folder", "empty", "nonsense"]
    if path.suffix == ".json":
        kinds += ["value"] * 8 + ["key"] * 4 + ["whole"]
    kind = choice.choice(kinds)
    if kind in ("value", "key", "whole"):
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree = choice.choice(OTHERS) if kind == "whole" else _changed(tree, choice, kind)
        path.write_text(json.dumps(tree), encoding="utf-8")
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        path.write_bytes(_bytes(path.read_bytes(), choice, kind))
    return f"{path.name}: {kind}"


def _bytes(content: bytes, choice: random.Random, kind: str) -> bytes:
    if kind == "bits":
        flipped = bytearray(content)
        for _ in range(choice.choice((1, 1, 4, 64))):
            flipped[choice.randrange(len(flipped))] ^= 1 << choice.randrange(8)
        return bytes(flipped)
    if kind == "truncated":
        return content[: choice.randrange(len(content))]
    return b"" if kind == "empty" else choice.choice((b"\xff\xfe\x00", b"[" * 100_000, b"\x80\x04K\x01.", b"{}", b"[]"))


def _changed(tree: Any, choice: random.Random, kind: str) -> Any:
    """Return the JSON value after one value in it, at any depth, was replaced or (kind "key") removed."""
    if not isinstance(tree, dict | list) or not tree:
        return choice.choice(OTHERS)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = choice.choice(keys)
    if isinstance(tree[key], dict | list) and tree[key] and choice.random() < 0.7:
        tree[key] = _changed(tree[key], choice, kind)
    elif kind == "key":
        del tree[key]
    else:
        tree[key] = choice.choice(OTHERS)
    return tree
