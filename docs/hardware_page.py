"""Keeps the table of models and GPUs in `hardware.md`, from the formula by which `spantune plan` predicts memory.

The models are made on torch's meta device from the shapes below, so nothing is downloaded. `--check` compares the page
with the formula and exits with 1 if they differ.

    python docs/hardware_page.py
    python docs/hardware_page.py --check
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

PAGES = [Path(__file__).with_name(name) for name in ("hardware.md", "hardware.zh.md")]
START = "<!-- The table below is made by docs/hardware_page.py; do not edit. -->"
END = "<!-- End of the table. -->"
BASES = ("bf16", "fp8", "nf4")
CARDS = (8, 12, 16, 24, 32, 48, 80, 141)
"""Memory of common GPUs in GB; a run is said to fit with a tenth left over."""
SHARE = 0.9
RANK, PACK_TOKENS = 16, 4096

_QWEN = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "Qwen3 0.6B": ("qwen3", _QWEN | {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072, "tie_word_embeddings": True}),
    "Qwen3 1.7B": ("qwen3", _QWEN | {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144, "tie_word_embeddings": True}),
    "Qwen3 4B": ("qwen3", _QWEN | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728, "tie_word_embeddings": True}),
    "Llama 3.1 8B": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}),
    "Qwen3 8B": ("qwen3", _QWEN | {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}),
    "Phi-4 14B": ("phi3", {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10, "intermediate_size": 17920, "vocab_size": 100352, "pad_token_id": 0}),
    "Qwen3 14B": ("qwen3", _QWEN | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 17408}),
    "Qwen3 32B": ("qwen3", _QWEN | {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "intermediate_size": 25600}),
}  # fmt: skip
"""The type of each model in transformers, and its shape, from the configuration that its makers publish."""


def main() -> int:
    """Write the table into the pages, or with `--check` only compare it; returns the exit code."""
    table = "\n".join(rows())
    wrong = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = with_table(text, table)
        if made != text and "--check" in sys.argv[1:]:
            wrong = 1
            print(f"docs/{page.name} is not what the formula says; run python docs/hardware_page.py", file=sys.stderr)
        elif made != text:
            page.write_text(made, encoding="utf-8")
    return wrong


def with_table(text: str, table: str) -> str:
    """Return a page with the table between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    assert start and end, "the page has lost the markers of its table"
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def rows() -> Iterator[str]:
    """The lines of the table: predicted memory of training, and the smallest card that is large enough."""
    yield "| model | " + " | ".join(f"`{base}`: GiB | card" for base in BASES) + " |"
    yield "|---|" + "---|---|" * len(BASES)
    for name, (kind, shape) in MODELS.items():
        cells = [cell for gib in predictions(kind, shape) for cell in (f"{gib:.1f}", card(gib))]
        yield f"| {name} | " + " | ".join(cells) + " |"


def predictions(kind: str, shape: dict[str, object]) -> Iterator[float]:
    """The predicted peak of training in GiB, for each type of the base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from spantune.core import parse_config
    from spantune.training import estimate

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{"tie_word_embeddings": False} | shape))
    for base in BASES:
        recipe = parse_config(
            {
                "model": {"source": name_of(kind), "base": base},
                "task": {"preset": "cmeee"},
                "data": {"train": "corpus.jsonl"},
                "lora": {"rank": RANK},
            }
        )
        yield estimate.predict_memory(model, recipe, torch.device("cuda"), PACK_TOKENS).total_gib


def name_of(kind: str) -> str:
    """A source for the recipe, which is not opened."""
    return f"hf:any/{kind}"


def card(gib: float) -> str:
    """The smallest card that holds `gib`."""
    return next((f"{size} GB" for size in CARDS if gib < SHARE * size), "–")


if __name__ == "__main__":
    sys.exit(main())
