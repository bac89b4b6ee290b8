"""Check that a model learns as well when its MLPs keep their activations for the backward pass in 8 bits.

    python bench/keep_curve.py                    about 5 minutes on two cores: 200 steps after 300 of pretraining
    python bench/keep_curve.py --steps 50 --pretrain 100 --text FILE

No small published model has its gate and up projections in one layer. Therefore a model of Phi-3's architecture with
four layers is trained on the bytes of the first half of a text. It is then frozen in FP8, and LoRA is trained over it
on the second half, with the same steps for each way of computing the MLPs. For each way the bench prints the mean loss
of all steps, and the largest difference from the way `one by one` over a block of 20 steps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from spantune.core import Keep

SHAPE = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ROWS, WIDTH, BLOCK = 8, 160, 20
WAYS: dict[str, Keep | None] = {"one by one": None, "fp8": "fp8", "no FP8": None}
"""What a fused MLP keeps for the backward pass; None where its layers are computed one by one."""


def main() -> None:
    """Train a base, then train an adapter over it in each way, and compare the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pretrain", type=int, default=300)
    parser.add_argument("--text", type=Path, help="UTF-8; the texts of the bundled corpus if not given")
    chosen = parser.parse_args()
    text = chosen.text.read_text(encoding="utf-8") if chosen.text else _bundled()
    data = torch.tensor(list(text.encode()[:1_500_000]))
    half, draw = len(data) // 2, torch.Generator().manual_seed(0)
    base = _base()
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-3)
    losses = [_step(base, optimizer, _batch(data[:half], draw)) for _ in _shown(range(chosen.pretrain), "pretraining")]
    print(f"base: loss {statistics.fmean(losses[-BLOCK:]):.3f} a byte after {chosen.pretrain} steps", flush=True)
    batches = [_batch(data[half:], draw) for _ in range(chosen.steps)]
    curves: dict[str, list[float]] = {}
    for way in WAYS:
        curves[way] = _curve(base, batches, way)
        pairs = list(zip(curves[way], curves["one by one"], strict=True))
        blocks = [pairs[first : first + BLOCK] for first in range(0, len(pairs), BLOCK)]
        apart = max((sum(a for a, _ in block) / sum(b for _, b in block) - 1 for block in blocks), key=abs)
        print(f"{way}: mean loss {statistics.fmean(curves[way]):.4f}, {BLOCK} steps differ by {apart:+.3%}", flush=True)


def _bundled() -> str:
    from spantune.data import read

    return "\n".join(document.text for document in read("bundled:clinical-zh-train"))


def _base() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **SHAPE), trust_remote_code=False)


def _batch(data: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(data) - WIDTH, (ROWS,), generator=draw)
    return torch.stack([data[start : start + WIDTH] for start in starts])


def _step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for weight in model.parameters() if weight.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _curve(base: Any, batches: list[torch.Tensor], way: str) -> list[float]:
    """Train LoRA over a copy of `base` and return the loss of each step."""
    from spantune.core import config
    from spantune.models import attach, decoder_layers, to_fp8
    from spantune.models.gated_mlp import fuse_mlps

    model = copy.deepcopy(base)
    if way != "no FP8":
        model = to_fp8(model, torch.device("cpu"), model.lm_head)
    torch.manual_seed(1)
    model, _ = attach(model, config.Lora(rank=16, alpha=32))
    keep = WAYS[way]
    for layer in decoder_layers(model) if keep else ():
        fuse_mlps(layer, keep)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    return [_step(model.train(), optimizer, batch) for batch in _shown(batches, way)]


def _shown(parts: Any, what: str) -> Any:
    """Yield the parts and print the progress to stderr."""
    for number, part in enumerate(parts, start=1):
        yield part
        if number % 50 == 0:
            print(f"{what}: step {number} of {len(parts)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
