"""Documents become token ids, and answers become entities; without torch."""

from __future__ import annotations

from spantune.encoding.answers import FORMATS, answer_format
from spantune.encoding.answers.anchoring import PartialAnswer
from spantune.encoding.answers.gbnf import WRITINGS, gbnf
from spantune.encoding.chat import render_chat
from spantune.encoding.encoder import Encoder, Example, Tokens, coloured, count_tokens, special_ids
from spantune.encoding.packing import (
    NO_TARGET,
    PREFIX,
    Pack,
    common_prefix,
    divide,
    fill,
    grouped,
    joined,
    layout,
    pack_examples,
    shared_prefix,
)
from spantune.encoding.prompts import PRESETS, make_task
from spantune.encoding.spans import (
    Characters,
    SpanEncoder,
    SpanExample,
    TextEncoder,
    entities_over,
    longest_allowed,
    make_encoder,
)
from spantune.encoding.tokenizer import BackendTokenizer, Tokenizer

__all__ = [
    "FORMATS",
    "NO_TARGET",
    "PREFIX",
    "PRESETS",
    "WRITINGS",
    "BackendTokenizer",
    "Characters",
    "Encoder",
    "Example",
    "Pack",
    "PartialAnswer",
    "SpanEncoder",
    "SpanExample",
    "TextEncoder",
    "Tokenizer",
    "Tokens",
    "answer_format",
    "coloured",
    "common_prefix",
    "count_tokens",
    "divide",
    "entities_over",
    "fill",
    "gbnf",
    "grouped",
    "joined",
    "layout",
    "longest_allowed",
    "make_encoder",
    "make_task",
    "pack_examples",
    "render_chat",
    "shared_prefix",
    "special_ids",
]
