"""Attention of a pack with the variable-length flash kernel: the keys of an example are the prefix's and its own.

    queries   [prefix][example 1][example 2]…          one sequence each
    keys      [prefix][prefix, example 1][prefix, example 2]…

With causal order aligned at the bottom right, this is exactly the attention of each example by itself, sliding windows
included, and no pair of query and key is computed that a mask would hide. If texts are read as a whole, all sequences
except the prefix have no causal order. The keys of the prefix are copied for one layer at a time; the gradients of the
copies are summed in float32 and in a fixed order. The kernel is for bf16 and fp16 on CUDA; `models.attention` computes
all other cases.
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
from spantune.models.interfaces import ModelConfig
from spantune.models.kernels.lora_linear import LIBRARY

STEP = 512  # the length of the longest sequence is rounded up to a multiple, so that a compiled layer gets few values
LARGEST_HEAD = 256
ALL = -1


class Spans(NamedTuple):
    """The layout of a pack's sequences, as the flash kernel needs it.

    Attributes:
        queries: [sequences + 1] int32, the index of the first query of each sequence, and the number of queries.
        keys: [sequences + 1] int32, the index of the first key of each sequence, and the number of keys.
        tokens: [keys], the token of each key.
        own: [tokens], the key of each token that is not a copy.
        copies: [examples, prefix], the keys of each example that are copies of the prefix.
        longest: an upper bound of the number of keys of a sequence.
        causal: this many tokens, from the first one, are in causal order; ALL (-1) for all.
    """

    queries: Tensor
    keys: Tensor
    tokens: Tensor
    own: Tensor
    copies: Tensor
    longest: int
    causal: int = ALL


def spans(owner: Sequence[int], *, is_causal: bool = True) -> Spans:
    """Return the layout of a pack.

    Args:
        owner: the owner of each token: PREFIX for the prefix, if there is one, and then the number of each example.
        is_causal: False if a token of an example attends to its whole example; the prefix is always in causal order.
    """
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
        ALL if is_causal else prefix,
    )


def can_flash(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the flash kernel supports the packs of a model that computes in `dtype` on `device`."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and head_size(config) <= LARGEST_HEAD


def pack_attention(query: Tensor, key: Tensor, value: Tensor, where: Spans, scale: float, window: int | None) -> Tensor:
    """Return the attention [tokens, heads, size] of a pack, with gradients for query, key and value.

    Args:
        query: [tokens, heads, size].
        key: [tokens, kv heads, size].
        value: [tokens, kv heads, size].
        where: the layout of the pack.
        scale: the factor on the products of queries and keys.
        window: the attention window in tokens; None for no window.
    """
    attended, _ = torch.ops.spantune.pack_attention(query, key, value, *where, scale, window or 0)
    return attended  # type: ignore[no-any-return]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *places, longest, causal, scale, window = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, *places)
    ctx.options = (longest, causal, scale, window)


def _gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.spantune.pack_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return (*gradients, *[None] * 9)


# The operators take the fields of Spans one by one: an operator's schema has tensors and numbers only.


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
    causal: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Return the attended values, and the log-sum-exp [heads, tokens] for the backward pass."""
    every_key, every_value = key[tokens], value[tokens]
    outputs, sums = [], []
    for part in _parts(queries, keys, causal, len(query)):
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            query[part.queries], every_key[part.keys], every_value[part.keys], part.query_starts, part.key_starts,
            longest, longest, 0.0, part.is_causal, False, scale=scale, **_windowed(window, part.is_causal),
        )  # fmt: skip
        outputs.append(output)
        sums.append(lse)
    return (outputs[0], sums[0]) if len(outputs) == 1 else (torch.cat(outputs), torch.cat(sums, 1))


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
    causal: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    every_key, every_value = key[tokens], value[tokens]
    unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the random state of dropout, which is not used
    gradients = [
        torch.ops.aten._flash_attention_backward(
            grad[part.queries], query[part.queries], every_key[part.keys], every_value[part.keys],
            output[part.queries], lse[:, part.queries].contiguous(), part.query_starts, part.key_starts,
            longest, longest, 0.0, part.is_causal, unused, unused, scale=scale, **_windowed(window, part.is_causal),
        )
        for part in _parts(queries, keys, causal, len(query))
    ]  # fmt: skip
    of_query, of_keys, of_values = gradients[0] if len(gradients) == 1 else map(torch.cat, zip(*gradients, strict=True))
    if of_keys.is_cuda:
        from spantune.models.kernels import packs_triton

        return of_query, *packs_triton.gathered(of_keys, of_values, own, copies)
    return of_query, gathered(of_keys, own, copies), gathered(of_values, own, copies)


class _Part(NamedTuple):
    """Sequences of a pack that one call of the kernel computes; all of them are in causal order, or none is."""

    queries: slice
    keys: slice
    query_starts: Tensor
    key_starts: Tensor
    is_causal: bool


def _parts(queries: Tensor, keys: Tensor, causal: int, tokens: int) -> list[_Part]:
    """Return the parts of a pack, one for each call of the kernel.

    There are two parts if the prefix is in causal order and the texts are not. A prefix of one token attends to itself
    only, in either order, so that one part is enough.
    """
    if causal in (ALL, tokens) or causal <= 1:
        return [_Part(slice(None), slice(None), queries, keys, causal in (ALL, tokens))]
    prefix, rest = slice(0, causal), slice(causal, None)  # the prefix is the first sequence of queries and of keys
    return [
        _Part(prefix, prefix, queries[:2], keys[:2], True),
        _Part(rest, rest, queries[1:] - causal, keys[1:] - causal, False),
    ]


def _windowed(window: int, is_causal: bool) -> dict[str, int]:
    return {"window_size_left": window - 1, "window_size_right": 0 if is_causal else window - 1} if window else {}


def gathered(gradient: Tensor, own: Tensor, copies: Tensor) -> Tensor:
    """Return the gradients of tokens [tokens, heads, size]: that of the token's own key, plus those of its copies.

    Args:
        gradient: [keys, heads, size], the gradients of all keys, or of all values.
        own: [tokens], the key of each token that is not a copy.
        copies: [examples, prefix], the keys that are copies of the prefix.
    """
    gradients = gradient.index_select(0, own)
    if copies.numel():
        shared = copies.shape[1]
        summed = gradient[copies].sum(0, dtype=torch.float32)
        gradients[:shared] = (gradients[:shared].float() + summed).to(gradients.dtype)
    return gradients


def _attended_shape(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


def _gradient_shapes(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: object) -> tuple[Tensor, ...]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


_LAYOUT = (
    "Tensor queries, Tensor keys, Tensor tokens, Tensor own, Tensor copies, SymInt longest, "
    "SymInt causal, float scale, SymInt window"
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
def _flops(query: Sequence[int], *_: object, **__: object) -> int:
    """Return the cost by which a compiler chooses what to recompute.

    It is that of dense attention, since the kernel is slow for short sequences.
    """
    tokens, heads, size = query
    return int(4 * tokens * tokens * heads * size)
