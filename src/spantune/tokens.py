"""How many tokens a corpus takes under a tokenizer, and how much of a training example is the instruction.

Texts are counted alone and without special tokens. What a prompt takes beyond its text (instruction, chat frame, and
the odd token that merges across the seam) counts as instruction. A document that cannot be encoded is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spantune.corpus import Bin, histogram
from spantune.document import Document
from spantune.encode import Encoder
from spantune.progress import track
from spantune.task import TaskSpec


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
        ConfigError: a document carries a label that is not the task's.
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
