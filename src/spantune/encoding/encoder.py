"""Documents to token ids and a loss mask, in the same way for training and for extraction.

An example is the ids of the prompt (the tokenizer's own chat template) followed by the ids of the answer and the stop
token; extraction feeds the same prompt ids. Only answer and stop token have loss. Nothing is truncated: a document that
is too long is an error that names it.
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
    """Token ids of one document; `ids[answer_start:]` are the answer and the stop token, which have loss.

    If the loss is on choices only, `choices` maps the index in `ids` of each answer token that the grammar does not
    force to the ids that the grammar allows there, in ascending order.
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
        task: the task.
        max_tokens: the most tokens of prompt and answer together; None for no limit.

    Attributes:
        copies: how often a prompt holds its text.

    Raises:
        ModelError: no chat template, a template that loses the instruction or the text, or no stop token.
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
        """Return the prompt for `text` as one string, up to the beginning of the answer."""
        if self.task.template == "tutorial":
            return tutorial_prompt(self.task, text)
        return self._template(messages(self.task, text, self._system), add_generation_prompt=True)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of the prompt for `text`; the name of a special token in the text is encoded as plain text.

        Those of the last text are remembered: a text is encoded to see whether it fits, and again to be decoded.
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
        """Return the ids of the gold answer and the stop token."""
        ids: list[int] = []
        for piece in self.format.pieces(self.format.render(document, self.task)):
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.stop_id]

    def example(self, document: Document) -> Example:
        """Encode an annotated document.

        Raises:
            DataError: it takes more than `max_tokens`, or has a label that is not the task's.
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
        """Whether prompt and answer of `document` stay within `max_tokens`."""
        size = len(self.prompt_ids(document.text)) + len(self.answer_ids(document))
        return self.max_tokens is None or size <= self.max_tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Return the exact text of an answer's ids."""
        # not by transformers: its clean-up of some tokenizers removes spaces, and then a mention would no longer occur
        # in its text; and it looks at every id in Python first, which takes longer than to decode them
        return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def _ids(self, text: str) -> list[int]:
        backend = self.tokenizer.backend_tokenizer
        with foreign("the tokenizer", "it cannot encode a text", "restore tokenizer.json"):
            if backend.padding is None and backend.truncation is None and not backend.encode_special_tokens:
                # transformers encodes a batch of one in many threads, which wait for each other
                return list(backend.encode(text, add_special_tokens=False).ids)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _template(self, chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        # enable_thinking: the templates of reasoning models begin with a block of reasoning unless it is False
        return render_chat(self.tokenizer, chat, add_generation_prompt=add_generation_prompt, enable_thinking=False)

    def _keeps_system_role(self) -> bool:
        """Whether the template renders a system turn; some templates refuse it, some drop it."""
        failure: ModelError | None = None
        for system in (True, False):
            try:
                prompt = self._template(messages(self.task, _PROBE, system), add_generation_prompt=True)
            except ModelError as error:  # a template may refuse the role
                failure = error
                continue
            if self.task.instruction.strip() in prompt and _PROBE in prompt:
                return system
        why = f": {failure}" if failure else "; mend the template"
        raise ModelError(f"the tokenizer's chat template renders neither the instruction nor the text{why}")

    def _find_stop(self) -> int:
        """Return the token that the template puts behind an answer, else the end-of-sequence token."""
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
    """Return tokens as a rich Text: the first `prefix` dim, then cyan, and green from the index `last_part` on."""
    from rich.text import Text

    dump = Text()
    for index, token in enumerate(ids):
        style = "dim" if index < prefix else ("bold green" if index >= last_part else "cyan")
        piece = visible(tokenizer.decode([token]).replace("\n", "⏎\n"), lines=True)
        dump.append(piece, style=style)
        dump.append("·", style="bright_black")
    return dump


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of the tokens that stand for no text."""
    with foreign("the tokenizer", "its special tokens cannot be read", "restore tokenizer_config.json"):
        added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        return {*tokenizer.all_special_ids, *added}


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of all texts and of the longest one, and a histogram over texts.

    With a task there is a histogram over `examples` (prompt, answer and stop token) too, and the shares of instruction,
    text and answer in the tokens of all examples.
    """

    total: int
    longest: int
    texts: tuple[Bin, ...]
    examples: tuple[Bin, ...] = ()
    instruction_share: float | None = None
    text_share: float | None = None
    answer_share: float | None = None


def count_tokens(documents: Sequence[Document], tokenizer: Tokenizer, task: TaskSpec | None = None) -> Tokens:
    """Count the tokens of `documents`, and with `task` those of their examples.

    Raises:
        ModelError: the tokenizer has no chat template, and a task is given.
        DataError: a document has a label that is not the task's.
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
