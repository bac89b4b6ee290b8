"""Examples, packs and tiny models with adapters, for tests that compare losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import Document, Entity, Label, TaskSpec, config
from spantune.encoding import Encoder, Example, layout, shared_prefix
from spantune.models import attach
from spantune.training import PackTensors, tensors
from spantune.training.loss import hidden_states

FAMILIES = ["phi3", "llama", "qwen2", "qwen3", "smollm3", "mistral", "gemma3_text"]

# This template has no special token between instruction and text, so that BPE merges across their border.
PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

DOCUMENTS = [
    Document("a", "abcde has entity it", (Entity(0, 3, "dis"), Entity(10, 16, "sym"), Entity(17, 19, "dis"))),
    Document("b", "no entity at all"),
    Document("c", 'abdomen "肺炎" \\ and\nline <|im_end|>', (Entity(9, 11, "dis"), Entity(9, 10, "sym"))),
    Document("d", "\na", (Entity(1, 2, "sym"),)),
]


def examples(documents: Sequence[Document] = DOCUMENTS) -> list[Example]:
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.chat_template = PLAIN
    task = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find entities in it:")
    encoder = Encoder(tokenizer, task)
    return [encoder.example(document) for document in documents]


def packed(chosen: list[Example], prefix: tuple[int, ...] | None = None) -> PackTensors:
    if prefix is None:
        prefix = chosen[0].ids[: shared_prefix(chosen)]
    return PackTensors(**tensors(layout(prefix, chosen)))


def states_of(model: Any, chosen: list[Example]) -> list[Tensor]:
    """Return the hidden states at the answer tokens of each example; all examples are in one pack."""
    with torch.no_grad():
        states = hidden_states(model, packed(chosen), torch.float32)
    return list(states.split([len(example.ids) - example.answer_start for example in chosen]))


def adapted(family: str, **changes: Any) -> Any:
    """Return a model whose adapters are not zero, so that each of them has a gradient."""
    model, _ = attach(tiny_model(family, vocabulary=280, **changes), config.Lora(rank=4, alpha=8))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found
