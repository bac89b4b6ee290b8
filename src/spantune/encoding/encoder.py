"""Encode documents as token ids with a loss mask, in the same way for training and for extraction.

An example is the ids of the prompt, made with the tokenizer's own chat template, followed by the ids of the answer and
the stop token. Extraction feeds the same prompt ids. Only the answer and the stop token have loss. Nothing is
truncated: a document that is too long is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spantune.core import DataError, Document, ModelError, TaskSpec, foreign, track, visible
from spantune.data import Bin, histogram
from spantune.encoding.answers import answer_format
from spantune.encoding.chat import render_chat
from spantune.encoding.prompts import messages, tutorial_prompt
from spantune.encoding.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

_PROBE = "文本 text"


@dataclass(frozen=True, slots=True)
class Example:
    """The token ids of one document; `ids[answer_start:]` are the answer and the stop token, which have loss.

    `choices` is None unless the loss is on choices only. It then maps the index in `ids` of each answer token that the
    grammar does not force to the ids that the grammar allows there, in ascending order.
    """

    id: str
    ids: tuple[int, ...]
    answer_start: int
    choices: Mapping[int, tuple[int, ...]] | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids that extraction feeds to the model."""
        return self.ids[: self.answer_start]


class Encoder:
    """Turns documents into examples under one tokenizer and one task.

    Args:
        tokenizer: a fast tokenizer of transformers with a chat template.
        task: the labels, the instruction and the answer format.
        max_tokens: the most tokens of prompt and answer together; None for no limit.

    Attributes:
        copies: how many times a prompt contains its text: 1.
        stop_id: the id of the token that ends an answer.

    Raises:
        ModelError: the tokenizer has no chat template or no stop token, or its template drops the instruction or the
            text.
    """

    def __init__(self, tokenizer: Tokenizer, task: TaskSpec, max_tokens: int | None = None):
        self.tokenizer, self.task, self.max_tokens = tokenizer, task, max_tokens
        self.format = answer_format(task)
        self.copies = 1
        self._last: tuple[str | None, list[int]] = (None, [])
        if task.template == "chat" and not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template; give an instruction-tuned model, or add chat_template.jinja "
                "to the model folder"
            )
        self._system = task.template == "tutorial" or self._keeps_system_role()
        self._special = special_ids(tokenizer)
        self._frame = sum(token in self._special for token in self._ids(self.render_prompt(_PROBE)))
        self.stop_id = self._find_stop()

    def render_prompt(self, text: str) -> str:
        """Return the prompt for `text` as one string, up to the start of the answer."""
        if self.task.template == "tutorial":
            return tutorial_prompt(self.task, text)
        return self._template(messages(self.task, text, self._system), add_generation_prompt=True)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of the prompt for `text`.

        The name of a special token in the text is encoded as plain text. The ids of the last text are cached, since a
        text is encoded once to see whether it fits, and again to be decoded.

        Raises:
            ModelError: the tokenizer cannot encode the text.
        """
        last_text, last_ids = self._last
        if text != last_text:
            last_ids = self._prompt_ids(text)
            self._last = text, last_ids
        return list(last_ids)

    def _prompt_ids(self, text: str) -> list[int]:
        ids = self._ids(self.render_prompt(text))
        if len([token for token in ids if token in self._special]) != self._frame:
            head, tail = self.render_prompt("\0").split("\0")
            inner = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = [*self._ids(head), *inner, *self._ids(tail)]
        return ids

    def answer_ids(self, document: Document) -> list[int]:
        """Return the token ids of the gold answer, with the stop token."""
        ids: list[int] = []
        for piece in self.format.pieces(self.format.render(document, self.task)):
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.stop_id]

    def example(self, document: Document) -> Example:
        """Encode an annotated document.

        Raises:
            DataError: the document takes more than `max_tokens` tokens, or has a label that the task does not have.
        """
        self.task.check([document])
        prompt = self.prompt_ids(document.text)
        ids = (*prompt, *self.answer_ids(document))
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise DataError(
                f"document {document.id!r} takes {len(ids)} tokens (prompt {len(prompt)}, answer "
                f"{len(ids) - len(prompt)}), over train.max_tokens={self.max_tokens}; raise it, or set "
                "data.too_long=split to split at sentence ends"
            )
        return Example(document.id, ids, len(prompt))

    def fits(self, document: Document) -> bool:
        """Whether prompt and answer of `document` have at most `max_tokens` tokens."""
        size = len(self.prompt_ids(document.text)) + len(self.answer_ids(document))
        return self.max_tokens is None or size <= self.max_tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Return the exact text that the ids of an answer spell, special tokens included."""
        # transformers is not used: with some tokenizers its clean-up removes spaces, so that a mention would no longer
        # occur in its text. It also looks at every id in Python first, which takes longer than decoding.
        return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def _ids(self, text: str) -> list[int]:
        backend = self.tokenizer.backend_tokenizer
        with foreign("the tokenizer", "it cannot encode a text", "restore tokenizer.json"):
            if backend.padding is None and backend.truncation is None and not backend.encode_special_tokens:
                # transformers would encode a batch of one in many threads, which wait for each other.
                return list(backend.encode(text, add_special_tokens=False).ids)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _template(self, chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        # enable_thinking=False: otherwise the templates of reasoning models begin the answer with a block of reasoning.
        return render_chat(self.tokenizer, chat, add_generation_prompt=add_generation_prompt, enable_thinking=False)

    def _keeps_system_role(self) -> bool:
        """Whether the template renders a system turn; some templates refuse or drop it.

        Raises:
            ModelError: the template does not render instruction and text, with or without a system turn.
        """
        failure: ModelError | None = None
        for system in (True, False):
            try:
                prompt = self._template(messages(self.task, _PROBE, system), add_generation_prompt=True)
            except ModelError as error:  # a template may refuse the system role
                failure = error
                continue
            if self.task.instruction.strip() in prompt and _PROBE in prompt:
                return system
        why = f": {failure}" if failure else "; mend the template"
        raise ModelError(f"the tokenizer's chat template renders neither the instruction nor the text{why}")

    def _find_stop(self) -> int:
        """Return the special token that the template puts after an answer, or else the end-of-sequence token."""
        eos = self.tokenizer.eos_token_id
        if self.task.template == "chat":
            chat = messages(self.task, _PROBE, self._system)
            prompt = self._template(chat, add_generation_prompt=True)
            whole = self._template([*chat, {"role": "assistant", "content": "{}"}], add_generation_prompt=False)
            if whole.startswith(prompt + "{}"):
                after = self._ids(whole[len(prompt) + 2 :])
                if after and after[0] in self._special:
                    return after[0]
        if eos is None:
            raise ModelError("the tokenizer has neither a stop token in its chat template nor an EOS token; set one")
        return eos


def coloured(ids: Sequence[int], tokenizer: Tokenizer, prefix: int, last_part: int) -> Text:
    """Return tokens as a rich Text: dim for the first `prefix` tokens, then cyan, and green from `last_part` on."""
    from rich.text import Text

    dump = Text()
    for index, token in enumerate(ids):
        style = "dim" if index < prefix else ("bold green" if index >= last_part else "cyan")
        piece = visible(tokenizer.decode([token]).replace("\n", "⏎\n"), lines=True)
        dump.append(piece, style=style)
        dump.append("·", style="bright_black")
    return dump


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of the special tokens, which stand for no text."""
    with foreign("the tokenizer", "its special tokens cannot be read", "restore tokenizer_config.json"):
        added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        return {*tokenizer.all_special_ids, *added}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The number of tokens of all texts and of the longest text, and a histogram over texts.

    If a task was given, `examples` is a histogram over examples (prompt, answer and stop token), and the shares say
    which part of the tokens of all examples belongs to the instruction, the text and the answer, from 0 to 1.
    """

    total: int
    longest: int
    texts: tuple[Bin, ...]
    examples: tuple[Bin, ...] = ()
    instruction_share: float | None = None
    text_share: float | None = None
    answer_share: float | None = None


def count_tokens(documents: Sequence[Document], tokenizer: Tokenizer, task: TaskSpec | None = None) -> Tokens:
    """Count the tokens of `documents`, and of their examples if `task` is given.

    Raises:
        ModelError: a task is given, and the tokenizer cannot be used for it; see `Encoder`.
        DataError: a document has a label that the task does not have.
    """
    texts = [
        len(tokenizer(document.text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for document in track(documents, "count", len(documents))
    ]
    counted = Tokens(sum(texts), max(texts, default=0), histogram(texts))
    if task is None or not texts:
        return counted
    encoder = Encoder(tokenizer, task)
    examples = [encoder.example(document) for document in track(documents, "encode", len(documents))]
    whole = sum(len(example.ids) for example in examples)
    answers = sum(len(example.ids) - example.answer_start for example in examples)
    return Tokens(
        total=counted.total,
        longest=counted.longest,
        texts=counted.texts,
        examples=histogram(len(example.ids) for example in examples),
        instruction_share=round((whole - answers - counted.total) / whole, 4),
        text_share=round(counted.total / whole, 4),
        answer_share=round(answers / whole, 4),
    )
