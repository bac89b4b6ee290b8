"""Real components at toy size: a byte-level tokenizer and randomly initialised models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MERGES = [
    ("Ċ", "a"),
    ("e", "n"),
    ("en", "t"),
    ("i", "t"),
    ("ent", "it"),
    ('"', "}"),
    ('"}', "Ċ"),
    ("a", "b"),
    ("ab", "c"),
]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|pad|>"]


def byte_tokenizer(merges: list[tuple[str, str]] | None = None) -> Any:
    """Return a byte-level BPE tokenizer with these merges (none: one token per byte) and a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + ["".join(pair) for pair in merges or []]
    model = BPE({token: index for index, token in enumerate(tokens)}, merges or [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def pieces_tokenizer() -> Any:
    """Return a tokenizer in SentencePiece's style, with a special token, an added text token and byte tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁", "ab", "▁a", "患者", "▁▁"]
    merges = [("a", "b"), ("▁", "a"), ("▁", "▁")]
    core = Tokenizer(
        models.BPE({name: index for index, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    core.add_tokens([AddedToken("[Ä b]", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>")


_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tiny_model(family: str = "phi3", vocabulary: int = 272, **changes: Any) -> Any:
    """Return a random causal LM of a family.

    phi3 has fused projections, mistral a sliding window, gemma3_text two types of layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from spantune.models import NAME

    extra: dict[str, dict[str, Any]] = {
        "phi3": {},
        "llama": {},
        "qwen2": {},
        "qwen3": {"head_dim": 8},
        "smollm3": {"no_rope_layer_interval": 2},
        "mistral": {"sliding_window": 8},
        "gemma3_text": {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    }
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **{**_SHAPE, **extra[family], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, trust_remote_code=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    model.tie_weights()
    return model.eval()


def save_model(folder: Path, family: str = "phi3", merges: list[tuple[str, str]] | None = None) -> Path:
    """Save a tiny model and its tokenizer in `folder`."""
    tokenizer = byte_tokenizer(merges)
    model = tiny_model(family, vocabulary=len(tokenizer) + 3)
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
