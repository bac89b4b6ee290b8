"""An answer whose tokens llama.cpp's server chooses one by one, under a grammar that this process follows.

A model that was trained on choices has learnt nothing about the tokens that the grammar forces. llama.cpp first tests
the most probable token against its grammar. Only if that fails does it apply the grammar to the whole vocabulary, which
is slow; with such a model that happens at nearly every token. So the server is asked only where the grammar leaves a
choice, and is told the allowed tokens. Forced tokens are sent with the next request, and the server computes only the
new part of the prompt. Entities come in the order of training, as in local decoding, and probabilities are normalised
over the allowed tokens, as the run's scores need.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

from spantune.core import Document, ModelError, Status
from spantune.encoding import Encoder, Tokenizer
from spantune.extraction.grammar import Constraint, Guide
from spantune.extraction.remote.client import Client, Refused
from spantune.extraction.remote.protocol import Served, check_prompt
from spantune.extraction.result import Written

if TYPE_CHECKING:
    from collections.abc import Iterator

BIAS = 200.0
"""Is added to the logits of allowed tokens: more than logits differ by, and small enough for float32's precision."""
LURE = 50.0
"""Is added to the logit of a lure besides `BIAS`, so that it is drawn; the others' ratios stay exact."""


@dataclass(frozen=True)
class Choice:
    """A request for the most probable of some tokens.

    Args:
        prompt: the tokens before the choice.
        allowed: the ids of the allowed tokens, two or more.
        slot: the server's slot that has computed the prompt so far; None for any slot.
        lure: the id of a token that is not allowed and is no part of a character. The server is made to draw it, since
            it gives no probabilities when it draws a token that is a part of a character.
    """

    prompt: Sequence[int]
    allowed: Sequence[int]
    slot: int | None = None
    lure: int | None = None

    def request(self, served: Served) -> dict[str, object]:
        """Return the body of the request."""
        biases = [[index, BIAS] for index in self.allowed]
        count = 1
        if self.lure is not None:
            biases.append([self.lure, BIAS + LURE])
            count = len(biases)
        return {
            "model": served.model,
            "prompt": list(self.prompt),
            "max_tokens": 1,
            "temperature": 1.0,
            "samplers": ["top_k"],  # no sampler that changes probabilities
            "top_k": len(biases),
            "logit_bias": biases,
            "logprobs": count,
            "post_sampling_probs": True,
            "cache_prompt": True,
            **({} if self.slot is None else {"id_slot": self.slot}),
        }

    def read(self, response: object) -> tuple[int, float] | None:
        """Return the most probable allowed token, and its log-probability among the allowed tokens.

        Returns None if the server drew a token that is a part of a character, since it then gives no probabilities.

        Raises:
            ValueError: the response does not answer this request.
            ModelError: the server counts another number of tokens in the prompt than were sent.
        """
        body = response if isinstance(response, Mapping) else {}
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping):
            raise ValueError(f"no completion in {str(response)[:80]!r}")
        check_prompt(body, len(self.prompt))
        logprobs = choice.get("logprobs")
        rows = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not rows:
            return None
        entries = rows[0].get("top_probs") if isinstance(rows, list) and isinstance(rows[0], Mapping) else None
        found = _probabilities(entries)
        found.pop(self.lure if self.lure is not None else -1, None)
        if not found or not found.keys() <= set(self.allowed):
            raise ValueError("no probabilities of the tokens that were allowed (`post_sampling_probs`)")
        token = max(found, key=lambda index: found[index])
        total = 1.0 if self.lure is None else sum(found.values())
        return token, min(0.0, math.log(found[token] / total))


