"""`jsonl`: one JSON object on a line for each entity; every line ends with a line break, the last one too.

The last line break is needed. In many vocabularies `"}` and the line break are one token, so without it constrained
decoding would tokenise the answer differently from training. A model without a grammar may write objects in another
way; they are parsed leniently if their meaning is clear, and reported as `repaired`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from spantune.core import Document, Entity, Problem, ProblemKind, TaskSpec, half_surrogate
from spantune.encoding.answers.anchoring import Mention, Parsed, PartialAnswer, Resolver, resolve
from spantune.encoding.answers.lark import choice, escaped, later, literal, without
from spantune.encoding.answers.lark import mention as mention_rules

_OPEN = '{"entity_text": "'
_MIDDLE = '", "entity_label": '


@dataclass(frozen=True)
class Writing:
    """How a format of JSON objects writes a character of a mention, a label, and the end of an object."""

    character: Callable[[str], str]
    label: Callable[[str], str]
    terminator: str


JSON = Writing(
    character=escaped,
    label=lambda code: json.dumps(code, ensure_ascii=False),
    terminator="\n",
)


def render(document: Document, task: TaskSpec) -> str:
    """Return the answer for the entities of `document`, which are sorted by (start, end)."""
    lines = [
        json.dumps({"entity_text": document.surface(entity), "entity_label": entity.label}, ensure_ascii=False)
        for entity in document.entities
    ]
    if not lines and task.empty_answer:
        lines = [task.empty_answer]
    return "".join(line + "\n" for line in lines)


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Parse an answer; a part that is not in the format, or that had to be repaired, is a problem."""
    return resolve(_mentions(answer, task), text, task)


def growing(text: str, task: TaskSpec) -> Callable[[str], Parsed]:
    """Return `parse` for an answer that grows: a line that is a whole object is parsed only once."""
    resolver, behind = Resolver(text, task), 0

    def read(answer: str) -> Parsed:
        nonlocal behind
        while (end := answer.find("\n", behind) + 1) > 0:
            mention = _strict(answer[behind : end - 1].strip(), (behind, end), answer)
            if mention is None:
                break
            resolver.add(mention)
            behind = end
        return resolver.parsed if behind == len(answer) else parse(answer, text, task)

    return read


def grammar(text: str, task: TaskSpec, partial: PartialAnswer | None = None) -> str | None:
    """Return a Lark grammar of llguidance for an answer, or for the rest of a partial answer.

    Mentions are substrings of `text` without white space at their ends, and labels are those of the task. The next
    entity comes after the last entity of `partial` in the order of (start, end, label). If the task is not nested, it
    also begins after the end of all earlier entities. With a new grammar after each entity, an answer cannot go back,
    loop, or state an entity twice.

    Returns:
        The grammar; None if `partial` does not end with an object, so that the previous grammar stays in use.
    """
    return object_grammar(text, task, JSON, partial)


def object_grammar(text: str, task: TaskSpec, writing: Writing, partial: PartialAnswer | None) -> str | None:
    """Return the grammar for objects that are written as `writing` says; see `grammar`."""
    labels = {code: writing.label(code) + "}" + writing.terminator for code in task.codes}
    if partial is None:
        empty = literal(task.empty_answer + writing.terminator if task.empty_answer else "")
        mentions = mention_rules("MENTION", text, writing.character)
        if not mentions:
            return f"start: {empty}"
        start = f"start: {f'ent+ | {empty}' if task.empty_answer else 'ent*'}"
        return "\n".join([start, *_objects(labels), *mentions])
    opening = without(partial.tail, _OPEN) if partial.parsed.resolved else None
    if opening is None:
        return None
    following, rules = _following(text, task, writing, partial.parsed.entities)
    if not following:
        return f"start: {literal('')}" if opening == _OPEN else None
    start = "start: rest?" if opening == _OPEN else "start: rest"
    rest = ["rest: next ent*", f"next: {' | '.join(f'{literal(opening)} {way}' for way in following)}"]
    return "\n".join([start, *rest, *_objects(labels), *rules])


