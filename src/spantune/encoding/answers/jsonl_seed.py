"""`jsonl_seed`: the answers of the tutorial, which are objects one after another without line breaks and escapes.

The format exists to reproduce the tutorial's run and to show the difference. A mention with a double quote may not be
parsed correctly; a part that does not match an object is reported as invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spantune.core import Document, Problem, ProblemKind, TaskSpec
from spantune.encoding.answers.anchoring import Mention, Parsed, PartialAnswer, resolve
from spantune.encoding.answers.jsonl import Writing, object_grammar

PLAIN = Writing(character=str, label=lambda code: f'"{code}"', terminator="")
_OBJECT = re.compile(r'\{"entity_text": "(.*?)", "entity_label": "(.*?)"\}', re.DOTALL)


def render(document: Document, task: TaskSpec) -> str:
    """Return the answer for the entities of `document`, without escapes and separators."""
    objects = [
        f'{{"entity_text": "{document.surface(entity)}", "entity_label": "{entity.label}"}}'
        for entity in document.entities
    ]
    return "".join(objects) or task.empty_answer


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Parse an answer; text between objects is a problem."""
    return resolve(_mentions(answer, task), text, task)


def grammar(text: str, task: TaskSpec, partial: PartialAnswer | None = None) -> str | None:
    """Return the grammar of `jsonl.grammar`, without escapes and line breaks.

    A mention cannot end directly before a double quote of `text`, because the quote then becomes a part of the mention.
    """
    return object_grammar(text, task, PLAIN, partial)


def _mentions(answer: str, task: TaskSpec) -> Iterator[Mention | Problem]:
    position = 0
    for match in _OBJECT.finditer(answer):
        yield from _rest(answer[position : match.start()], task)
        yield Mention(match[1], match[2], match.span(), match.span(2))
        position = match.end()
    yield from _rest(answer[position:], task)


def _rest(text: str, task: TaskSpec) -> Iterator[Problem]:
    if text.strip() and text.strip() != task.empty_answer:
        yield Problem(ProblemKind.INVALID, text.strip())
