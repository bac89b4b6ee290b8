"""Requests and responses of a completions server: the fields of OpenAI's protocol, and those of vLLM and llama.cpp.

Prompts are sent as token ids, so that a server cannot add tokens to them; the server's count of the prompt's tokens is
checked. Fields that only one kind of server knows are sent only to that kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeGuard

from spantune.core import ConfigError, ModelError, encodable, half_surrogate, nearest
from spantune.encoding import WRITINGS, Encoder, Tokenizer, gbnf
from spantune.extraction.remote.breaker import CONCURRENCY
from spantune.extraction.remote.client import Client, Overrun, Server

_OWNERS = {"vllm": "vllm", "llamacpp": "llamacpp"}
# A model's default settings may penalise repetition, which every answer needs.
_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "vllm": {"logprobs": 1, "return_token_ids": True, "repetition_penalty": 1.0},
    "llamacpp": {"logprobs": 1, "repeat_penalty": 1.0},
    "openai": {},
}

_ROUNDED = 1e-3  # a server may round a log-probability of 0 to a value up to this

# The answer formats for which each kind of server takes a grammar of the whole answer; `Guided` needs no such grammar.
GRAMMARS: Mapping[str, Collection[str]] = {
    "vllm": ("jsonl", "jsonl_seed", "grouped"),
    "llamacpp": tuple(WRITINGS),
    "openai": (),
}


_ABOUT = {"vllm": "version", "llamacpp": "props"}
"""The path at which each kind of server describes itself."""
VLLM_CONCURRENCY = 192
"""Requests at a time to vLLM, which does not state its `--max-num-seqs` (256 by default); more would only wait."""
MOST_SLOTS = 1024


@dataclass(frozen=True)
class Served:
    """The model on the server that answers.

    Args:
        model: its name.
        kind: the kind of the server: `vllm`, `llamacpp` or `openai`.
        window: the most tokens that the model takes; None if the server does not state it.
        version: the version of the server; empty if the server does not state it.
        slots: how many requests the server computes at a time; None if the server does not state it.
    """

    model: str
    kind: str = "openai"
    window: int | None = None
    version: str = ""
    slots: int | None = None

    @property
    def concurrency(self) -> int:
        """The number of requests at a time that suits the server."""
        return VLLM_CONCURRENCY if self.kind == "vllm" else self.slots or CONCURRENCY

    @property
    def engine(self) -> str:
        """The server's kind and version, in words."""
        name = {"vllm": "vLLM", "llamacpp": "llama.cpp"}.get(self.kind, "a server of OpenAI's protocol")
        return f"{name} {self.version}".strip()

    def gives_scores(self, *, on_choices: bool, has_grammar: bool) -> bool:
        """Whether the server's log-probabilities are of the kind that the run's scores are made of.

        For a run that was trained on whole answers, log-probabilities must be normalised over the whole vocabulary. For
        a run that was trained on choices, they must be normalised over the tokens that the grammar allows. vLLM gives
        the second kind under a grammar, since it applies the grammar's mask first, and the first kind without a
        grammar. llama.cpp gives the first kind, and is asked token by token where the second kind is needed; see
        `is_guided`.

        Args:
            on_choices: whether the run was trained with `train.loss_on=choices`.
            has_grammar: whether a grammar is sent.
        """
        return on_choices == has_grammar if self.kind == "vllm" else not on_choices or self.is_guided(on_choices)

    def is_guided(self, on_choices: bool) -> bool:
        """Whether this process follows the grammar, and the server only chooses tokens; see `Guided`."""
        return on_choices and self.kind == "llamacpp"


@dataclass(frozen=True)
class Answer:
    """A completion: its text, `finish` (`stop` or `length`), and its tokens if the server returns them.

    `ids` and `logprobs`, natural logarithms, have one value for each token, or are both empty.
    """

    text: str
    finish: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


def choose(models: Sequence[Mapping[str, object]], server: Server) -> Served:
    """Choose the model to ask from the server's descriptions of its models.

    Raises:
        ConfigError: the server does not have the model `server.model`, or that is None and there is not exactly one
            model.
    """
    by_name = {str(model["id"]): model for model in models}
    name = server.model
    if name is None:
        if len(by_name) != 1:
            names = ", ".join(by_name) or "no model"
            raise ConfigError(f"{server.url} serves {names}; name the one of this run with --model")
        name = next(iter(by_name))
    if name not in by_name:
        raise ConfigError(f"{server.url}: no model {name!r} there; {nearest(name, by_name)}")
    kind = _OWNERS.get(str(by_name[name].get("owned_by")), "openai")
    if server.grammar in _SETTINGS:
        kind = server.grammar
    windows = [size for model in models if isinstance(size := model.get("max_model_len"), int)]
    return Served(name, kind, min(windows, default=None))


def identify(served: Served, client: Client) -> Served:
    """Ask the server for its version and its number of slots; what it does not state stays unknown."""
    path = _ABOUT.get(served.kind)
    if path is None:
        return served
    about = client.about(path)
    version, slots = about.get("build_info" if served.kind == "llamacpp" else "version"), about.get("total_slots")
    return replace(
        served,
        version=encodable(version)[:40] if isinstance(version, str) else "",
        slots=slots if type(slots) is int and 0 < slots <= MOST_SLOTS else None,
    )


