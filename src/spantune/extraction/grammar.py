"""Grammars at work: llguidance matchers over the model's tokenizer, one a document at a time.

A matcher says which tokens may come next and which must: what is decoded under it is an answer of the
format whose mentions are substrings of the document. llguidance never raises by itself; its errors are
turned into ours here. Grammars are compiled in threads of their own, while the model is at work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spantune.core import ModelError
from spantune.encoding import Encoder, PartialAnswer

THREADS = 8
UNSPELLABLE = "\uffff\ufffe"  # no characters, which no text has
FUEL = 1 << 30  # llguidance's own limits stop at texts of some hundred characters


class Allowed(NamedTuple):
    """Ids that may come next, ascending, a row each, and which of them count: the rest of a row fills it up."""

    ids: NDArray[np.int64]
    inside: NDArray[np.bool_]


class Constraint:
    """The tokenizer of a model as llguidance wants it; makes matchers and tells what they allow.

    Args:
        tokenizer: the fast tokenizer.
        vocabulary: size of the model's logits, which may be padded beyond the tokenizer's.
        stop: id of the token that ends an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, stop: int):
        from llguidance import LLExecutor, LLParserLimits, LLTokenizer

        self.stop, self.vocabulary = stop, vocabulary
        self.containing = cache(lambda sign: {index for token, index in tokenizer.get_vocab().items() if sign in token})
        self._tokenizer = LLTokenizer(_without_special_names(tokenizer), n_vocab=vocabulary, eos_token=stop)
        self._limits = LLParserLimits(
            initial_lexer_fuel=FUEL, step_lexer_fuel=FUEL, max_lexer_states=FUEL, verbose_errors=False
        )
        threads = min(THREADS, os.cpu_count() or 1)
        self._executor, self._compilers = LLExecutor(threads), ThreadPoolExecutor(threads)

    def matcher(self, grammar: str) -> Any:
        """A fresh matcher for a Lark grammar."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=self._limits)
        self._check(matcher)
        return matcher

    def compile(self, grammar: Callable[[], str]) -> Future[Any]:
        """As `matcher`, in another thread."""
        return self._compilers.submit(lambda: self.matcher(grammar()))

    def allowed(self, matchers: Sequence[Any]) -> Allowed:
        """What may come next of each matcher; there is at least one."""
        # not by llguidance.torch, whose kernel torch compiles: that takes seconds and needs a C++ compiler
        import llguidance.numpy as masks

        if not matchers:
            return Allowed(np.zeros((0, 0), np.int64), np.zeros((0, 0), np.bool_))
        words = masks.allocate_token_bitmask(len(matchers), self.vocabulary)
        masks.fill_next_token_bitmask_par(self._executor, [(m, row) for row, m in enumerate(matchers)], words)
        rows, places = words.nonzero()
        bits = np.unpackbits(words[rows, places].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        within, bit = bits.nonzero()
        ids, rows = places[within] * 32 + bit, rows[within]
        rows, ids = rows[ids < self.vocabulary], ids[ids < self.vocabulary]
        counts = np.bincount(rows, minlength=len(matchers))
        inside = np.arange(counts.max()) < counts[:, None]
        padded = np.zeros(inside.shape, np.int64)
        padded[inside] = ids
        return Allowed(padded, inside)

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


@lru_cache(maxsize=1)
def constraint_of(tokenizer: Any, vocabulary: int, stop: int) -> Constraint:
    """The Constraint of a tokenizer, kept for who asks next: to make one takes seconds where a vocabulary is large."""
    return Constraint(tokenizer, vocabulary, stop)


class Guide:
    """Follows the answer for one text under its grammar, and tells when it goes round in circles.

    Args:
        constraint: the tokenizer's side.
        encoder: the task's side.
        text: the text that is extracted from.
        ordered: whether the grammar is renewed after each entity to keep the answer in order; without, any entity may
            follow and `circling` says when what was said is said again and again. A grammar that ends with an entity is
            renewed either way.
    """

    def __init__(self, constraint: Constraint, encoder: Encoder, text: str, *, ordered: bool = True):
        self._constraint, self._encoder, self._text, self._ordered = constraint, encoder, text, ordered
        self._ids: list[int] = []
        self._closing = constraint.containing(encoder.format.mark)
        self.circling = False  # whether the objects that ended last only say what was said
        self._matcher = constraint.compile(lambda: encoder.format.grammar(text, encoder.task, None) or "")

    @property
    def matcher(self) -> Any:
        """The matcher of what may follow.

        Raises:
            ModelError: the grammar is too much for the engine.
        """
        return self._matcher.result()

    @property
    def finished(self) -> bool:
        """Whether it is known that nothing but the stop token may come next; a grammar may be being made."""
        return self._matcher.done() and bool(self.matcher.is_stopped())

    def advance(self, token: int) -> list[int]:
        """Take a chosen token; returns the tokens that the grammar forces after it, taken too."""
        forced = self._constraint.advance(self.matcher, token)
        ended = bool(forced) and forced[-1] == self._constraint.stop
        said = forced[:-1] if ended else forced
        self._ids += [token, *said]
        self.circling = False
        renewed = not self._closing.isdisjoint((token, *said)) and self._renew()
        return said if renewed else forced

    def choices(self, answer: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """What the grammar allows at each index of a gold answer (stop token included) where it leaves a choice.

        Raises:
            ModelError: the answer does not follow the grammar, or its tokens are not those that would be forced.
        """
        found: dict[int, tuple[int, ...]] = {}
        index = 0
        while index < len(answer):
            found[index] = tuple(self._constraint.allowed([self.matcher]).ids[0].tolist())
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

    def _renew(self) -> bool:
        """Where an object has just ended, go on with the grammar of what may follow it; says whether it is another."""
        encoder, text = self._encoder, self._text
        answer = encoder.decode(self._ids)
        said = PartialAnswer(answer, encoder.format.parse(answer, text, encoder.task))
        self.circling = said.parsed.is_looping
        renews = self._ordered or self.matcher.is_stopped()
        grammar = encoder.format.grammar(text, encoder.task, said) if renews else None
        if grammar is not None:
            self._matcher = self._constraint.compile(lambda: grammar)
        return grammar is not None


def _without_special_names(tokenizer: Any) -> str:
    """The tokenizer as JSON whose special tokens cannot be spelt out: in a text, their names are text."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    special = [token for token in tree["added_tokens"] if token["special"]]
    renamed = {token["content"]: UNSPELLABLE + token["content"] for token in special}
    for token in special:
        token["content"] = renamed[token["content"]]
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, dict):
        tree["model"]["vocab"] = {renamed.get(piece, piece): index for piece, index in vocabulary.items()}
    else:
        tree["model"]["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocabulary]
    return json.dumps(tree)
