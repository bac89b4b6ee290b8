"""Answer formats: how a model writes entities, and how its answers are parsed.

Each format is a module with `render(document, task)`, `parse(answer, text, task)` and `grammar(text, task, partial)`. A
part of an answer that cannot be anchored to the text, or that had to be repaired, is a Problem in the result and is
never dropped silently. `render` writes entities sorted by (start, end); `anchoring.resolve` relies on this order.
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
    """The functions of an answer format.

    Args:
        render: returns the answer that states the entities of a document.
        parse: parses (answer, text, task) into anchored entities and problems.
        grammar: returns the Lark grammar for (text, task, partial answer); the partial answer is None at the beginning.
        mark: the last character of every partial answer after which a new grammar can be made.
        pieces: splits an answer into parts that are tokenised separately. If a format has several parts, a grammar ends
            with the first of them.
        incremental: makes the function that `growing` returns, if a format can parse the new part of an answer without
            parsing all of it again.
    """

    render: Callable[[Document, TaskSpec], str]
    parse: Callable[[str, str, TaskSpec], Parsed]
    grammar: Callable[[str, TaskSpec, PartialAnswer | None], str | None]
    mark: str
    pieces: Callable[[str], list[str]] = _whole
    incremental: Callable[[str, TaskSpec], Callable[[str], Parsed]] | None = None

    def growing(self, text: str, task: TaskSpec) -> Callable[[str], Parsed]:
        """Return a function that parses an answer while it grows; each call gets the whole answer so far."""
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
    """Return the AnswerFormat that `task.answer` names."""
    return FORMATS[task.answer]