def _following(text: str, task: TaskSpec, writing: Writing, stated: Sequence[Entity]) -> tuple[list[str], list[str]]:
    """Return the ways to continue the next object after its opening, and the rules that they use.

    `stated` are the entities so far. The next entity comes after the last one by (start, end, label); if entities may
    not overlap, it begins after the end of all of them.
    """
    write, last = writing.character, stated[-1]
    if not task.nested:
        end = max(entity.end for entity in stated)
        rules = [rule for name in ("LATER", "MENTION") for rule in mention_rules(name, text, write, end)]
        return ([f"LATER {literal(_MIDDLE)} label"] if rules else []), rules
    rules = later("LATER", text, write, last.start, last.end)
    following = [f"LATER {literal(_MIDDLE)} label"] if rules else []
    greater = [writing.label(code) + "}" + writing.terminator for code in task.codes if code > last.label]
    if greater and text.find(text[last.start : last.end], last.start + 1) < 0:
        # One literal of its own, because the lexer would otherwise read the opening and the mention as one token.
        same = "".join(map(write, text[last.start : last.end]))
        following.append(f"{literal(same)} {literal(_MIDDLE)} ({choice(greater)})")
    return following, [*rules, *mention_rules("MENTION", text, write)]


def _objects(labels: dict[str, str]) -> list[str]:
    """Return the rules for an object; the caller adds those of the terminal MENTION."""
    return [f"ent: {literal(_OPEN)} MENTION {literal(_MIDDLE)} label", f"label: {choice(labels.values())}"]


def _mentions(answer: str, task: TaskSpec) -> Iterator[Mention | Problem]:
    """Yield the mentions of an answer; consecutive lines that are no objects are parsed together, leniently."""
    position, lenient = 0, 0  # the start of the line, and the start of the lines before it that are no objects
    for line in answer.split("\n"):  # not splitlines, since a mention may contain U+2028
        span = (position, min(position + len(line) + 1, len(answer)))
        content = line.strip()
        mention = _strict(content, span, answer)
        if mention is not None or not content or content == task.empty_answer:
            yield from lenient_mentions(answer, (lenient, position))
            lenient = span[1]
        if mention is not None:
            yield mention
        position = span[1]
    yield from lenient_mentions(answer, (lenient, position))


def _strict(line: str, span: tuple[int, int], answer: str) -> Mention | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # without a grammar a model may write ten thousand digits or brackets
        return None
    return as_mention(record, span, answer)


LONGEST_REPAIR = 4096
"""The most characters of an object that is repaired, since repairing is tried at every brace of an answer."""
_DECODER = json.JSONDecoder(strict=False)  # allows a line break in a string
_COMMA = re.compile(r",\s*(?=\}$)")
_WRAPPING = re.compile(r"[\[\]{},:\s]*+(?:```\w*+)?[\[\]{},:\s]*+")  # possessive, so that it takes linear time


def lenient_mentions(answer: str, part: tuple[int, int]) -> Iterator[Mention | Problem]:
    """Yield the mentions of the objects in a part of an answer, each with a `repaired` problem, and other problems."""
    place, end = part
    behind = place  # the end of the last object
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


def as_mention(record: object, span: tuple[int, int], answer: str) -> Mention | None:
    """Return the mention that a JSON object at `span` of an answer states; None if the object states no mention."""
    if not isinstance(record, dict):
        return None
    mention, code = record.get("entity_text"), record.get("entity_label")
    if not _is_text(mention) or not _is_text(code):
        return None
    label = max(answer.rfind("entity_label", *span), span[0])
    return Mention(mention, code, span, (label, span[1]))


def _object(answer: str, start: int, end: int) -> tuple[object, int]:
    """Return the object that begins at `start` (None if it cannot be parsed), and the offset of its end."""
    try:
        record, stop = _DECODER.raw_decode(answer, start)
        return record, stop
    except (ValueError, RecursionError):
        stop = answer.find("}", start, end) + 1
    if stop - start > LONGEST_REPAIR:
        return None, stop
    source = _COMMA.sub("", answer[start:stop])
    for read in (json.loads, ast.literal_eval):
        try:
            return read(source), stop
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None, stop


def _rest(text: str) -> Iterator[Problem]:
    """Yield a problem for each line that is no object: `repaired` for brackets and code fences, otherwise `invalid`."""
    for line in filter(None, map(str.strip, text.split("\n"))):
        yield Problem(ProblemKind.REPAIRED if _WRAPPING.fullmatch(line) else ProblemKind.INVALID, line)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is a string without half a surrogate pair, which an escape in JSON can produce."""
    return isinstance(value, str) and half_surrogate(value) is None
