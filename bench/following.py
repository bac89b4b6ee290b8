"""Decoding that is forced to write given answers, so that speed can be measured without a trained model.

`Follower` raises the logit of the gold token before the decoder chooses. Everything else is computed as usual. With
`bursts`, the forced tokens come from a record instead of from grammars; the difference in time is the cost of grammars.
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
from spantune.extraction import Allowed, Decoder, Extractor, Guide, Row, constraint_of
from spantune.extraction.choosing import Chooser
from spantune.extraction.writing import Writer
from spantune.models import vocabulary_size

RAISED = 1e4

Gold = dict[str, list[int]]  # token ids of the answer and the stop token, by document id


class TimeUp(BaseException):
    """The time of a measurement is over.

    It is no `Exception`, because a decoder treats an `Exception` as a failed pass and continues.
    """


class Seen:
    """What a decoder did: its passes, the seconds that the host waited, and the time of the first entity."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, Any]] = []  # (tokens, seconds); on a GPU a pair of CUDA events in place of seconds
        self.waited = 0.0
        self.until = float("inf")  # a `time.monotonic` value; a later pass raises TimeUp
        self.watches_first, self.first = False, None

    def by_width(self) -> dict[int, tuple[int, float]]:
        """Return the number of passes and their seconds by width.

        The width is the tokens of a pass, rounded up to a power of two, or above 32 to a multiple of 64.
        """
        found: dict[int, tuple[int, float]] = {}
        for tokens, took in self.passes:
            width = -(-tokens // 64) * 64 if tokens > 32 else max(1, 1 << (tokens - 1).bit_length())
            seconds = took if isinstance(took, float) else took[0].elapsed_time(took[1]) / 1000
            count, total = found.get(width, (0, 0.0))
            found[width] = (count + 1, total + seconds)
        return dict(sorted(found.items()))

    def computing(self) -> float:
        """Return the seconds in which the device computed passes."""
        return sum(seconds for _, seconds in self.by_width().values())

    def between(self) -> float:
        """Return the seconds between the passes, in which the GPU was idle."""
        pairs = zip(self.passes, self.passes[1:], strict=False)
        return sum(max(0.0, before[1].elapsed_time(after[0])) for (_, before), (_, after) in pairs) / 1000


class Follower(Extractor):
    """An Extractor that records its work in `seen` and writes the answers of `gold`, if they are set.

    `bursts` are the forced tokens after each chosen token, by document id. If they are set, no grammar is used.
    """

    gold: Gold | None = None
    bursts: dict[str, list[list[int]]] | None = None

    def _writer(self) -> Writer:
        self.seen = Seen()
        return FollowingWriter(self, super()._writer())


class FollowingWriter(Writer):
    """A Writer with a FollowingDecoder."""

    def __init__(self, tool: Follower, plain: Writer):
        self.__dict__.update(plain.__dict__)
        self.tool = tool

    def wake(self) -> None:
        """Make the cache and the decoder if they do not exist yet."""
        if self._decoder is None:
            super().wake()
            assert self._decoder is not None
            self._decoder = FollowingDecoder(self.tool, self._decoder)


class FollowingDecoder(Decoder):
    """A Decoder that chooses the gold tokens and records its passes."""

    def __init__(self, tool: Follower, plain: Decoder):
        self.__dict__.update(plain.__dict__)
        self.tool, self._feed, self._replay = tool, self._forward.feed, self._forward._replay
        self._chooser = FollowingChooser(tool, self._chooser)
        self._forward.feed = self._timed_feed  # type: ignore[method-assign]
        if self._forward.pipelined:
            self._forward._replay = self._timed_replay  # type: ignore[method-assign]

    def _timed_feed(self, parts: Sequence[Any], output_parts: Sequence[int]) -> Tensor:
        if time.monotonic() > self.tool.seen.until:
            raise TimeUp
        tokens, began = sum(len(part.ids) for part in parts), time.perf_counter()
        output = self._feed(parts, output_parts)
        took = self._events if self._forward.pipelined else time.perf_counter() - began
        self.tool.seen.passes.append((tokens, took))
        return output

    def _timed_replay(self, width: int) -> Tensor:
        """Replay a prepared pass between two CUDA events, so that its preparation on the host is not timed."""
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._events[0].record()
        output = self._replay(width)
        self._events[1].record()
        return output

    def _guide(self, row: Row) -> Any:
        return super()._guide(row) if self.tool.bursts is None else _Record(self.tool.bursts[row.document.id])

    def _advance(self, row: Row, token: int, logprob: float) -> Any:
        status, seen = super()._advance(row, token, logprob), self.tool.seen
        watches = seen.watches_first and seen.first is None
        if watches and self._encoder.format.mark in self._encoder.decode(row.pending):
            seen.first = time.perf_counter()
        return status


class FollowingChooser(Chooser):
    """A Chooser that chooses the gold tokens."""

    def __init__(self, tool: Follower, plain: Chooser):
        self.__dict__.update(plain.__dict__)
        self.tool = tool

    def _chosen(self, allowed: Any, output: Tensor) -> Any:
        """Choose a token for each row and record how long the host waits; without a grammar, raise the gold logits."""
        began = time.perf_counter()
        if isinstance(allowed, list):
            gold = torch.tensor(allowed).to(output.device, non_blocking=True)
            output = output.scatter_add(1, gold[:, None], torch.full_like(output[:, :1], RAISED))
            allowed = None
        chosen = super()._chosen(allowed, output)
        self.tool.seen.waited += time.perf_counter() - began
        return chosen

    def allowed(self, rows: Sequence[Row]) -> Any:
        """Return what each row may choose: only the gold token, and nothing if the grammar forbids it.

        Without a grammar this is a list of the gold ids.
        """
        if self._rules.constraint is None:
            return self._next(rows) if self.tool.gold is not None else None
        if self.tool.bursts is not None:
            ids = np.array(self._next(rows))[:, None]
            return Allowed(ids, np.ones_like(ids, dtype=bool))
        allowed = super().allowed(rows)
        if self.tool.gold is None or allowed is None:
            return allowed
        return Allowed(allowed.ids, allowed.inside & (allowed.ids == np.array(self._next(rows))[:, None]))

    def _next(self, rows: Sequence[Row]) -> list[int]:
        assert self.tool.gold is not None
        return [self.tool.gold[row.document.id][len(row.ids)] for row in rows]


class _Record:
    is_circling = finished = False

    def __init__(self, bursts: Sequence[list[int]]):
        self._bursts: Iterator[list[int]] = iter(bursts)

    def advance(self, token: int) -> list[int]:
        return next(self._bursts)


def record(
    tool: Extractor, documents: Sequence[Document], gold: Gold
) -> tuple[list[Document], dict[str, list[list[int]]]]:
    """Return the documents whose gold answer the grammar allows, and the forced tokens after each chosen token.

    Returns:
        The documents; and by document id, one list of forced token ids for each token that the model chooses.
    """
    kept, bursts = [], {}
    constraint = constraint_of(tool.encoder.tokenizer, vocabulary_size(tool.model), tool.encoder.stop_id)
    for document in documents:
        guide = Guide(constraint, tool.encoder, document.text, ordered=tool.on_choices)
        answer, found, index = gold[document.id], [], 0
        while index < len(answer) - 1:
            if answer[index] not in constraint.allowed([guide.matcher]).ids[0]:
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
    """Return the bursts that would remain if prompt lookup drafted `size` tokens after each burst.

    The last two written tokens, or else the last one, are searched for in `text`; the tokens that follow there are
    the draft. Correct draft tokens are taken as if they were forced. Wrong drafts and their verification cost
    nothing here, so the result is an upper bound of what prompt lookup could gain.
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
            following += 1  # a draft that ends inside a burst is completed by the grammar
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
    """A logits processor that raises the gold token of each row, and the stop token after the end of its answer."""

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
    """Return the token ids that transformers' `generate` writes, greedily, in one left-padded batch.

    With `gold`, the answers in it are written. The stop token is not part of the result.
    """
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
