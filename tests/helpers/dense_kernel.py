"""A CPU implementation of `spantune::pack_attention`: each sequence with a dense mask, slow and easy to check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from spantune.models import attention
from spantune.models.kernels import packs


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside the block, packs on a CPU use the kernel below by their spans, as they use the flash kernel on a GPU."""
    library = torch.library.Library("spantune", "IMPL", "CPU")
    library.impl("pack_attention", _attend)
    library.impl("pack_attention_backward", _differentiate)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "can_flash", lambda *_: True)
        yield
    library._destroy()


def sequences(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the slice of queries and the slice of keys of each sequence."""
    ends = [queries.tolist(), keys.tolist()]
    for a, b, c, d in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        yield slice(a, b), slice(c, d)


def by_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return attention [tokens, heads, size] with the mask [1, 1, tokens, tokens] of a whole pack."""
    groups = query.shape[1] // key.shape[1]
    heads = [tensor.transpose(0, 1) for tensor in (query, key.repeat_interleave(groups, 1))]
    weights = (heads[0] @ heads[1].transpose(1, 2) * scale + mask[0]).softmax(-1)
    return (weights @ value.repeat_interleave(groups, 1).transpose(0, 1)).transpose(0, 1)


def _weights(query: Tensor, key: Tensor, scale: float, window: int, is_causal: bool) -> Tensor:
    """Return attention weights [heads, queries, keys]; the last query is at the position of the last key."""
    count, size = len(query), len(key)
    ahead = torch.arange(size)[None] - (torch.arange(count)[:, None] + size - count)
    hidden = (ahead > 0) if is_causal else torch.zeros_like(ahead, dtype=torch.bool)
    if window:
        hidden |= ahead.abs() >= window
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, *layout: Any) -> tuple[Tensor, Tensor]:
    queries, keys, tokens, _, _, _, causal, scale, window = layout
    groups = query.shape[1] // key.shape[1]
    output = torch.empty_like(query)
    for of_queries, of_keys in sequences(queries, keys):
        seen = tokens[of_keys]
        is_causal = causal == packs.ALL or of_queries.start < causal
        weights = _weights(query[of_queries], key[seen].repeat_interleave(groups, 1), scale, window, is_causal)
        values = value[seen].repeat_interleave(groups, 1).float()
        output[of_queries] = torch.einsum("hqk,khd->qhd", weights, values).to(output.dtype)
    return output, torch.zeros(query.shape[1], query.shape[0])  # no log-sum-exp: it is not needed here


def _differentiate(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *layout: Any
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, tokens, own, copies, _, causal, scale, window = layout
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    of_query = torch.zeros_like(query)
    of_key, of_value = (torch.zeros(len(tokens), *tensor.shape[1:], dtype=tensor.dtype) for tensor in (key, value))
    for of_queries, of_keys in sequences(queries, keys):
        seen, dy = tokens[of_keys], grad[of_queries].float()
        every, values = (tensor[seen].repeat_interleave(groups, 1).float() for tensor in (key, value))
        is_causal = causal == packs.ALL or of_queries.start < causal
        weights = _weights(query[of_queries], every, scale, window, is_causal)
        inner = torch.einsum("qhd,khd->hqk", dy, values)
        scores = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
        of_query[of_queries] = torch.einsum("hqk,khd->qhd", scores, every).to(query.dtype)
        for found, part in (
            (of_key, torch.einsum("hqk,qhd->khd", scores, query[of_queries].float())),
            (of_value, torch.einsum("hqk,qhd->khd", weights, dy)),
        ):
            found[of_keys] = part.unflatten(1, (heads, groups)).sum(2).to(found.dtype)
    return of_query, packs.gathered(of_key, own, copies), packs.gathered(of_value, own, copies)
