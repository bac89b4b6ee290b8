"""The vocabulary of a tokenizer in the form that llguidance takes: the bytes of each token, and the tokens of a text.

llguidance can read a tokenizer from its JSON. It then parses the JSON once more, which takes 0.75 seconds for a
vocabulary of 262,144 tokens. Nearly all models have one of two kinds of vocabulary, for which the bytes of each token
can be computed from the tokenizer in memory; llguidance then calls this tokenizer to encode texts. Other kinds are read
from JSON. In both cases the name of a special token in a text is encoded as plain text, never as the special token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

from spantune.encoding import BackendTokenizer, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

UNSPELLABLE = "\uffff\ufffe"  # Unicode noncharacters, which no text contains
SPACE = "\u2581"
SENTENCE_PIECES = (
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)
"""The decoder of a vocabulary that SentencePiece made."""
REMEMBERED = 4096  # texts whose tokens are cached; most of them are what the answer format writes around mentions
_BYTES_BY_NAME = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def grammar_tokenizer(tokenizer: Tokenizer, vocabulary: int, stop: int, source: str = "") -> LLTokenizer:
    """Make llguidance's tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: the size of the model's logits, which may be larger than the tokenizer's vocabulary.
        stop: the id of the token that ends an answer.
        source: `without_special_names(tokenizer)` if it is already known; the tokenizer is then read from it.
    """
    from llguidance import LLTokenizer

    pieces = None if source else token_bytes(tokenizer)
    # llguidance's slices speed up the masks of free strings, which our grammars do not have, and slow down compiling.
    if pieces is None or len(pieces) > vocabulary:
        source = source or without_special_names(tokenizer)
        return LLTokenizer(source, n_vocab=vocabulary, eos_token=stop, slices=[])
    pieces += [_no_token(index) for index in range(len(pieces), vocabulary)]
    return LLTokenizer(_InMemory(tokenizer, pieces, stop), n_vocab=vocabulary, eos_token=stop, slices=[])


def token_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    """Return the bytes of each token, indexed by token id; None if they can be known only from the tokenizer's JSON.

    A special token has UNSPELLABLE and then its name.
    """
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder
    if backend.padding is not None or backend.truncation is not None or backend.decoder is None:
        return None
    if any(token.special and token.normalized for token in added.values()):
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    ids = tokenizer.get_vocab()
    for token in added.values():
        ids.pop(token.content, None)
    size = 1 + max([*ids.values(), *added])
    if decoder.get("type") == "ByteLevel":
        spelt = _byte_level(ids)
    elif decoder.get("type") == "Sequence" and tuple(decoder["decoders"]) == SENTENCE_PIECES:
        spelt = _sentence_pieces(ids)
    else:
        return None
    if spelt is None:
        return None
    spelt |= {index: (UNSPELLABLE * token.special + token.content).encode() for index, token in added.items()}
    return [spelt.get(index) or _no_token(index) for index in range(size)]


def without_special_names(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as JSON in which special tokens have other names, so that a text never spells one."""
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


class Spelling:
    """The bytes of each token of a tokenizer, if a text is the bytes of its tokens one after another.

    This is so for the two kinds of vocabulary whose bytes are known in memory (`is_known`), and unknown for others.
    """

    def __init__(self, tokenizer: Tokenizer):
        backend = tokenizer.backend_tokenizer
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
        is_pieces = decoder.get("type") == "Sequence" and tuple(decoder["decoders"]) == SENTENCE_PIECES
        self._spell = _sentence_pieces if is_pieces else _byte_level
        self.is_known = is_pieces or decoder.get("type") == "ByteLevel"
        """Whether the text of tokens is the concatenation of the texts of the single tokens."""
        self._backend = backend
        self._added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
        self._characters: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}

    def offsets(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Return how many characters of `text` begin before each of its tokens.

        Args:
            ids: the token ids.
            text: the text that they are expected to spell.

        Returns:
            One number for each token, ascending; None if `is_known` is False or the tokens do not spell `text`.
        """
        if not self.is_known:
            return None
        for index in set(ids).difference(self._bytes):
            spelt = self._bytes[index] = self._bytes_of(index)
            self._characters[index] = sum(byte & 0xC0 != 0x80 for byte in spelt)  # the bytes that begin a character
        if b"".join([self._bytes[index] for index in ids]) != text.encode():
            return None
        return list(accumulate((self._characters[index] for index in ids[:-1]), initial=0)) if ids else []

    def _bytes_of(self, index: int) -> bytes:
        name = self._backend.id_to_token(index)
        if index in self._added or name is None:
            return self._added.get(index, b"")
        spelt = self._spell({name: index})
        return spelt[index] if spelt else _no_token(index)


@lru_cache(maxsize=4)
def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """Return the Spelling of a tokenizer; the last four are cached, with the tokens that they have looked up."""
    return Spelling(tokenizer)


class _InMemory:
    """A tokenizer in memory, with the attributes and the call that llguidance needs."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], stop: int):
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, stop, None
        special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_token_ids, self._names = list(special), list(special.values())
        self._tokenizer = tokenizer
        self._first_letters = {name[:1] for name in self._names}
        self._renamed = cache(lambda: _backend_without_special_names(tokenizer))
        self._lock = Lock()
        self._ids = lru_cache(maxsize=REMEMBERED)(self._encode)

    def __call__(self, text: str) -> list[int]:
        """Return the token ids of a text; llguidance calls this from several threads."""
        return list(self._ids(text))

    def _encode(self, text: str) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        if not self._first_letters.isdisjoint(text) and any(name in text for name in self._names):
            with self._lock:  # the second tokenizer takes a second to make, so only one thread makes it
                backend = self._renamed()
        return backend.encode(text, add_special_tokens=False).ids


def _backend_without_special_names(tokenizer: Tokenizer) -> BackendTokenizer:
    """Return a tokenizer that encodes the names of special tokens as plain text."""
    from tokenizers import Tokenizer as Backend

    backend: BackendTokenizer = Backend.from_str(without_special_names(tokenizer))
    return backend


def _no_token(index: int) -> bytes:
    """Return the placeholder that llguidance has for an id without a token; the byte 0xFF marks it as no text."""
    return b"\xff<[%d]>" % index


def _byte_level(ids: Mapping[str, int]) -> dict[int, bytes] | None:
    """Return the bytes of tokens whose names have one letter for each byte; None if a name has another letter."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in plain]
    codes = dict(zip(plain, plain, strict=True)) | {256 + place: byte for place, byte in enumerate(others)}
    if any(ord(letter) not in codes for letter in set("".join(ids))):
        return None
    return {index: name.translate(codes).encode("latin-1") for name, index in ids.items()}


def _sentence_pieces(ids: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of tokens whose names are their text, with U+2581 for a space, or `<0xNN>` for a byte."""
    return {index: _BYTES_BY_NAME.get(name) or name.replace(SPACE, " ").encode() for name, index in ids.items()}
