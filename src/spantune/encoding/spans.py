"""Encode documents for reading spans: the token ids before the text, the text, and the token of each character.

Spans are spans of characters, because a BPE token may join several characters or be a part of one. Every character is
represented by one token: the last token that holds a part of it. The text is tokenised separately from the ids before
it, so that no token belongs to both. There are no ids after the text. Nothing is truncated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spantune.core import DataError, Document, Entity, ModelError, TaskSpec, config, foreign
from spantune.encoding.encoder import Encoder
from spantune.encoding.tokenizer import Tokenizer

SHORTEST_LIMIT = 32
"""The smallest value that is chosen for `spans.longest`."""


@dataclass(frozen=True, slots=True)
class Characters:
    """The characters of a text; each field has one entry for each character.

    Args:
        token: the index of the character's token in the ids of the example.
        before: how many characters of the same token come before this one.
        after: how many characters of the same token come after this one.
        own: the id of the last token of the character when it is tokenised alone.
    """

    token: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpanExample:
    """The token ids of one document to read.

    `ids[:text_start]` come before the text whose spans are scored. `gold` has its entities as (first character, last
    character, index of the label in the task), with both characters inside the entity.
    """

    id: str
    ids: tuple[int, ...]
    text_start: int
    characters: Characters
    gold: tuple[tuple[int, int, int], ...] = ()


class SpanEncoder:
    """Turns documents into examples to read, under one tokenizer and one task.

    Args:
        tokenizer: a fast tokenizer of transformers.
        task: the labels and the instruction.
        settings: the section `spans` of a recipe, in which `longest` has a value.
        max_tokens: the most tokens of an example; None for no limit.

    Attributes:
        copies: how many times the ids contain their text: 2 with `spans.view: twice`, otherwise 1.
        prefix: the ids before a text.
        between: the ids between the two copies of a text; empty if there is one copy.

    Raises:
        ModelError: the tokenizer has neither a BOS nor an EOS token; or with `spans.instruction`, as `Encoder`.
    """

    def __init__(
        self, tokenizer: Tokenizer, task: TaskSpec, settings: config.Spans, max_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.task, self.settings, self.max_tokens = tokenizer, task, settings, max_tokens
        self.longest = config.filled(settings.longest)
        self.copies = 2 if settings.view == "twice" else 1
        self.prefix = tuple(self._before_the_text())
        self.between = self._ids("\n") if settings.view == "twice" else []
        self._own_ids: dict[str, int] = {}

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids that the model reads for `text`."""
        return self._placed(self._ids(text))[0]

    def read(self, document: Document) -> SpanExample:
        """Encode a document without its entities.

        Raises:
            ModelError: the tokenizer cannot encode the text.
        """
        text = document.text
        with foreign("the tokenizer", "it cannot encode a text", "restore tokenizer.json"):
            encoded = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
        ids, text_start = self._placed(encoded["input_ids"])
        characters = self._characters(text, encoded["input_ids"], encoded["offset_mapping"], text_start)
        return SpanExample(document.id, tuple(ids), text_start, characters)

    def example(self, document: Document) -> SpanExample:
        """Encode an annotated document.

        Raises:
            DataError: the document takes more than `max_tokens` tokens, or has a label that the task does not have, or
                an entity longer than `spans.longest`.
        """
        self.task.check([document])
        example = self.read(document)
        if self.max_tokens is not None and len(example.ids) > self.max_tokens:
            raise DataError(
                f"document {document.id!r} takes {len(example.ids)} tokens, over train.max_tokens={self.max_tokens}; "
                "raise it, or set data.too_long=split to split at sentence ends"
            )
        for _, entity in entities_over([document], self.longest):
            length = entity.end - entity.start
            raise DataError(
                f"document {document.id!r}: the entity {entity.label} [{entity.start}, {entity.end}) has {length} "
                f"characters, over spans.longest={self.longest}; set it to {length} or more, or leave it out, so "
                "that it is chosen",
                field="entities",
            )
        codes = {code: index for index, code in enumerate(self.task.codes)}
        gold = tuple((entity.start, entity.end - 1, codes[entity.label]) for entity in document.entities)
        return SpanExample(example.id, example.ids, example.text_start, example.characters, gold)

    def fits(self, document: Document) -> bool:
        """Whether `document` has at most `max_tokens` tokens."""
        return self.max_tokens is None or len(self.prompt_ids(document.text)) <= self.max_tokens

    def _before_the_text(self) -> list[int]:
        if self.settings.instruction:
            written = self.task.model_copy(update={"answer": "jsonl"})  # the chat prompt is that of writing
            head, _, _ = Encoder(self.tokenizer, written).render_prompt("\0").partition("\0")
            return self._ids(head, special=True)
        first = self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        if first is None:
            raise ModelError("the tokenizer has neither a BOS nor an EOS token to put before a text; set one")
        return [first]

    def _placed(self, text_ids: Sequence[int]) -> tuple[list[int], int]:
        """Return the ids of an example, and the index of the first token of the text whose spans are scored."""
        before = list(self.prefix)
        if self.settings.view == "twice":
            before += [*text_ids, *self.between]
        return [*before, *text_ids], len(before)

    def _characters(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], text_start: int
    ) -> Characters:
        token = [-1] * len(text)
        before, after = [0] * len(text), [0] * len(text)
        for index, (start, end) in enumerate(offsets):
            for place in range(start, end):
                token[place], before[place], after[place] = index, place - start, end - 1 - place
        held = next((index for index in token if index >= 0), -1)  # -1: no token at all, so the last one of the prefix
        for place, index in enumerate(token):  # a character without a token, such as a space, takes the token before it
            held = token[place] = index if index >= 0 else held
        own = self._own(text, [ids[index] if index >= 0 else self.prefix[-1] for index in token])
        return Characters(tuple(text_start + index for index in token), tuple(before), tuple(after), own)

    def _own(self, text: str, otherwise: Sequence[int]) -> tuple[int, ...]:
        """Return the id of each character tokenised alone, or the one in `otherwise` if it then has no token."""
        unknown = [character for character in dict.fromkeys(text) if character not in self._own_ids]
        if unknown:
            with foreign("the tokenizer", "it cannot encode a character", "restore tokenizer.json"):
                encoded = self.tokenizer(unknown, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._own_ids |= {
                character: ids[-1] if ids else -1 for character, ids in zip(unknown, encoded, strict=True)
            }
        found = (self._own_ids[character] for character in text)
        return tuple(id_ if id_ >= 0 else other for id_, other in zip(found, otherwise, strict=True))

    def _ids(self, text: str, special: bool = False) -> list[int]:
        with foreign("the tokenizer", "it cannot encode a text", "restore tokenizer.json"):
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]


