"""Examples for reading spans, and tiny models with a span head, on any device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import Document, Entity, Label, TaskSpec, config
from spantune.encoding import SpanEncoder
from spantune.models import SpanPack, attach, attach_head, layout_spans, make_head, span_logits
from spantune.training.span_loss import zlpr

TASK = TaskSpec(
    labels=(Label(code="dis", name="disease", description="an illness"), Label(code="sym", name="symptom")),
    instruction="Find entities in it:",
    answer="spans",
    nested=True,
)
DOCUMENTS = [
    Document("a", "abcde has entity it", (Entity(0, 3, "dis"), Entity(10, 16, "sym"), Entity(17, 19, "dis"))),
    Document("b", "no entity at all"),
    Document("c", 'abdomen "肺炎" 👩‍⚕️ and\nline <|im_end|>', (Entity(9, 11, "dis"), Entity(9, 10, "sym"))),
    Document("empty", ""),
    Document("d", "\na", (Entity(1, 2, "sym"),)),
]


def spans_settings(**changes: Any) -> config.Spans:
    """Return settings of a small head without dropout."""
    return config.Spans(**{"longest": 12, "size": 32, "dropout": 0.0, **changes})


def span_encoder(settings: config.Spans, tokenizer: Any = None, task: TaskSpec = TASK) -> SpanEncoder:
    return SpanEncoder(tokenizer or byte_tokenizer(MERGES), task, settings)


def with_head(made: Any, settings: config.Spans, tokenizer: Any = None) -> Any:
    """Attach a head to the model, with random weights large enough for each to change the logits; return the model."""
    torch.manual_seed(5)
    head = make_head(made, tokenizer or byte_tokenizer(MERGES), TASK, settings)
    with torch.no_grad():
        head.types.mul_(50)
        head.pointer.weight.mul_(3)
    attach_head(made, head)
    return made


def reader(family: str = "phi3", settings: config.Spans | None = None, **changes: Any) -> Any:
    """Return a model in evaluation mode, with a head and with adapters that are not zero."""
    made, _ = attach(tiny_model(family, vocabulary=280, **changes), config.Lora(rank=4, alpha=8))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return with_head(made, settings or spans_settings()).eval()


def drawn_texts(count: int, longest: int = 80, seed: int = 0) -> list[Document]:
    """Draw documents of different lengths with random entities, some of them nested."""
    draw = random.Random(seed)
    documents = []
    for number in range(count):
        text = "".join(draw.choice("abcdeit 肺炎") for _ in range(draw.randrange(4, longest)))
        starts = draw.sample(range(len(text) - 3), min(3, len(text) - 3))
        spans = tuple(Entity(start, start + draw.randrange(1, 4), draw.choice(["dis", "sym"])) for start in starts)
        documents.append(Document(f"{seed}-{number}", text, spans))
    return documents


def span_pack(encoder: SpanEncoder, documents: Sequence[Document]) -> SpanPack:
    """Lay `documents` out as one pack."""
    return layout_spans([encoder.example(document) for document in documents], encoder.prefix, encoder.settings)


def logits_of(made: Any, pack: SpanPack) -> Tensor:
    """Return the logits of a pack, computed in the dtype of the model's weights, with a gradient."""
    is_half = made.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast(pack.ids.device.type, torch.bfloat16, enabled=is_half):
        return span_logits(made, pack, torch.bfloat16 if is_half else torch.float32)


def by_example(logits: Tensor, pack: SpanPack, sizes: Sequence[int]) -> list[Tensor]:
    """Return the logits [characters, width, types] of each text of a pack; spans outside of the text have 0."""
    inside = logits * pack.band.inside[:, :, None]
    return [inside[start : start + size] for start, size in zip(pack.starts.tolist(), sizes, strict=True)]


def span_step(made: Any, pack: SpanPack) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss of a pack, and the gradient of each trained weight by name."""
    made.zero_grad()
    loss = zlpr(logits_of(made, pack), pack)
    loss.backward()
    named = made.named_parameters()
    return loss.item(), {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def gradients_far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the largest ‖found - wanted‖ / ‖wanted‖ of three groups: adapters, pointer, rest of the head."""

    def joined(named: dict[str, Tensor], part: str) -> Tensor:
        kinds = {name: "lora" if "lora_" in name else "pointer" if "pointer" in name else "rest" for name in named}
        return torch.cat([named[name].flatten().float().cpu() for name in sorted(named) if kinds[name] == part])

    assert found.keys() == wanted.keys()
    pairs = [(joined(found, part), joined(wanted, part)) for part in ("lora", "pointer", "rest")]
    return max((torch.linalg.norm(a - b) / torch.linalg.norm(b)).item() for a, b in pairs)


def learnt(made: Any, packs: Sequence[SpanPack], steps: int, rate: float = 0.01) -> tuple[float, float]:
    """Train adapters and head with all `packs` in every step; return the first loss and the last one."""
    made.train()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        total = 0.0
        for pack in packs:
            loss = zlpr(logits_of(made, pack), pack)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    made.eval()
    return losses[0], losses[-1]