def _probabilities(entries: object) -> dict[int, float]:
    """Return the probabilities above 0, by token id.

    Raises:
        ValueError: `entries` are not probabilities of tokens.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("no probabilities of tokens")
    pairs = [(entry.get("id"), entry.get("prob")) for entry in entries]
    if not all(type(index) is int and isinstance(value, int | float) and 0 <= value < 1.001 for index, value in pairs):
        raise ValueError("probabilities of tokens that are none")
    return {index: float(value) for index, value in pairs if value}


@dataclass
class _Answer:
    """The answer so far; a log-probability is None where the token was forced."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)

    def append(self, token: int, logprob: float, forced: Sequence[int]) -> None:
        self.ids += [token, *forced]
        self.logprobs += [logprob, *([None] * len(forced))]


class Guided:
    """Has a server choose the tokens of answers; may be used from several threads.

    Args:
        served: the model that is asked.
        encoder: the tokenizer and the task.
        constraint: makes the grammars.
        limit: the most tokens of an answer.
    """

    def __init__(self, served: Served, encoder: Encoder, constraint: Constraint, limit: int):
        self._served, self._encoder, self._constraint, self._limit = served, encoder, constraint, limit
        self._lures = _whole_tokens(encoder.tokenizer)
        self._slots: SimpleQueue[int] | None = None
        if served.slots is not None:
            self._slots = SimpleQueue()
            for slot in range(served.slots):
                self._slots.put(slot)

    def answer(self, client: Client, document: Document) -> Written:
        """Return the answer for a document.

        Raises:
            Refused: the server refuses one of its requests, or the grammar of the text cannot be followed.
            ModelError: the server is given up.
        """
        guide = Guide(self._constraint, self._encoder, document.text)
        prompt, answer = self._encoder.prompt_ids(document.text), _Answer()
        with self._slot() as slot:
            status: Status | None = None
            while status is None:
                with _of_the_grammar():
                    allowed = self._constraint.allowed([guide.matcher]).ids[0].tolist()
                token, logprob = allowed[0], 0.0
                if len(allowed) > 1:
                    token, logprob = self._choose(client, Choice([*prompt, *answer.ids], allowed, slot))
                with _of_the_grammar():
                    status = self._advance(guide, answer, token, logprob)
        return Written(self._encoder.decode(answer.ids), status, answer.ids, answer.logprobs)

    def _advance(self, guide: Guide, answer: _Answer, token: int, logprob: float) -> Status | None:
        """Append a token and the tokens that it forces; return the status if the answer ends, otherwise None."""
        stop = self._encoder.stop_id
        if token == stop:
            return Status.STOPPED
        forced = guide.advance(token)
        has_ended = bool(forced) and forced[-1] == stop
        answer.append(token, logprob, forced[:-1] if has_ended else forced)
        if guide.is_circling:
            return Status.REPEATED
        if has_ended or guide.finished:
            return Status.STOPPED
        return Status.LENGTH if len(answer.ids) >= self._limit else None

    def _choose(self, client: Client, choice: Choice) -> tuple[int, float]:
        chosen = client.complete(choice.request(self._served), choice.read)
        if chosen is not None:
            return chosen
        allowed = set(choice.allowed)
        lure = next((index for index in self._lures if index not in allowed), None)
        luring = Choice(choice.prompt, choice.allowed, choice.slot, lure)
        chosen = None if lure is None else client.complete(luring.request(self._served), luring.read)
        if chosen is None:
            raise Refused("the server gives no probability of a token that is a part of a character")
        return chosen

    @contextmanager
    def _slot(self) -> Iterator[int | None]:
        """Reserve a slot of the server for one document; None if the server does not state its number of slots."""
        if self._slots is None:
            yield None
            return
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)


@contextmanager
def _of_the_grammar() -> Iterator[None]:
    """Raise an error in the grammar of a text, such as one over llguidance's limits, as an error of that text."""
    try:
        yield
    except ModelError as error:
        raise Refused(str(error)) from None


def _whole_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens that are one printable ASCII character."""
    vocabulary, signs = tokenizer.get_vocab(), string.ascii_letters + string.digits + string.punctuation
    return [vocabulary[sign] for sign in signs if sign in vocabulary]