TextEncoder = Encoder | SpanEncoder
"""The encoder of a task: Encoder where answers are written, SpanEncoder where spans are read."""


def make_encoder(
    tokenizer: Tokenizer, task: TaskSpec, settings: config.Spans, max_tokens: int | None = None
) -> TextEncoder:
    """Make the encoder of a task; `settings` is the section `spans` and is used only if the task reads spans.

    Raises:
        ModelError: as `Encoder` and `SpanEncoder`.
    """
    if task.reads:
        return SpanEncoder(tokenizer, task, settings, max_tokens)
    return Encoder(tokenizer, task, max_tokens)


def entities_over(documents: Iterable[Document], longest: int) -> list[tuple[Document, Entity]]:
    """Return the entities of more than `longest` characters, each with its document."""
    entities = ((document, entity) for document in documents for entity in document.entities)
    return [(document, entity) for document, entity in entities if entity.end - entity.start > longest]


def longest_allowed(documents: Sequence[Document], settings: config.Spans) -> int:
    """Return `spans.longest` if it is given, otherwise the length of the longest entity in characters, at least 32."""
    if settings.longest is not None:
        return settings.longest
    lengths = (entity.end - entity.start for document in documents for entity in document.entities)
    return max(SHORTEST_LIMIT, max(lengths, default=0))
