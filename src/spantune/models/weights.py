"""Checks that the weights of a model or an adapter are complete, of the right shapes, and finite.

If a weight is missing from a file, transformers fills it with random numbers; if a weight is NaN, it computes with it.
Here both are errors that name the weights. The files of a base model are searched for NaN and infinity before they are
loaded, since quantisation would hide them; an unchanged file is searched once only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from spantune.core import ModelError, foreign
from spantune.models.hashes import read_once


class LoadingInfo(TypedDict):
    """The report of transformers on a model that it loaded: names of weights, and for `mismatched_keys` both shapes."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]
    error_msgs: Collection[str]


NAMED = 3
"""The number of weights that an error names; further ones are only counted."""
REMEMBERED = 100
"""The most names of weights that are remembered for a file."""

log = logging.getLogger(__name__)


def require_complete(folder: Path, loading_info: LoadingInfo, *, extra_allowed: bool) -> None:
    """Check the report of transformers on the weights that it loaded from `folder`.

    Args:
        folder: the model folder.
        loading_info: the report of `from_pretrained(…, output_loading_info=True)`.
        extra_allowed: whether weights without a place in the model are logged instead of refused.

    Raises:
        ModelError: weights are missing, of another shape, or without a place in the model.
    """
    problems = []
    if missing := loading_info["missing_keys"]:
        problems.append(f"weights are missing: {few(missing)}")
    if mismatched := loading_info["mismatched_keys"]:
        shapes = (f"{name} is {list(stored)} and config.json says {list(own)}" for name, stored, own in mismatched)
        problems.append(f"weights are of another shape: {few(shapes)}")
    if errors := loading_info["error_msgs"]:
        problems.append(f"weights cannot be loaded: {few(errors)}")
    unexpected = few(loading_info["unexpected_keys"])
    if unexpected and not extra_allowed:
        problems.append(
            f"weights have no place in the model: {unexpected} (set model.verify=false to go on without them)"
        )
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}; copy or download the model again")
    if unexpected:
        log.warning("%s: weights have no place in the model and are not used: %s", folder, unexpected)


def require_finite_files(folder: Path, shards: Iterable[Path]) -> None:
    """Check that every number in the safetensors files `shards` of `folder` is finite.

    The result is remembered, so that an unchanged file is not read again.

    Raises:
        ModelError: a weight holds NaN or infinity, or a file cannot be read.
    """
    found = read_once(folder, sorted(shard.name for shard in shards), "finite", _non_finite_in)
    names = [name for listed in found.values() for name in listed.split("\n") if name]
    if names:
        raise ModelError(f"{folder}: weights hold NaN or infinity: {few(names)}; copy or download the model again")


def require_finite(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Check that every number in `weights`, which were read from the adapter or head in `folder`, is finite.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    names = [name for name, weight in weights.items() if not _is_finite(weight)]
    if names:
        raise ModelError(
            f"{folder}: weights of the adapter hold NaN or infinity: {few(names)}; restore it, or train again"
        )


def first_difference(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return a sentence on how stored weights differ from a model's own, in names or shapes; None if they do not."""
    if stored.keys() != own.keys():
        return f"weights are in one and not in the other: {few(stored.keys() ^ own.keys())}"
    shapes = ((name, list(weight.shape), list(own[name].shape)) for name, weight in stored.items())
    wrong = [f"{name} is {saved} and the model's is {ours}" for name, saved, ours in shapes if saved != ours]
    return f"size mismatch: {few(wrong)}" if wrong else None


def few(names: Iterable[str]) -> str:
    """Return the first NAMED names in alphabetical order, and how many more there are; "" without names."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _non_finite_in(path: Path) -> str:
    """Return the names of the weights in a safetensors file that hold NaN or infinity, one per line."""
    from safetensors import safe_open

    with foreign(path, "the weights cannot be read", "download it again"), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not _is_finite(file.get_tensor(name))]  # noqa: SIM118
    return "\n".join(names[:REMEMBERED])


def _is_finite(weight: Tensor) -> bool:
    """Whether every number is finite; only the minimum and the maximum are tested, which are NaN if a number is NaN."""
    if not weight.is_floating_point() or not weight.numel():
        return True
    if weight.element_size() == 1:  # FP8 has no comparisons
        weight = weight.to(torch.bfloat16)
    return bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all())
