"""`jsonl`: one JSON object a line for each entity, every line ended, the last one too.

The final line break is not decoration: `"}` with the break after it is one token in many vocabularies,
and without it forced decoding leaves the tokenisation that training used. What a free model writes
otherwise is read where its meaning is plain, and said to be mended.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spantune.core import Document, Problem, ProblemKind, TaskSpec
from spantune.encoding.answers.anchoring import Mention, Parsed, Said, resolve
from spantune.encoding.answers.lark import choice, escaped, later, literal, substring, without

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


_DECODER = json.JSONDecoder(strict=False)  # a line break in a string is taken as it is
_COMMA = re.compile(r",\s*(?=\}$)")
_WRAPPING = re.compile(r"[\[\]{},:\s]*+(?:```\w*+)?[\[\]{},:\s]*+")  # possessive: a line of brackets costs its length


def loose_mentions(answer: str, part: tuple[int, int]) -> Iterator[Mention | Problem]:
    """The mentions of the objects in a part of an answer, each with the problem that says so, and what is left."""
    place, end = part
    behind = place  # what the objects before this end with
    while (place := answer.find("{", place, end)) >= 0:
        record, stop = _object(answer, place, end)
        mention = as_mention(record, (place, stop), answer)
        if mention is None:
            place += 1
            continue
        yield from _rest(answer[behind:place])
        yield mention
        yield Problem(ProblemKind.REPAIRED, answer[place:stop])
        place = behind = stop
    yield from _rest(answer[behind:end])


def as_mention(record: Any, span: tuple[int, int], answer: str) -> Mention | None:
    """The mention that the object at `span` of an answer states; None where it is another object."""
    if not isinstance(record, dict) or not all(_is_text(record.get(key)) for key in ("entity_text", "entity_label")):
        return None
    label = max(answer.rfind("entity_label", *span), span[0])
    return Mention(record["entity_text"], record["entity_label"], span, (label, span[1]))


def _object(answer: str, start: int, end: int) -> tuple[Any, int]:
    """The object that begins at `start`, if it is one, and where it ends."""
    try:
        record, stop = _DECODER.raw_decode(answer, start)
        return record, stop
    except (ValueError, RecursionError):
        stop = answer.find("}", start, end) + 1
    source = _COMMA.sub("", answer[start:stop])
    for read in (json.loads, ast.literal_eval):
        try:
            return read(source), stop
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None, stop


def _rest(text: str) -> Iterator[Problem]:
    """Lines that are no object: brackets and fences around objects are repairs, all else is invalid."""
    for line in filter(None, map(str.strip, text.split("\n"))):
        yield Problem(ProblemKind.REPAIRED if _WRAPPING.fullmatch(line) else ProblemKind.INVALID, line)


def _is_text(value: Any) -> bool:
    """Whether `value` is a string without half a surrogate pair, which an escape can smuggle in."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
