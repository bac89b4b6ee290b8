"""Answer formats: how entities are written by the model and read back.

Each format is a module with `render(document, task)`, `parse(answer, text, task)` and
`grammar(text, task, said)`. What a format cannot anchor to the text is a Problem in its result, never
dropped in silence, and so is what it had to mend. Sorting by (start, end) and the cursor of `resolve` belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spantune.core import Document, TaskSpec
from spantune.encoding.answers import grouped, inline, jsonl, jsonl_seed
from spantune.encoding.answers.anchoring import Parsed, Resolved, Said

__all__ = ["FORMATS", "AnswerFormat", "Parsed", "Resolved", "Said", "answer_format"]


def _whole(answer: str) -> list[str]:
    return [answer]


@dataclass(frozen=True)
class AnswerFormat:
    """A format's functions, and `mark`: a sign that what a renewed grammar may follow ends with.

    `grammar(text, task, None)` is for an answer from its beginning. `pieces` are the parts of an answer that are
    tokenised by themselves; where a format has several, a grammar ends with the first of them.
    """

    render: Callable[[Document, TaskSpec], str]
    parse: Callable[[str, str, TaskSpec], Parsed]
    grammar: Callable[[str, TaskSpec, Said | None], str | None]
    mark: str
    pieces: Callable[[str], list[str]] = _whole


FORMATS = {
    "jsonl": AnswerFormat(jsonl.render, jsonl.parse, jsonl.grammar, "}"),
    "jsonl_seed": AnswerFormat(jsonl_seed.render, jsonl_seed.parse, jsonl_seed.grammar, "}"),
    "grouped": AnswerFormat(grouped.render, grouped.parse, grouped.grammar, '"'),
    "inline": AnswerFormat(inline.render, inline.parse, inline.grammar, ">", inline.pieces),
}


def answer_format(task: TaskSpec) -> AnswerFormat:
    """The format that `task.answer` names."""
    return FORMATS[task.answer]
