"""Answer formats: how entities are written by the model and read back.

Each format is a module with `render(document, task)`, `parse(answer, text, task)` and
`grammar(text, task, after)`. What a format cannot anchor to the text is a Problem in its result, never
dropped in silence. Sorting by (start, end) and the cursor of `resolve` belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spantune.answer import jsonl, jsonl_seed
from spantune.answer.resolve import Parsed, Problem, Resolved
from spantune.document import Document, Entity
from spantune.task import TaskSpec

__all__ = ["FORMATS", "AnswerFormat", "Parsed", "Problem", "Resolved", "answer_format"]


@dataclass(frozen=True)
class AnswerFormat:
    """The three functions of a format, and `end`: what a stated entity ends with."""

    render: Callable[[Document, TaskSpec], str]
    parse: Callable[[str, str, TaskSpec], Parsed]
    grammar: Callable[[str, TaskSpec, Entity | None], str]
    end: str


FORMATS = {
    "jsonl": AnswerFormat(jsonl.render, jsonl.parse, jsonl.grammar, "}\n"),
    "jsonl_seed": AnswerFormat(jsonl_seed.render, jsonl_seed.parse, jsonl_seed.grammar, "}"),
}


def answer_format(task: TaskSpec) -> AnswerFormat:
    """The format that `task.answer` names."""
    return FORMATS[task.answer]
