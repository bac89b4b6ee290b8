"""Tiny random models that write answers, and a simple reference loop that gives the expected answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import Document, Label, TaskSpec, config
from spantune.encoding import Encoder, PartialAnswer
from spantune.extraction import Extractor, Forward, model_runner

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find entities.")

TEXTS = [
    "肺炎患者咳嗽",
    "no entity here",
    'a "quote" \\ and\nline <|im_end|> 肺',
    "",
    "abcab 👩‍⚕️ it",
    "肺",
    "糖尿病 (diabetes) 患者，ab abc",
    "x" * 30,
]

DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(TEXTS)]

LIMIT = 180


def lively_model(family: str, seed: int) -> Any:
    """Return a random model that does not stop at once; `seed` must be one that was found by trying."""
    model = tiny_model(family, vocabulary=280)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    return model


def encoder(task: TaskSpec = TASK, max_tokens: int | None = None) -> Encoder:
    return Encoder(byte_tokenizer(MERGES), task, max_tokens)


def extractor(
    model: Any, task: TaskSpec = TASK, max_tokens: int | None = None, *, on_choices: bool = False, **changes: Any
) -> Extractor:
    settings = config.Extract(**{"max_new_tokens": LIMIT, **changes})
    return Extractor(model, encoder(task, max_tokens), settings, on_choices=on_choices)


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[Forward]:
    """Return a list that gets every `Forward` made from now on."""
    made: list[Forward] = []

    def make(forward: Forward, *args: Any, **options: Any) -> None:
        real(forward, *args, **options)
        made.append(forward)

    real = Forward.__init__
    monkeypatch.setattr(Forward, "__init__", make)
    return made


@dataclass
class Plain:
    """The output of the reference loop: ids, log-probability of each chosen id (None if forced), and status."""

    ids: list[int] = field(default_factory=list)
    chosen: list[float | None] = field(default_factory=list)
    status: str = "length"


def plain_loop(model: Any, coder: Encoder, text: str, limit: int = LIMIT, *, on_choices: bool = False) -> Plain:
    """Decode one document without a cache: all ids are computed at every step, and forced tokens are appended."""
    import llguidance.hf
    from llguidance import LLMatcher

    known = llguidance.hf.from_tokenizer(coder.tokenizer, n_vocab=280, eos_token=coder.stop_id)
    said: PartialAnswer | None = None

    def fresh() -> Any:
        grammar = coder.format.grammar(text, coder.task, said)
        return matcher if grammar is None else LLMatcher(known, LLMatcher.grammar_from_lark(grammar))

    prompt, plain, matcher = coder.prompt_ids(text), Plain(), None
    matcher = fresh()
    while len(plain.ids) < limit:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + plain.ids]), use_cache=False).logits[0, -1].float()
        biases = torch.tensor(list(matcher.compute_logit_bias()))  # 0 for a forbidden token
        masked = logits.masked_fill(biases[: len(logits)] == 0, -math.inf)
        token = int(masked.argmax())
        if token == coder.stop_id:
            plain.status = "stopped"
            break
        matcher.consume_token(token)
        forced = [one for one in matcher.compute_ff_tokens() if one != coder.stop_id]  # ends a piece, or the answer
        matcher.consume_tokens(forced)
        plain.ids += [token, *forced]
        distribution = (masked if on_choices else logits).log_softmax(-1)
        plain.chosen += [float(distribution[token]), *([None] * len(forced))]
        answer = coder.tokenizer.decode(plain.ids)
        if coder.format.mark in coder.tokenizer.decode([token, *forced]):
            said = PartialAnswer(answer, coder.format.parse(answer, text, coder.task))
            if said.parsed.is_looping:
                plain.status = "repeated"
                break
            if on_choices or coder.task.answer == "inline":  # only text after the last entity may follow
                matcher = fresh()
        if matcher.is_stopped():
            plain.status = "stopped"
            break
    return plain


def room_at_rest(forward: Forward) -> int:
    """Return the free slots of a cache without open rows; the instruction takes whole pages."""
    page = model_runner.PAGE if forward.cache.slots.device.type == "cpu" else 1
    return forward.cache.capacity - -(-len(forward.instruction) // page) * page
