"""A base model from a hub or a folder, the adapter on it, and the attention and products that it computes with."""

from __future__ import annotations

from spantune.models.adapter import PlainLora, fold_lora
from spantune.models.architecture import (
    capped,
    causal_lm,
    decoder_layers,
    few_logits,
    head_size,
    is_wide,
    kv_heads,
    layer_kinds,
    own_output_weights,
    park_output_layer,
    softcap_of,
    vocabulary_size,
    window_of,
)
from spantune.models.attention import NAME, Places, check_attention, pack_view, unread_mask
from spantune.models.bundled import bundled_vocabulary, cache_root
from spantune.models.compilation import compile_layers
from spantune.models.full import require_full
from spantune.models.hashes import hash_files, hash_model
from spantune.models.hubs import HUBS, hf_http_error
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
<<<<<<< HEAD
from spantune.models.packed import pack_weights
from spantune.models.sharding import divide_layers
=======
from spantune.models.pack_graphs import graph_limit, graph_packs, release_graphs
from spantune.models.sharding import divide_layers, gather_layers
>>>>>>> w-scale
from spantune.models.silence import silenced
from spantune.models.sources import count_weights, pinned, public_name, resolve
from spantune.models.span_head import (
    HeadConfig,
    SpanHead,
    attach_head,
    check_head_files,
    copy_head,
    head_of,
    head_weights,
    load_head,
    load_head_weights,
    make_head,
    read_head_config,
    require_head,
    save_head,
)
from spantune.models.span_packs import SpanPack, layout_spans, moved, pack_spans, span_logits
from spantune.models.trained import (
    copy_trained,
    is_shareable,
    load_adapter,
    load_trained,
    open_together,
    open_trained,
    read_lora,
    reload_trained,
    save_trained,
)

__all__ = [
    "HUBS",
    "NAME",
    "CausalLM",
    "Coverage",
    "HeadConfig",
    "Loaded",
    "ModelConfig",
    "ModelFiles",
    "Places",
    "PlainLora",
    "RowView",
    "Span",
    "SpanHead",
    "SpanPack",
    "Spans",
    "adapter_weights",
    "attach",
    "attach_head",
    "blocks_of",
    "bundled_vocabulary",
    "cache_root",
    "capped",
    "card_problems",
    "causal_lm",
    "check_attention",
    "check_head_files",
    "compile_layers",
    "copy_head",
    "copy_trained",
    "count_weights",
    "coverage",
    "decoder_layers",
    "divide_layers",
    "few_logits",
    "fold_lora",
    "gather_layers",
    "graph_limit",
    "graph_packs",
    "has_fp8",
    "hash_files",
    "hash_model",
    "head_of",
    "head_size",
    "head_weights",
    "hf_http_error",
    "is_shareable",
    "is_wide",
    "kernel_error",
    "kv_heads",
    "layer_kinds",
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
    "moved",
    "open_together",
    "open_trained",
    "own_output_weights",
    "pack_spans",
    "pack_view",
<<<<<<< HEAD
    "pack_weights",
=======
    "park_output_layer",
>>>>>>> w-scale
    "pick_device",
    "pick_dtype",
    "pinned",
    "public_name",
    "queries_per_block",
    "read_files",
    "read_head_config",
    "read_lora",
    "release_graphs",
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
    "window_of",
    "windows",
]
