"""From documents to token ids and a loss mask, the same way for training and for serving.

An example is the ids of the prompt (the tokenizer's own chat template) followed by the ids of the
answer and the stop token; serving feeds the very same prompt ids. Only answer and stop carry loss.
Nothing is cut: what is too long is an error that names the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spantune.core import DataError, Document, ModelError, TaskSpec, track
from spantune.data import Bin, histogram
from spantune.encoding.answers import answer_format
from spantune.encoding.prompts import messages, tutorial_prompt

_PROBE = "文本 text"


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one document; `ids[answer_start:]` are the answer and the stop token, with loss.

    Where the loss is on choices only, `choices` maps the index into `ids` of each answer token that the grammar does
    not force to the ids that it allows there, in ascending order.
    """

    id: str
    ids: tuple[int, ...]
    answer_start: int
    choices: Mapping[int, tuple[int, ...]] | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids that serving feeds."""
        return self.ids[: self.answer_start]


class Encoder:
    """Turns documents into examples under one tokenizer and one task.

    Args:
        tokenizer: a fast tokenizer of transformers with a chat template.
        task: the task.
        max_tokens: most tokens of prompt and answer together.

    Raises:
        ModelError: no chat template, a template that loses the instruction or the text, or no stop token.
    """

    def __init__(self, tokenizer: Any, task: TaskSpec, max_tokens: int | None = None):
        self.tokenizer, self.task, self.max_tokens = tokenizer, task, max_tokens
        self.format = answer_format(task)
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
        """The prompt for `text` as one string, up to where the answer begins."""
        if self.task.template == "tutorial":
            return tutorial_prompt(self.task, text)
        return self._template(messages(self.task, text, self._system), add_generation_prompt=True)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of the prompt for `text`; a special token spelt out in the text stays plain text."""
        ids = self._ids(self.render_prompt(text))
        if sum(token in self._special for token in ids) != self._frame:
            head, tail = self.render_prompt("\0").split("\0")
            inner = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = [*self._ids(head), *inner, *self._ids(tail)]
        return ids

    def answer_ids(self, document: Document) -> list[int]:
        """The ids of the gold answer and the stop token."""
        ids: list[int] = []
        for piece in self.format.pieces(self.format.render(document, self.task)):
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.stop_id]

    def example(self, document: Document) -> Example:
        """The example of an annotated document.

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
        """The text of an answer's ids, as it was written."""
        # clean-up, where a tokenizer asks for it, takes spaces away, and a mention is no longer in its text
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _template(self, chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        # enable_thinking: templates of reasoning models open a block of thought unless told not to
        text: str = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )
        return text

    def _keeps_system_role(self) -> bool:
        """Whether the template renders a system turn; some refuse it, some drop it."""
        import jinja2

        for system in (True, False):
            try:
                prompt = self._template(messages(self.task, _PROBE, system), add_generation_prompt=True)
            except jinja2.TemplateError:
                continue
            if self.task.instruction.strip() in prompt and _PROBE in prompt:
                return system
        raise ModelError(
            "the tokenizer's chat template renders neither the instruction nor the text; mend the template"
        )

    def _find_stop(self) -> int:
        """The token that the template puts behind an answer, else the end-of-sequence token."""
        eos: int | None = self.tokenizer.eos_token_id
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


def coloured(example: Example, tokenizer: Any, prefix: int) -> Any:
    """A rich Text of an example's tokens: shared prefix dim, prompt plain, tokens with loss green."""
    from rich.text import Text

    dump = Text()
    for index, token in enumerate(example.ids):
        style = "dim" if index < prefix else ("bold green" if index >= example.answer_start else "cyan")
        piece = tokenizer.decode([token]).replace("\n", "⏎\n")
        dump.append(piece, style=style)
        dump.append("·", style="bright_black")
    return dump


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of the tokens that are no text."""
    return {
        *tokenizer.all_special_ids,
        *(index for index, token in tokenizer.added_tokens_decoder.items() if token.special),
    }


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of all texts, of the longest one, and in how many texts; the shares are of all examples' tokens.

    `examples` (prompt, answer and stop token) and the shares are there with a task only.
    """

    total: int
    longest: int
    texts: tuple[Bin, ...]
    examples: tuple[Bin, ...] = ()
    instruction_share: float | None = None
    text_share: float | None = None
    answer_share: float | None = None


def count_tokens(documents: Sequence[Document], tokenizer: Any, task: TaskSpec | None = None) -> Tokens:
    """Count the tokens of `documents`, and of the examples that `task` makes of them.

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
