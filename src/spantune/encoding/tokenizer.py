"""Protocols for the part of a transformers tokenizer that spantune uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, overload


class AddedToken(Protocol):
    """A token that was added to a vocabulary; a special token stands for no text."""

    content: str
    special: bool
    normalized: bool


class Encoding(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]:
        """The token ids."""


class Decoder(Protocol):
    """The part of a `tokenizers.Tokenizer` that turns tokens into text."""

    def __getstate__(self) -> bytes:
        """Return the decoder as JSON."""


class BackendTokenizer(Protocol):
    """A `tokenizers.Tokenizer`, which does the work of a fast tokenizer of transformers."""

    @property
    def padding(self) -> Mapping[str, object] | None:
        """How texts are padded; None if they are not."""

    @property
    def truncation(self) -> Mapping[str, object] | None:
        """How texts are truncated; None if they are not."""

    @property
    def decoder(self) -> Decoder | None:
        """The decoder, which turns tokens into text."""

    @property
    def encode_special_tokens(self) -> bool:
        """Whether the name of a special token in a text is encoded as plain text."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding:
        """Return the tokens of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Return the text of token ids."""

    def id_to_token(self, id: int) -> str | None:
        """Return the name of a token; None if there is none with this id."""

    def to_str(self) -> str:
        """Return the tokenizer as JSON."""


class Tokenizer(Protocol):
    """A fast tokenizer of transformers with a chat template.

    The members are those of `PreTrainedTokenizerFast` that spantune uses. No class of spantune implements this
    protocol.
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
        """The added tokens by their id."""

    @property
    def backend_tokenizer(self) -> BackendTokenizer:
        """The tokenizer of the library `tokenizers` that does the work."""

    def get_vocab(self) -> dict[str, int]:
        """Return the vocabulary: the id of each token by its name."""

    def __hash__(self) -> int:
        """Return the hash by identity, so that values derived from a tokenizer can be cached."""

    def __len__(self) -> int:
        """Return the size of the vocabulary, added tokens included."""

    @overload
    def __call__(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> Mapping[str, list[int]]:
        """Return `{"input_ids": […]}` for one text."""

    @overload
    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: Literal[True],
    ) -> Mapping[str, list[Any]]:
        """Return `{"input_ids": […], "offset_mapping": [(start, end), …]}` for one text; offsets are in characters."""

    @overload
    def __call__(
        self, text: list[str], *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> Mapping[str, list[list[int]]]:
        """Return `{"input_ids": [[…], …]}` for several texts."""

    def decode(self, token_ids: Sequence[int], *, clean_up_tokenization_spaces: bool | None = None) -> str:
        """Return the text of token ids."""

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        enable_thinking: bool = ...,
    ) -> str:
        """Return a conversation as one string."""

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the name of a token."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of a token by its name."""

    def save_pretrained(self, save_directory: str | Path) -> object:
        """Write the tokenizer's files into a folder."""
