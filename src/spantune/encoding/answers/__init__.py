"""Answer formats: how the model writes entities and how its answers are read back.

Each format is a module with `render(document, task)`, `parse(answer, text, task)` and `grammar(text, task, partial)`.
A part of an answer that cannot be anchored to the text, or that had to be repaired, is a Problem in the result and is
never dropped silently. `render` sorts entities by (start, end), on which the cursor of `resolve` depends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spantune.core import Document, TaskSpec
from spantune.encoding.answers import grouped, inline, jsonl, jsonl_seed
from spantune.encoding.answers.anchoring import Parsed, PartialAnswer, Resolved

__all__ = ["FORMATS", "AnswerFormat", "Parsed", "PartialAnswer", "Resolved", "answer_format"]


def _whole(answer: str) -> list[str]:
    return [answer]


@dataclass(frozen=True)
class AnswerFormat:
    """The functions of a format, and `mark`: the character at the end of every answer that a grammar can continue.

    `grammar(text, task, None)` is for an answer from its beginning. `pieces` splits an answer into the parts that are
    tokenised separately; if a format has several, a grammar ends with the first of them. `incremental` makes what
    `growing` returns, where a format can read an answer further without reading it again.
    """

    render: Callable[[Document, TaskSpec], str]
    parse: Callable[[str, str, TaskSpec], Parsed]
    grammar: Callable[[str, TaskSpec, PartialAnswer | None], str | None]
    mark: str
    pieces: Callable[[str], list[str]] = _whole
    incremental: Callable[[str, TaskSpec], Callable[[str], Parsed]] | None = None

    def growing(self, text: str, task: TaskSpec) -> Callable[[str], Parsed]:
        """Return a function that parses an answer again as it grows; it is given the whole answer each time."""
        if self.incremental is not None:
            return self.incremental(text, task)
        return lambda answer: self.parse(answer, text, task)


FORMATS = {
    "jsonl": AnswerFormat(jsonl.render, jsonl.parse, jsonl.grammar, "}", incremental=jsonl.growing),
    "jsonl_seed": AnswerFormat(jsonl_seed.render, jsonl_seed.parse, jsonl_seed.grammar, "}"),
    "grouped": AnswerFormat(grouped.render, grouped.parse, grouped.grammar, '"'),
    "inline": AnswerFormat(inline.render, inline.parse, inline.grammar, ">", inline.pieces),
}


def answer_format(task: TaskSpec) -> AnswerFormat:
    """Return the format that `task.answer` names."""
    return FORMATS[task.answer]