@dataclass(frozen=True)
class Question:
    """The prompt for a text, and the grammar of its answer if one is sent.

    Args:
        text: the text to extract from.
        encoder: the tokenizer and the task.
        max_tokens: the most tokens of the answer.
        grammar: the grammar in the Lark notation; None sends none.
        spelled: whether a grammar for llama.cpp forces text in the tokens of training; see `gbnf`.
    """

    text: str
    encoder: Encoder
    max_tokens: int
    grammar: str | None = None
    spelled: bool = False
    prompt: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.encoder.prompt_ids(self.text))

    def request(self, served: Served) -> dict[str, object]:
        """Return the body of the request to the server of `served`."""
        body: dict[str, object] = {
            "model": served.model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            **_SETTINGS[served.kind],
        }
        if served.kind == "vllm":
            body["stop_token_ids"] = [self.encoder.stop_id]
        if self.grammar is not None and served.kind == "vllm":
            body["structured_outputs"] = {"grammar": self.grammar}
        elif self.grammar is not None:
            body["grammar"] = gbnf(self.text, self.encoder.task, self._spell if self.spelled else None)
        return body

    def _spell(self, text: str) -> list[tuple[int, str]]:
        ids = self.encoder.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [(index, self.encoder.decode([index])) for index in ids]

    def read(self, response: object) -> Answer:
        """Read the answer of a response.

        Raises:
            ValueError: the response has no answer.
            Overrun: the answer has more tokens, characters or levels of brackets than an answer can have.
            ModelError: the server counts another number of tokens in the prompt than were sent.
        """
        body = response if isinstance(response, Mapping) else {}
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping) or "text" not in choice:
            raise ValueError(f"no completion in {str(response)[:80]!r}")
        text, finish = choice["text"], choice.get("finish_reason")
        if not isinstance(text, str) or finish not in ("stop", "length"):
            raise ValueError(f"an answer that ended for {finish!r}")
        self._check_size(choice, text)
        if half_surrogate(text) is not None:
            raise ValueError("an answer with half of a surrogate pair, which is not text")
        ids, logprobs = _tokens(choice)
        check_prompt(body, len(self.prompt))
        return Answer(text, finish, ids, logprobs)

    def _check_size(self, choice: Mapping[str, object], text: str) -> None:
        """Check, before an answer is parsed, that it is not larger than `max_tokens` allows.

        Raises:
            Overrun: it is larger.
        """
        logprobs = choice.get("logprobs")
        fields = logprobs if isinstance(logprobs, Mapping) else {}
        columns = [choice.get("token_ids"), fields.get("token_logprobs"), fields.get("content")]
        tokens = max(len(column) if isinstance(column, list) else 0 for column in columns)
        if tokens > self.max_tokens + 1:  # the stop token may be counted too
            raise Overrun(f"the server's answer has {tokens} tokens, where max_tokens={self.max_tokens} was asked for")
        most = self.max_tokens * longest_token(self.encoder.tokenizer)
        if len(text) > most:
            raise Overrun(
                f"the server's answer has {len(text)} characters, more than the {most} that max_tokens="
                f"{self.max_tokens} can spell"
            )
        if self.encoder.task.answer != "inline" and (levels := depth(text)) > MOST_LEVELS:
            raise Overrun(f"the server's answer is nested {levels} levels deep; an answer has 2")


def check_prompt(body: Mapping[str, object], tokens: int) -> None:
    """Check that a response counts the `tokens` of the prompt that were sent; a response without a count passes.

    Raises:
        ModelError: it counts another number.
    """
    usage = body.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if count not in (None, tokens):
        raise ModelError(
            f"the server counts {count} tokens in a prompt of {tokens}: it adds its own, or takes them for text; "
            "expected the run's model, which completes token ids as they are"
        )


MOST_LEVELS = 64
"""The most levels of nested brackets in an answer. An answer has two; without a grammar a model may write some more."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_OPENING, _CLOSING = frozenset("{["), frozenset("}]")


@cache
def longest_token(tokenizer: Tokenizer) -> int:
    """Return the number of characters of the longest token in the vocabulary."""
    return max(map(len, tokenizer.get_vocab()))


def depth(text: str) -> int:
    """Return how deep brackets are nested in `text`, not counting brackets in strings."""
    level = deepest = 0
    for character in _STRING.sub("", text):
        level += (character in _OPENING) - (character in _CLOSING and level > 0)
        deepest = max(deepest, level)
    return deepest


def _tokens(choice: Mapping[str, object]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the token ids and log-probabilities of a choice, in vLLM's or llama.cpp's fields.

    Both are empty if the response has none, or if they do not fit together.
    """
    logprobs = choice.get("logprobs")
    fields = logprobs if isinstance(logprobs, Mapping) else {}
    ids: object
    values: object
    if "content" in fields:
        rows = fields["content"] or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            return (), ()
        ids, values = [row.get("id") for row in rows], [row.get("logprob") for row in rows]
    else:
        ids, values = choice.get("token_ids") or [], fields.get("token_logprobs") or []
    if not _are_ids(ids) or not _are_logprobs(values) or len(ids) != len(values):
        return (), ()
    return tuple(ids), tuple(min(0.0, float(value)) for value in values)


def _are_ids(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _are_logprobs(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        type(value) in (int, float) and -1e9 <= value <= _ROUNDED for value in values
    )
