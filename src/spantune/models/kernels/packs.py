"""Attention of a pack by the variable-length flash kernel: each example's keys are the prefix's, then its own.

    queries   [prefix][example 1][example 2]…          one sequence each
    keys      [prefix][prefix, example 1][prefix, example 2]…

Bottom-right causal order is then exactly what an example would see by itself, sliding windows included, and nothing
that a mask would hide is computed. The copies of the prefix's keys are made for one layer at a time; their gradients
are summed in float32 and in one order. For bf16 and fp16 on CUDA; `attention` has the way for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spantune.encoding import PREFIX
from spantune.models.architecture import head_size
from spantune.models.kernels.lora_linear import LIBRARY

STEP = 512  # the kernel's longest sequence is rounded up to it, so that a compiled layer sees few values
LARGEST_HEAD = 256


class Spans(NamedTuple):
    """Where the sequences of a pack lie.

    `queries`, `keys` [sequences + 1] int32 are where each begins; `tokens` [keys] says which token a key is;
    `own` [tokens] at which key each token's own is, `copies` [examples, prefix] where the prefix's copies are;
    `longest` bounds the length of a sequence.
    """

    queries: Tensor
    keys: Tensor
    tokens: Tensor
    own: Tensor
    copies: Tensor
    longest: int


def spans(owner: Sequence[int]) -> Spans:
    """The Spans of a pack whose prefix, if it has one, stands first."""
    lengths = [(name, len(list(tokens))) for name, tokens in groupby(owner)]
    prefix = lengths[0][1] if lengths[0][0] == PREFIX else 0
    before = [0 if name == PREFIX else prefix for name, _ in lengths]
    queries = [0, *accumulate(length for _, length in lengths)]
    keys = [0, *accumulate(length + shared for (_, length), shared in zip(lengths, before, strict=True))]
    index: list[int] = []
    own: list[int] = []
    copies: list[range] = []
    for start, end, place, shared in zip(queries, queries[1:], keys, before, strict=False):
        index += [*range(shared), *range(start, end)]
        own += range(place + shared, place + shared + end - start)
        if shared:
            copies.append(range(place, place + shared))
    longest = max(length + shared for (_, length), shared in zip(lengths, before, strict=True))
    return Spans(
        torch.tensor(queries, dtype=torch.int32),
        torch.tensor(keys, dtype=torch.int32),
        torch.tensor(index),
        torch.tensor(own),
        torch.tensor([list(copy) for copy in copies], dtype=torch.long).reshape(len(copies), prefix),
        -(-longest // STEP) * STEP,
    )


def can_flash(config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes the packs of a model that computes in `dtype` on `device`."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and head_size(config) <= LARGEST_HEAD


def pack_attention(query: Tensor, key: Tensor, value: Tensor, where: Spans, scale: float, window: int | None) -> Tensor:
    """Attention [tokens, heads, size] of a pack; `key` and `value` may have fewer heads, `window` is in tokens."""
    attended, _ = torch.ops.spantune.pack_attention(query, key, value, *where, scale, window or 0)
    return attended  # type: ignore[no-any-return]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *places, longest, scale, window = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, *places)
    ctx.options = (longest, scale, window)


def _gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    found = torch.ops.spantune.pack_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return (*found, *[None] * 8)


# The operators take the fields of Spans one by one: an operator's schema knows tensors and numbers only.


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    tokens: Tensor,
    own: Tensor,
    copies: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """The attended values, and the log-sum-exp [heads, tokens] that backward needs."""
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key[tokens], value[tokens], queries, keys, longest, longest, 0.0, True, False,
        scale=scale, **_windowed(window),
    )  # fmt: skip
    return output, lse


def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    queries: Tensor,
    keys: Tensor,
    tokens: Tensor,
    own: Tensor,
    copies: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the state of dropout, of which there is none
    of_query, of_keys, of_values = torch.ops.aten._flash_attention_backward(
        grad, query, key[tokens], value[tokens], output, lse, queries, keys, longest, longest, 0.0, True, unused,
        unused, scale=scale, **_windowed(window),
    )  # fmt: skip
    return of_query, gathered(of_keys, own, copies), gathered(of_values, own, copies)


def _windowed(window: int) -> dict[str, int]:
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


def gathered(gradient: Tensor, own: Tensor, copies: Tensor) -> Tensor:
    """Gradients [tokens, heads, size] from those of the keys: each token's own, and the sum of the prefix's copies."""
    found = gradient.index_select(0, own)
    if copies.numel():
        shared = copies.shape[1]
        summed = gradient[copies].sum(0, dtype=torch.float32)
        found[:shared] = (found[:shared].float() + summed).to(found.dtype)
    return found


def _attended_shape(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


def _gradient_shapes(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


_LAYOUT = (
    "Tensor queries, Tensor keys, Tensor tokens, Tensor own, Tensor copies, SymInt longest, float scale, SymInt window"
)
LIBRARY.define(f"pack_attention(Tensor query, Tensor key, Tensor value, {_LAYOUT}) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "pack_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    f"{_LAYOUT}) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.impl("pack_attention", _attend, "CUDA")  # type: ignore[no-untyped-call]
LIBRARY.impl("pack_attention_backward", _differentiate, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::pack_attention", _attended_shape)
torch.library.register_autograd("spantune::pack_attention", _gradients, setup_context=_keep, lib=LIBRARY)
torch.library.register_fake("spantune::pack_attention_backward", _gradient_shapes)


@register_flop_formula(torch.ops.spantune.pack_attention)
def _flops(query: Any, *_: Any, **__: Any) -> int:
    """What a compiler weighs recomputation by: as if every query saw every token, since short sequences are slow."""
    tokens, heads, size = query
    return int(4 * tokens * tokens * heads * size)
