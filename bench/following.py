"""Decoding that writes given answers, whatever the model would say: real work without a trained model.

`Follower` raises the gold token before the grammar's choice, so that everything else is computed as always. `Replayer`
takes the forced tokens from a record instead of from grammars: the difference in time is what grammars cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from spantune.core import Document
from spantune.encoding import Encoder
from spantune.extraction import Allowed, Decoder, Extractor, Forward, Guide, Row

RAISED = 1e4

Gold = dict[str, list[int]]  # ids of the answer and the stop token, by document id


class Follower(Extractor):
    """An Extractor that writes the answers of `gold`."""

    gold: Gold

    def _decoder(self, forward: Forward) -> Decoder:
        plain = super()._decoder(forward)
        return FollowingDecoder(self, plain)


class FollowingDecoder(Decoder):
    """Chooses the gold token; notes which tokens were forced, and when the first entity was written."""

    def __init__(self, tool: Follower, plain: Decoder):
        self.__dict__.update(plain.__dict__)
        self.tool = tool

    def _next(self, rows: Sequence[Row]) -> list[int]:
        return [self.tool.gold[row.document.id][len(row.ids)] for row in rows]

    def _choose(self, rows: Sequence[Row], found: Tensor) -> Any:
        if self._rules.constraint is None:
            gold = torch.tensor(self._next(rows)).to(found.device, non_blocking=True)
            found = found.scatter_add(1, gold[:, None], torch.full_like(found[:, :1], RAISED))
        return super()._choose(rows, found)

    def _allowed(self, rows: Sequence[Row]) -> Allowed:
        allowed = super()._allowed(rows)
        return Allowed(allowed.ids, allowed.inside & (allowed.ids == np.array(self._next(rows))[:, None]))


class Replayer(Follower):
    """A Follower without grammars: `bursts` are the forced tokens behind each chosen one, by document id."""

    bursts: dict[str, list[list[int]]]

    def _decoder(self, forward: Forward) -> Decoder:
        return ReplayingDecoder(self, super(Follower, self)._decoder(forward))


class ReplayingDecoder(FollowingDecoder):
    """Advances rows by their record."""

    tool: Replayer

    def _guide(self, row: Row) -> Any:
        return _Record(self.tool.bursts[row.document.id])

    def _allowed(self, rows: Sequence[Row]) -> Allowed:
        ids = np.array(self._next(rows))[:, None]
        return Allowed(ids, np.ones_like(ids, dtype=bool))


class _Record:
    circling = finished = False

    def __init__(self, bursts: Sequence[list[int]]):
        self._bursts: Iterator[list[int]] = iter(bursts)

    def advance(self, token: int) -> list[int]:
        return next(self._bursts)


class FirstEntity(FollowingDecoder):
    """Notes when the first entity of a stream was written."""

    at: float | None = None

    def _advance(self, row: Row, token: int, logprob: float) -> str:
        status = super()._advance(row, token, logprob)
        if self.at is None and self._encoder.format.mark in self._encoder.decode(row.pending):
            self.at = time.perf_counter()
        return status


def record(
    tool: Extractor, documents: Sequence[Document], gold: Gold
) -> tuple[list[Document], dict[str, list[list[int]]]]:
    """The documents whose gold answer the grammar allows, and the tokens that it forces behind each chosen one."""
    kept, bursts = [], {}
    for document in documents:
        assert tool._constraint is not None
        guide = Guide(tool._constraint, tool.encoder, document.text, ordered=tool.on_choices)
        answer, found, index = gold[document.id], [], 0
        while index < len(answer) - 1:
            if answer[index] not in tool._constraint.allowed([guide.matcher]).ids[0]:
                break
            forced = guide.advance(answer[index])
            found.append(forced)
            index += 1
            if answer[index : index + len(forced)] != forced:
                break
            index += len(forced)
        if index == len(answer) - 1:
            kept.append(document)
            bursts[document.id] = found
    return kept, bursts


def drafted(gold: Sequence[int], bursts: Sequence[list[int]], text: Sequence[int], size: int) -> list[list[int]]:
    """The bursts, if `size` tokens were drafted from the text behind each and those that are right were taken.

    What was written last, two tokens or else one, is looked for in the text, and what follows there is the draft. Wrong
    drafts and their checking cost nothing here: a bound for what prompt lookup can bring.
    """
    starts = [0]
    for burst in bursts:
        starts.append(starts[-1] + 1 + len(burst))
    merged, index = [], 0
    while index < len(bursts):
        end = starts[index + 1]
        right = end + _agreeing(_draft(gold[:end], text, size), gold[end:-1])
        following = index + 1
        while following < len(bursts) and starts[following + 1] <= right:
            following += 1
        if following < len(bursts) and starts[following] < right:
            following += 1  # the grammar forces the rest of its burst
        merged.append(list(gold[starts[index] + 1 : starts[following]]))
        index = following
    return merged


def _draft(written: Sequence[int], text: Sequence[int], size: int) -> Sequence[int]:
    for length in (2, 1):
        for start in range(len(text) - length):
            if list(text[start : start + length]) == list(written[-length:]):
                return text[start + length : start + length + size]
    return ()


def _agreeing(draft: Sequence[int], gold: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(draft, gold, strict=False)) if a != b), min(len(draft), len(gold)))


class _Following(LogitsProcessor):
    """Raises each row's gold token; past its end, the stop token."""

    def __init__(self, answers: Sequence[Sequence[int]], prompt: int, stop: int):
        longest = max(map(len, answers))
        self._ids = torch.tensor([[*answer, *[stop] * (longest - len(answer))] for answer in answers])
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._ids = self._ids.to(scores.device)
        gold = self._ids[:, input_ids.shape[1] - self._prompt, None]
        return scores.scatter_add(1, gold, torch.full_like(scores[:, :1], RAISED))


def generated(
    model: Any, encoder: Encoder, documents: Sequence[Document], gold: Gold | None, limit: int
) -> list[list[int]]:
    """The answers' ids by transformers' `generate`, greedy, in one left-padded batch; those of `gold` where given."""
    prompts = [encoder.prompt_ids(document.text) for document in documents]
    width = max(map(len, prompts))
    pad = encoder.tokenizer.pad_token_id if encoder.tokenizer.pad_token_id is not None else encoder.stop_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    answers = [gold[document.id] for document in documents] if gold else []
    follow = LogitsProcessorList([_Following(answers, width, encoder.stop_id)] if gold else [])
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            use_cache=True,
            max_new_tokens=max(map(len, answers)) if gold else limit,
            eos_token_id=encoder.stop_id,
            pad_token_id=pad,
            logits_processor=follow,
        )[:, width:].tolist()
    stop = encoder.stop_id
    return [row[: row.index(stop)] if stop in row else row for row in written]
