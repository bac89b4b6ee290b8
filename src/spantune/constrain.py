"""Grammars at work: llguidance matchers over the model's tokenizer, one a document at a time.

A matcher says which tokens may come next and which must: what is decoded under it is an answer of the
format whose mentions are substrings of the document. llguidance never raises by itself; its errors are
turned into ours here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spantune.encode import Encoder
from spantune.errors import ModelError


class Constraint:
    """The tokenizer of a model as llguidance wants it; makes matchers and applies their masks.

    Args:
        tokenizer: the fast tokenizer.
        vocabulary: size of the model's logits, which may be padded beyond the tokenizer's.
        stop: id of the token that ends an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, stop: int):
        import llguidance.hf

        self.stop, self.vocabulary = stop, vocabulary
        self.closing = {index for token, index in tokenizer.get_vocab().items() if "}" in token}
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop)

    def matcher(self, grammar: str) -> Any:
        """A fresh matcher for a Lark grammar."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar))
        self._check(matcher)
        return matcher

    def apply(self, matchers: list[Any], logits: Tensor) -> None:
        """Set the logits [matchers, vocabulary] of forbidden tokens to minus infinity, in place."""
        # not by llguidance.torch, whose kernel torch compiles: that takes seconds and needs a C++ compiler
        import llguidance.numpy as masks

        mask = masks.allocate_token_bitmask(len(matchers), self.vocabulary)
        for row, matcher in enumerate(matchers):
            masks.fill_next_token_bitmask(matcher, mask, row)
        bits = np.unpackbits(mask.view(np.uint8), axis=1, count=self.vocabulary, bitorder="little")
        logits.masked_fill_(torch.from_numpy(bits).to(logits.device) == 0, float("-inf"))

    def allowed(self, matcher: Any) -> tuple[int, ...]:
        """The ids that may come next, in ascending order."""
        import llguidance.numpy as masks

        mask = masks.allocate_token_bitmask(1, self.vocabulary)
        masks.fill_next_token_bitmask(matcher, mask, 0)
        bits = np.unpackbits(mask.view(np.uint8), axis=1, count=self.vocabulary, bitorder="little")
        return tuple(bits[0].nonzero()[0].tolist())

    def advance(self, matcher: Any, token: int) -> list[int]:
        """Consume a chosen token; returns the tokens that the grammar forces after it, consumed too."""
        matcher.consume_token(token)
        forced: list[int] = matcher.compute_ff_tokens()
        if forced:
            matcher.consume_tokens(forced)
        self._check(matcher)
        return forced

    def _check(self, matcher: Any) -> None:
        error = matcher.get_error()
        if error:
            raise ModelError(f"the grammar cannot be followed with this tokenizer: {error}")


class Guide:
    """Follows the answer for one text under its grammar, renewed after each entity to keep the answer in order.

    Args:
        constraint: the tokenizer's side.
        encoder: the task's side.
        text: the text that is extracted from.
    """

    def __init__(self, constraint: Constraint, encoder: Encoder, text: str):
        self._constraint, self._encoder, self._text = constraint, encoder, text
        self._ids: list[int] = []
        self._stated = 0
        self.closed = False  # whether the answer ends with a whole object
        self.matcher = constraint.matcher(encoder.format.grammar(text, encoder.task, None))

    @property
    def finished(self) -> bool:
        """Whether nothing but the stop token may come next."""
        return bool(self.matcher.is_stopped())

    def advance(self, token: int) -> list[int]:
        """Take a chosen token; returns the tokens that the grammar forces after it, taken too."""
        forced = self._constraint.advance(self.matcher, token)
        self._ids += [token, *forced]
        self.closed = False
        if not self._constraint.closing.isdisjoint((token, *forced)):
            self._renew()
        return forced

    def choices(self, answer: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """What the grammar allows at each index of a gold answer (stop token included) where it leaves a choice.

        Raises:
            ModelError: the answer does not follow the grammar, or its tokens are not those that would be forced.
        """
        found: dict[int, tuple[int, ...]] = {}
        index = 0
        while index < len(answer):
            found[index] = self._constraint.allowed(self.matcher)
            if answer[index] not in found[index]:
                raise ModelError(
                    f"the grammar does not allow the gold answer of {self._text!r} at its token {index}; set "
                    "train.loss_on=answer"
                )
            if answer[index] == self._encoder.stop_id:
                break
            tokens = self.advance(answer[index])
            index += 1
            if list(answer[index : index + len(tokens)]) != tokens:
                raise ModelError(
                    f"the grammar forces other tokens than the tokenizer gives for the gold answer of {self._text!r}; "
                    "set train.loss_on=answer"
                )
            index += len(tokens)
        return found

    def _renew(self) -> None:
        """Where an object has just ended, go on with the grammar of what may follow it."""
        encoder = self._encoder
        answer = encoder.decode(self._ids)
        if not answer.endswith(encoder.format.end):
            return
        self.closed = True
        resolved = encoder.format.parse(answer, self._text, encoder.task).resolved
        if len(resolved) > self._stated:
            self._stated = len(resolved)
            self.matcher = self._constraint.matcher(
                encoder.format.grammar(self._text, encoder.task, resolved[-1].entity)
            )


def vocabulary_size(model: Any) -> int:
    """Width of the model's logits."""
    weight: Tensor = model.get_output_embeddings().weight
    return int(torch.Size(weight.shape)[0])
