"""Grammars for decoding: an llguidance matcher for each document, over the model's tokenizer.

A matcher says which tokens may come next and which token is forced, so that the decoded answer has the answer format
and its mentions are substrings of the document. llguidance does not raise errors; this module reads its error states
and raises them as ModelError. Grammars are compiled in threads while the model runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spantune.core import ConfigError, ModelError, config, foreign
from spantune.encoding import Encoder, PartialAnswer, Tokenizer
from spantune.extraction.vocabulary import grammar_tokenizer, spelling_of

if TYPE_CHECKING:
    from llguidance import LLMatcher

THREADS = 8
FUEL = 1 << 30  # llguidance's default limits are too low for texts of a few hundred characters


def require_grammar(settings: config.Extract, *, on_choices: bool) -> None:
    """Check that a model that was trained with `train.loss_on=choices` is decoded under the grammar.

    Every use of such a model must call this: without the grammar its answers and figures mean nothing.

    Raises:
        ConfigError: `extract.grounded` is False and `on_choices` is True.
    """
    if on_choices and not settings.grounded:
        raise ConfigError(
            "extract.grounded is false (--free), and train.loss_on=choices trains a model that cannot answer without "
            "the grammar: what it writes and its F1 would mean nothing; keep extract.grounded=true, or train with "
            "train.loss_on=answer"
        )


class Allowed(NamedTuple):
    """The token ids that may come next: `ids` [rows, most], ascending, and `inside` [rows, most], False for padding.

    `most` is the largest number of allowed ids of a row.
    """

    ids: NDArray[np.int64]
    inside: NDArray[np.bool_]


class Constraint:
    """Makes matchers for a model's tokenizer, and says which tokens they allow.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: the size of the model's logits, which may be larger than the tokenizer's vocabulary.
        stop: the id of the token that ends an answer.
        threads: the number of threads that compile grammars and compute masks, at most the number of cores.
        source: `without_special_names(tokenizer)` if it is already known, since it takes seconds to compute.

    Raises:
        ModelError: llguidance cannot use the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, stop: int, threads: int = THREADS, source: str = ""):
        from llguidance import LLExecutor, LLParserLimits

        self.stop, self.vocabulary = stop, vocabulary
        self.containing = cache(lambda sign: {index for token, index in tokenizer.get_vocab().items() if sign in token})
        with foreign("the tokenizer", "no grammar can be followed with it", "restore tokenizer.json"):
            self._tokenizer = grammar_tokenizer(tokenizer, vocabulary, stop, source)
        self._limits = LLParserLimits(
            initial_lexer_fuel=FUEL, step_lexer_fuel=FUEL, max_lexer_states=FUEL, verbose_errors=False
        )
        threads = min(threads, os.cpu_count() or 1)
        self._executor = LLExecutor(threads)
        self._compilers = ThreadPoolExecutor(threads) if threads > 1 else None

    def matcher(self, grammar: str) -> LLMatcher:
        """Compile a grammar in the Lark notation.

        Raises:
            ModelError: llguidance cannot compile it.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=self._limits)
        self._check(matcher)
        return matcher

    def compile(self, grammar: Callable[[], str]) -> Future[LLMatcher]:
        """Compile a grammar as `matcher` does, in another thread if there are several; the future may hold an error."""
        if self._compilers is not None:
            return self._compilers.submit(lambda: self.matcher(grammar()))
        compiled: Future[LLMatcher] = Future()
        try:
            compiled.set_result(self.matcher(grammar()))
        except ModelError as error:
            compiled.set_exception(error)
        return compiled

    def allowed(self, matchers: Sequence[LLMatcher]) -> Allowed:
        """Return the tokens that may come next for each matcher; each has at least one."""
        # llguidance.torch is not used: torch compiles its kernel, which takes seconds and needs a C++ compiler.
        import llguidance.numpy as masks

        if not matchers:
            return Allowed(np.zeros((0, 0), np.int64), np.zeros((0, 0), np.bool_))
        words = masks.allocate_token_bitmask(len(matchers), self.vocabulary)
        if len(matchers) == 1:
            masks.fill_next_token_bitmask(matchers[0], words)
        else:
            masks.fill_next_token_bitmask_par(self._executor, [(m, row) for row, m in enumerate(matchers)], words)
        rows, columns = words.nonzero()
        bits = np.unpackbits(words[rows, columns].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        word, bit = bits.nonzero()
        ids, rows = columns[word] * 32 + bit, rows[word]
        rows, ids = rows[ids < self.vocabulary], ids[ids < self.vocabulary]
        counts = np.bincount(rows, minlength=len(matchers))
        inside = np.arange(counts.max()) < counts[:, None]
        padded = np.zeros(inside.shape, np.int64)
        padded[inside] = ids
        return Allowed(padded, inside)

    def advance(self, matcher: LLMatcher, token: int) -> list[int]:
        """Consume a chosen token and the tokens that the grammar forces after it; return the forced ones.

        Raises:
            ModelError: the grammar cannot be followed any further.
        """
        matcher.consume_token(token)
        forced: list[int] = matcher.compute_ff_tokens()
        if forced:
            matcher.consume_tokens(forced)
        self._check(matcher)
        return forced

    def _check(self, matcher: LLMatcher) -> None:
        error = matcher.get_error()
        if error:
            raise ModelError(f"the grammar cannot be followed with this tokenizer: {error}")


@lru_cache(maxsize=1)
def constraint_of(tokenizer: Tokenizer, vocabulary: int, stop: int) -> Constraint:
    """Return the Constraint of a tokenizer. The last one is cached, since a large vocabulary takes seconds."""
    return Constraint(tokenizer, vocabulary, stop)


class Guide:
    """Follows the answer for one text under its grammar, and detects an answer that only repeats itself.

    Args:
        constraint: makes the matchers.
        encoder: the tokenizer and the task.
        text: the text to extract from.
        ordered: whether a new grammar is made after each entity, so that entities come in the order of training. If
            False, any entity may follow another, and `is_circling` says when the answer only repeats itself. A new
            grammar is always made if the present one ends with an entity, and if the task is not nested.
    """

    def __init__(self, constraint: Constraint, encoder: Encoder, text: str, *, ordered: bool = True):
        self._constraint, self._encoder, self._text, self._ordered = constraint, encoder, text, ordered
        self._new_ids: list[int] = []  # the tokens after `_answer`, the part of the answer that is parsed
        self._answer, self._parse = "", encoder.format.growing(text, encoder.task)
        self._objects: set[str] = set()
        self._is_joined = spelling_of(encoder.tokenizer).is_known
        self._closing_ids = constraint.containing(encoder.format.mark)
        self.is_circling = False
        self._compiling = constraint.compile(lambda: encoder.format.grammar(text, encoder.task, None) or "")
        self._matcher: LLMatcher | None = None  # None until the grammar is compiled

    @property
    def matcher(self) -> LLMatcher:
        """The matcher for the rest of the answer.

        Raises:
            ModelError: the grammar exceeds llguidance's limits.
        """
        if self._matcher is None:
            self._matcher = self._compiling.result()
        return self._matcher

    @property
    def finished(self) -> bool:
        """Whether only the stop token may come next; False while a grammar is still being compiled."""
        return (self._matcher is not None or self._compiling.done()) and bool(self.matcher.is_stopped())

    def advance(self, token: int) -> list[int]:
        """Append a chosen token and the tokens that the grammar forces after it; return the forced ones.

        Raises:
            ModelError: the grammar cannot be followed any further.
        """
        forced = self._constraint.advance(self.matcher, token)
        ended = bool(forced) and forced[-1] == self._constraint.stop
        written = forced[:-1] if ended else forced
        self._new_ids += [token, *written]
        self.is_circling = False
        renewed = not self._closing_ids.isdisjoint((token, *written)) and self._renew()
        return written if renewed else forced

    def choices(self, answer: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Return the allowed ids at each index of a gold answer where the grammar does not force the token.

        Args:
            answer: the token ids of the answer, with the stop token.

        Raises:
            ModelError: the answer does not follow the grammar, or has other tokens than those that the grammar forces.
        """
        allowed_ids: dict[int, tuple[int, ...]] = {}
        index = 0
        while index < len(answer):
            allowed_ids[index] = tuple(self._constraint.allowed([self.matcher]).ids[0].tolist())
            if answer[index] not in allowed_ids[index]:
                raise ModelError(
                    f"the grammar does not allow the gold answer of {self._text!r} at its token {index}; set "
                    "train.loss_on=answer"
                )
            if answer[index] == self._encoder.stop_id:
                break
            forced = self.advance(answer[index])
            index += 1
            if list(answer[index : index + len(forced)]) != forced:
                raise ModelError(
                    f"the grammar forces other tokens than the tokenizer gives for the gold answer of {self._text!r}; "
                    "set train.loss_on=answer"
                )
            index += len(forced)
        return allowed_ids

    def _renew(self) -> bool:
        """After an entity, switch to the grammar for the rest of the answer; return whether there is a new grammar."""
        encoder, text = self._encoder, self._text
        written = encoder.decode(self._new_ids)
        answer = self._answer + written
        renews = self._ordered or not encoder.task.nested or self.matcher.is_stopped()
        if self._is_joined and not answer.endswith("\ufffd"):  # U+FFFD may be the first part of a character
            self._answer, self._new_ids = answer, []
            if not renews and self._is_new(written.strip()):
                return False
        partial = PartialAnswer(answer, self._parse(answer))
        self.is_circling = partial.parsed.is_looping
        grammar = encoder.format.grammar(text, encoder.task, partial) if renews else None
        if grammar is not None:
            self._compiling, self._matcher = self._constraint.compile(lambda: grammar), None
        return grammar is not None

    def _is_new(self, written: str) -> bool:
        """Whether the answer cannot be circling, because it ends with an object that was not written before.

        This can be said without parsing the answer only for a format that has one line for each entity.
        """
        is_new = self._encoder.format.incremental is not None and written not in self._objects
        self._objects.add(written)
        return is_new
