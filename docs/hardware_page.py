"""Keeps the table of models and GPUs in `hardware.md`, from the formula by which `spantune plan` predicts memory.

The models are made on torch's meta device from the shapes below, so nothing is downloaded. `--check` compares the page
with the formula and exits with 1 if they differ.

    python docs/hardware_page.py
    python docs/hardware_page.py --check
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PAGES = [Path(__file__).with_name(name) for name in ("hardware.md", "hardware.zh.md")]
START = "<!-- The table below is made by docs/hardware_page.py; do not edit. -->"
END = "<!-- End of the table. -->"
BASES = ("bf16", "fp8", "nf4")
CARDS = (8, 12, 16, 24, 32, 48, 80, 141)
"""Memory of common GPUs in GB; a run is said to fit with a tenth left over."""
SHARE = 0.9
RANK, PACK_TOKENS = 16, 4096


@dataclass(frozen=True)
class Shape:
    """The shape of a model, from the configuration that its makers publish; `kind` is its type in transformers."""

    kind: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    head_dim: int = 128
    pad_token_id: int = 0


MODELS = {
    "Qwen3 0.6B": Shape("qwen3", 1024, 28, 16, 8, 3072, 151936, tie_word_embeddings=True),
    "Qwen3 1.7B": Shape("qwen3", 2048, 28, 16, 8, 6144, 151936, tie_word_embeddings=True),
    "Qwen3 4B": Shape("qwen3", 2560, 36, 32, 8, 9728, 151936, tie_word_embeddings=True),
    "Llama 3.1 8B": Shape("llama", 4096, 32, 32, 8, 14336, 128256),
    "Qwen3 8B": Shape("qwen3", 4096, 36, 32, 8, 12288, 151936),
    "Phi-4 14B": Shape("phi3", 5120, 40, 40, 10, 17920, 100352),
    "Qwen3 14B": Shape("qwen3", 5120, 40, 40, 8, 17408, 151936),
    "Qwen3 32B": Shape("qwen3", 5120, 64, 64, 8, 25600, 151936),
}


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
    for name, shape in MODELS.items():
        yield row(name, shape)


def row(name: str, shape: Shape) -> str:
    """The line of a model."""
    cells = [cell for gib in predictions(shape) for cell in (f"{gib:.1f}", card(gib))]
    return f"| {name} | " + " | ".join(cells) + " |"


def predictions(shape: Shape) -> Iterator[float]:
    """The predicted peak of training in GiB, for each type of the base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from spantune.core import parse_config
    from spantune.training import estimate

    values = asdict(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("kind"), **values))
    for base in BASES:
        recipe = parse_config(
            {
                "model": {"source": "hf:any/model", "base": base},  # it is not opened
                "task": {"preset": "cmeee"},
                "data": {"train": "corpus.jsonl"},
                "lora": {"rank": RANK},
            }
        )
        yield estimate.predict_memory(model, recipe, torch.device("cuda"), PACK_TOKENS).total_gib


def card(gib: float) -> str:
    """The smallest card that holds `gib`."""
    return next((f"{size} GB" for size in CARDS if gib < SHARE * size), "–")


if __name__ == "__main__":
    sys.exit(main())
