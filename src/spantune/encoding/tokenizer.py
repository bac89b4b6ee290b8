"""Protocols for the part of a transformers tokenizer that spantune uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, overload


class AddedToken(Protocol):
    """A token that was added to a vocabulary; a special one stands for no text."""

    content: str
    special: bool
    normalized: bool


class Encoding(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]:
        """Their ids."""


class Decoder(Protocol):
    """The part of a `tokenizers.Tokenizer` that makes text of tokens."""

    def __getstate__(self) -> bytes:
        """The decoder as JSON."""


class BackendTokenizer(Protocol):
    """A `tokenizers.Tokenizer`."""

    @property
    def padding(self) -> Mapping[str, object] | None:
        """How texts are padded; None where they are not."""

    @property
    def truncation(self) -> Mapping[str, object] | None:
        """How texts are cut; None where they are not."""

    @property
    def decoder(self) -> Decoder | None:
        """What makes text of tokens."""

    @property
    def encode_special_tokens(self) -> bool:
        """Whether the name of a special token in a text is encoded as text."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding:
        """The tokens of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of tokens."""

    def id_to_token(self, id: int) -> str | None:
        """The name of a token; None where there is none."""

    def to_str(self) -> str:
        """The tokenizer as JSON."""


class Tokenizer(Protocol):
    """A fast tokenizer of transformers with a chat template.

    A real one has more; a class of ours never implements this. The members are those of `PreTrainedTokenizerFast`.
    """

    chat_template: str | None
    eos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    mask_token_id: int | None
    vocab_size: int
    is_fast: bool

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The ids of the special tokens."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The added tokens by their ids."""

    @property
    def backend_tokenizer(self) -> BackendTokenizer:
        """The tokenizer of the library `tokenizers`."""

    def get_vocab(self) -> dict[str, int]:
        """The ids by their entries in the vocabulary."""

    def __hash__(self) -> int:
        """A tokenizer is hashed by identity, so that what is derived from it can be cached."""

    def __len__(self) -> int:
        """The size of the vocabulary, added tokens included."""

    @overload
    def __call__(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> Mapping[str, list[int]]:
        """`{"input_ids": […]}` of a text."""

    @overload
    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: Literal[True],
    ) -> Mapping[str, list[Any]]:
        """`{"input_ids": […], "offset_mapping": [(start, end), …]}` of a text, in characters."""

    @overload
    def __call__(
        self, text: list[str], *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> Mapping[str, list[list[int]]]:
        """`{"input_ids": [[…], …]}` of texts."""

    def decode(self, token_ids: Sequence[int], *, clean_up_tokenization_spaces: bool | None = None) -> str:
        """The text of ids."""

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        enable_thinking: bool = ...,
    ) -> str:
        """A conversation as one string."""

    def convert_ids_to_tokens(self, ids: int) -> str:
        """The vocabulary's entry of an id."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of an entry of the vocabulary."""

    def save_pretrained(self, save_directory: str | Path) -> object:
        """Write the tokenizer's files into a folder."""
