"""What is sent to a completions server and what is read from it: OpenAI's fields, and those of vLLM and llama.cpp.

Prompts are token ids, so that a server can add nothing to them; that it did not is checked by its own count. What only
one kind of server takes is sent to that kind alone. It refuses a model that the server has not, and an answer that is
none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spantune.core import ConfigError, ModelError, half_surrogate, nearest
from spantune.encoding import WRITINGS, Encoder, gbnf
from spantune.extraction.remote.client import Server

_OWNERS = {"vllm": "vllm", "llamacpp": "llamacpp"}
# a model's own defaults may penalise repetition, which no answer would survive
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"logprobs": 1, "return_token_ids": True, "repetition_penalty": 1.0},
    "llamacpp": {"logprobs": 1, "repeat_penalty": 1.0},
    "openai": {},
}

_ROUNDED = 1e-3  # what a log-probability of 0 may be in a server's arithmetic

# answer formats with a grammar of the whole answer in a form that the server takes
GRAMMARS: Mapping[str, Collection[str]] = {
    "vllm": ("jsonl", "jsonl_seed", "grouped"),
    "llamacpp": tuple(WRITINGS),
    "openai": (),
}


@dataclass(frozen=True)
class Served:
    """The model that is asked: its name, the kind of server (`vllm`, `llamacpp` or `openai`) and its window."""

    model: str
    kind: str = "openai"
    window: int | None = None


@dataclass(frozen=True)
class Answer:
    """A completion; token ids and log-probabilities where the server gives them."""

    text: str
    finish: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


def choose(models: Sequence[Mapping[str, Any]], server: Server) -> Served:
    """The model to ask of those that the server names.

    Raises:
        ConfigError: the one that is wanted is not there, or none is wanted and there are several.
    """
    by_name = {str(model["id"]): model for model in models}
    wanted = server.model
    if wanted is None:
        if len(by_name) != 1:
            names = ", ".join(by_name) or "no model"
            raise ConfigError(f"{server.url} serves {names}; name the one of this run with --model")
        wanted = next(iter(by_name))
    if wanted not in by_name:
        raise ConfigError(f"{server.url}: no model {wanted!r} there; {nearest(wanted, by_name)}")
    kind = _OWNERS.get(str(by_name[wanted].get("owned_by")), "openai")
    if server.grammar in _SETTINGS:
        kind = server.grammar
    windows = [size for model in models if isinstance(size := model.get("max_model_len"), int)]
    return Served(wanted, kind, min(windows, default=None))


@dataclass(frozen=True)
class Question:
    """A text to be completed under the task of `encoder`, and the grammar of its answer where one is sent."""

    text: str
    encoder: Encoder
    max_tokens: int
    grammar: str | None = None
    prompt: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.encoder.prompt_ids(self.text))

    def request(self, served: Served) -> dict[str, Any]:
        """The body of the request to a server."""
        body = {
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
            body["grammar"] = gbnf(self.text, self.encoder.task)
        return body

    def read(self, response: Any) -> Answer:
        """The answer in a response.

        Raises:
            ValueError: it holds none.
            ModelError: the server counts other tokens in the prompt than were sent.
        """
        try:
            choice = response["choices"][0]
            text, finish = choice["text"], choice.get("finish_reason")
            if not isinstance(text, str) or finish not in ("stop", "length"):
                raise ValueError(f"an answer that ended for {finish!r}")
            if half_surrogate(text) is not None:
                raise ValueError("an answer with half of a surrogate pair, which is not text")
            counted = (response.get("usage") or {}).get("prompt_tokens")
            ids, logprobs = _tokens(choice)
        except (LookupError, TypeError, AttributeError):
            raise ValueError(f"no completion in {str(response)[:80]!r}") from None
        if counted not in (None, len(self.prompt)):
            raise ModelError(
                f"the server counts {counted} tokens in a prompt of {len(self.prompt)}: it adds its own, or takes them "
                "for text; expected the run's model, which completes token ids as they are"
            )
        return Answer(text, finish, ids, logprobs)


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities as vLLM gives them, or as llama.cpp does; nothing where they do not go together."""
    found = choice.get("logprobs") or {}
    if "content" in found:
        rows = found["content"] or []
        ids, logprobs = [row["id"] for row in rows], [row["logprob"] for row in rows]
    else:
        ids, logprobs = choice.get("token_ids") or [], found.get("token_logprobs") or []
    if len(ids) != len(logprobs) or not all(type(index) is int for index in ids):
        return (), ()
    if not all(type(value) in (int, float) and -1e9 <= value <= _ROUNDED for value in logprobs):
        return (), ()
    return tuple(ids), tuple(min(0.0, float(value)) for value in logprobs)
