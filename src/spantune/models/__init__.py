"""A base model from a hub or a folder, the adapter on it, and the attention and products that it computes with."""

from __future__ import annotations

from spantune.models.architecture import (
    capped,
    causal_lm,
    decoder_layers,
    few_logits,
    head_size,
    is_wide,
    kv_heads,
    softcap_of,
    vocabulary_size,
)
from spantune.models.attention import NAME, Places, check_attention, pack_view, unread_mask
from spantune.models.bundled import cache_root
from spantune.models.compilation import compile_layers
from spantune.models.full import require_full
from spantune.models.hashes import hash_model
from spantune.models.interfaces import CausalLM, ModelConfig
from spantune.models.kernels.lora_linear import has_fp8, to_fp8
from spantune.models.kernels.packs import Spans, spans
from spantune.models.kernels.rows import RowView, Span, blocks_of, kernel_error, queries_per_block, windows
from spantune.models.loading import (
    Loaded,
    ModelFiles,
    card_problems,
    load,
    load_config_of,
    load_tokenizer,
    pick_device,
    pick_dtype,
    read_files,
    require_base,
)
from spantune.models.lora import (
    Coverage,
    adapter_weights,
    attach,
    coverage,
    linear_modules,
    require_dora,
    unmatched_error,
    unranked_error,
)
from spantune.models.sharding import divide_layers
from spantune.models.silence import silenced
from spantune.models.sources import count_weights, pinned, public_name, resolve
from spantune.models.span_head import (
    HeadConfig,
    SpanHead,
    attach_head,
    check_head_files,
    head_of,
    head_weights,
    load_head,
    load_head_weights,
    make_head,
    read_head_config,
    require_head,
    save_head,
)
from spantune.models.span_packs import SpanPack, layout_spans, pack_spans, span_logits
from spantune.models.trained import (
    copy_trained,
    load_adapter,
    load_trained,
    open_trained,
    read_lora,
    reload_trained,
    save_trained,
)

__all__ = [
    "NAME",
    "CausalLM",
    "Coverage",
    "HeadConfig",
    "Loaded",
    "ModelConfig",
    "ModelFiles",
    "Places",
    "RowView",
    "Span",
    "SpanHead",
    "SpanPack",
    "Spans",
    "adapter_weights",
    "attach",
    "attach_head",
    "blocks_of",
    "cache_root",
    "capped",
    "card_problems",
    "causal_lm",
    "check_attention",
    "check_head_files",
    "compile_layers",
    "copy_trained",
    "count_weights",
    "coverage",
    "decoder_layers",
    "divide_layers",
    "few_logits",
    "has_fp8",
    "hash_model",
    "head_of",
    "head_size",
    "head_weights",
    "is_wide",
    "kernel_error",
    "kv_heads",
    "layout_spans",
    "linear_modules",
    "load",
    "load_adapter",
    "load_config_of",
    "load_head",
    "load_head_weights",
    "load_tokenizer",
    "load_trained",
    "make_head",
    "open_trained",
    "pack_spans",
    "pack_view",
    "pick_device",
    "pick_dtype",
    "pinned",
    "public_name",
    "queries_per_block",
    "read_files",
    "read_head_config",
    "read_lora",
    "reload_trained",
    "require_base",
    "require_dora",
    "require_full",
    "require_head",
    "resolve",
    "save_head",
    "save_trained",
    "silenced",
    "softcap_of",
    "span_logits",
    "spans",
    "to_fp8",
    "unmatched_error",
    "unranked_error",
    "unread_mask",
    "vocabulary_size",
    "windows",
]
