"""`jsonl`: one JSON object a line for each entity, every line ended, the last one too.

The final line break is not decoration: `"}` with the break after it is one token in many vocabularies,
and without it forced decoding leaves the tokenisation that training used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spantune.answer.resolve import Mention, Parsed, Problem, resolve
from spantune.document import Document, Entity
from spantune.task import TaskSpec

_OPEN = json.dumps('{"entity_text": "')
_MIDDLE = json.dumps('", "entity_label": ')


@dataclass(frozen=True)
class Writing:
    """How a format of JSON objects writes a character of a mention and a label, and what ends an object."""

    character: Callable[[str], str]
    label: Callable[[str], str]
    terminator: str


JSON = Writing(
    character=lambda character: json.dumps(character, ensure_ascii=False)[1:-1],
    label=lambda code: json.dumps(code, ensure_ascii=False),
    terminator="\n",
)


def render(document: Document, task: TaskSpec) -> str:
    """The answer that states the entities of `document`, sorted by (start, end)."""
    lines = [
        json.dumps({"entity_text": document.surface(entity), "entity_label": entity.label}, ensure_ascii=False)
        for entity in document.entities
    ]
    if not lines and task.empty_answer:
        lines = [task.empty_answer]
    return "".join(line + "\n" for line in lines)


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Read an answer, free or constrained; a line that is no object of the format is a problem."""
    return resolve(_mentions(answer, task), text, task)


def grammar(text: str, task: TaskSpec, after: Entity | None = None) -> str:
    """A Lark grammar of llguidance for an answer, or for the rest of one that has stated `after` last.

    Entities are non-empty substrings of `text`, labels the task's. After an entity only a later one in the order of
    (start, end, label) may come: no answer can go back, repeat itself without end or state an entity twice.
    """
    return lark(text, task, JSON, after)


def lark(text: str, task: TaskSpec, writing: Writing, after: Entity | None) -> str:
    """The grammar for a way of `writing` the objects."""
    characters = [writing.character(character) for character in text]
    empty = _literal(task.empty_answer + writing.terminator) if task.empty_answer else _literal("")
    if not text:
        return f"start: {empty}"
    labels = {code: _literal(writing.label(code) + "}" + writing.terminator) for code in task.codes}
    rules = [
        f"ent: {_OPEN} MENTION {_MIDDLE} label",
        f"label: {' | '.join(labels.values())}",
        *_substring("MENTION", characters),
    ]
    if after is None:
        return "\n".join([f"start: {'ent*' if not task.empty_answer else f'ent+ | {empty}'}", *rules])
    following = []
    if after.start + 1 < len(text) or after.end < len(text):
        following.append(f"{_OPEN} LATER {_MIDDLE} label")
        rules += _later(text, after, characters)
    greater = [literal for code, literal in labels.items() if code > after.label]
    if greater and text.find(text[after.start : after.end], after.start + 1) < 0:
        same = _literal("".join(characters[after.start : after.end]))
        following.append(f"{_OPEN} {same} {_MIDDLE} ({' | '.join(greater)})")
    if not following:
        return f"start: {_literal('')}"
    return "\n".join(["start: rest?", "rest: next ent*", f"next: {' | '.join(following)}", *rules])


def _substring(name: str, characters: list[str], without: str = "") -> list[str]:
    """Terminals for a non-empty substring of `characters`, `without` the strings of another terminal."""
    chunks = json.dumps(characters, ensure_ascii=False)
    excluded = f" & ~{without}" if without else ""
    return [f"{name}: {name}_RAW & /(?s:.)+/{excluded}", f'{name}_RAW: %regex {{"substring_chunks": {chunks}}}']


def _later(text: str, after: Entity, characters: list[str]) -> list[str]:
    """Terminals for LATER: a substring from the start of `after` on that can be anchored behind it.

    What begins where `after` does, is not longer and does not occur later is left out. These are the substrings of
    `after` that begin with its shortest beginning that does not occur later, so that the grammar grows with the
    mention's length and not with its square.
    """
    ends = range(after.start + 1, after.end + 1)
    unique = next((end for end in ends if text.find(text[after.start : end], after.start + 1) < 0), None)
    if unique is None:
        return _substring("LATER", characters[after.start :])
    beginning = _literal("".join(characters[after.start : unique]))
    chunks = json.dumps(characters[after.start : after.end], ensure_ascii=False)
    return [
        *_substring("LATER", characters[after.start :], without="BEHIND"),
        f"BEHIND: BEHIND_RAW & BEHIND_BEGINS\nBEHIND_BEGINS: {beginning} /(?s:.*)/",
        f'BEHIND_RAW: %regex {{"substring_chunks": {chunks}}}',
    ]


def _mentions(answer: str, task: TaskSpec) -> Iterator[Mention | Problem]:
    position = 0
    for line in answer.split("\n"):  # not splitlines: U+2028 and its like stand unescaped in a mention
        span = (position, min(position + len(line) + 1, len(answer)))
        position = span[1]
        content = line.strip()
        if not content or content == task.empty_answer:
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):  # a free model may write ten thousand digits or brackets
            record = None
        if isinstance(record, dict) and all(_is_text(record.get(key)) for key in ("entity_text", "entity_label")):
            yield Mention(record["entity_text"], record["entity_label"], span)
        else:
            yield Problem("invalid", content)


def _is_text(value: Any) -> bool:
    """Whether `value` is a string without half a surrogate pair, which an escape can smuggle in."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one control that JSON leaves as it is
