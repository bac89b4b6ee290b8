"""`jsonl`: one JSON object a line for each entity, every line ended, the last one too.

The final line break is not decoration: `"}` with the break after it is one token in many vocabularies,
and without it forced decoding leaves the tokenisation that training used. What a free model writes
otherwise is read where its meaning is plain, and said to be mended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from spantune.answer.lark import choice, escaped, later, literal, substring, without
from spantune.answer.loose import as_mention, loose_mentions
from spantune.answer.resolve import Mention, Parsed, Problem, Said, resolve
from spantune.document import Document
from spantune.task import TaskSpec

_OPEN = '{"entity_text": "'
_MIDDLE = '", "entity_label": '


@dataclass(frozen=True)
class Writing:
    """How a format of JSON objects writes a character of a mention and a label, and what ends an object."""

    character: Callable[[str], str]
    label: Callable[[str], str]
    terminator: str


JSON = Writing(
    character=escaped,
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
    """Read an answer, free or constrained; what is no object of the format, or had to be mended, is a problem."""
    return resolve(_mentions(answer, task), text, task)


def grammar(text: str, task: TaskSpec, said: Said | None = None) -> str | None:
    """A Lark grammar of llguidance for an answer, or for the rest of one that has `said` something.

    Entities are non-empty substrings of `text`, labels the task's. The first after what is `said` is later in the order
    of (start, end, label) than its last: renewed after each entity, no answer can go back, repeat itself without end or
    state an entity twice.
    None, where `said` does not end with an object: the grammar goes on as it is.
    """
    return object_grammar(text, task, JSON, said)


def object_grammar(text: str, task: TaskSpec, writing: Writing, said: Said | None) -> str | None:
    """The grammar for a way of `writing` the objects."""
    characters = [writing.character(character) for character in text]
    labels = {code: writing.label(code) + "}" + writing.terminator for code in task.codes}
    if said is None:
        empty = literal(task.empty_answer + writing.terminator if task.empty_answer else "")
        if not text:
            return f"start: {empty}"
        start = f"start: {f'ent+ | {empty}' if task.empty_answer else 'ent*'}"
        return "\n".join([start, *_objects(characters, labels)])
    opening = without(said.tail, _OPEN) if said.parsed.resolved else None
    if opening is None:
        return None
    last = said.last
    following, rules = [], later("LATER", characters, last.start, last.end)
    if rules:
        following.append(f"{literal(opening)} LATER {literal(_MIDDLE)} label")
    greater = [written for code, written in labels.items() if code > last.label]
    if greater and text.find(text[last.start : last.end], last.start + 1) < 0:
        same = "".join(
            characters[last.start : last.end]
        )  # apart from the opening, or the lexer would take both for one
        following.append(f"{literal(opening)} {literal(same)} {literal(_MIDDLE)} ({choice(greater)})")
    if not following:
        return f"start: {literal('')}" if opening == _OPEN else None
    start = "start: rest?" if opening == _OPEN else "start: rest"
    rest = ["rest: next ent*", f"next: {' | '.join(following)}"]
    return "\n".join([start, *rest, *_objects(characters, labels), *rules])


def _objects(characters: list[str], labels: dict[str, str]) -> list[str]:
    """The rules for any object."""
    return [
        f"ent: {literal(_OPEN)} MENTION {literal(_MIDDLE)} label",
        f"label: {choice(labels.values())}",
        *substring("MENTION", characters),
    ]


def _mentions(answer: str, task: TaskSpec) -> Iterator[Mention | Problem]:
    """The mentions of an answer; lines that are no object are read loosely, as many together as there are."""
    position, odd = 0, 0  # where the line begins, and where the odd lines before it do
    for line in answer.split("\n"):  # not splitlines: U+2028 and its like stand unescaped in a mention
        span = (position, min(position + len(line) + 1, len(answer)))
        content = line.strip()
        mention = _strict(content, span, answer)
        if mention is not None or not content or content == task.empty_answer:
            yield from loose_mentions(answer, (odd, position))
            odd = span[1]
        if mention is not None:
            yield mention
        position = span[1]
    yield from loose_mentions(answer, (odd, position))


def _strict(line: str, span: tuple[int, int], answer: str) -> Mention | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # a free model may write ten thousand digits or brackets
        return None
    return as_mention(record, span, answer)
