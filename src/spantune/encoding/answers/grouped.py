"""`grouped`: one JSON object on one line, which maps each label that occurs to the list of its mentions.

    {"dis": ["肺炎", "糖尿病"], "sym": ["咳嗽"]}

Labels are in the order of the task, mentions in the order of the text. It takes the fewest decoding steps, since
each label is written once. A mention is searched behind the previous one of its list, so that slightly fewer mentions
than with `jsonl` are anchored at the right occurrence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from spantune.core import Document, Problem, ProblemKind, TaskSpec, half_surrogate
from spantune.encoding.answers.anchoring import Mention, Parsed, PartialAnswer, resolve
from spantune.encoding.answers.lark import escaped, later, literal, mention, without

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_COLON = re.compile(r"\s*:")
_BETWEEN = re.compile(r"[\[\]{},:\s]*")


def render(document: Document, task: TaskSpec) -> str:
    """Write the entities of `document`."""
    groups = {code: [document.surface(e) for e in document.entities if e.label == code] for code in task.codes}
    filled = {code: mentions for code, mentions in groups.items() if mentions}
    if not filled and task.empty_answer:
        return task.empty_answer + "\n"
    return json.dumps(filled, ensure_ascii=False) + "\n"


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Read an answer, free or constrained; a part that is not in the format, or had to be repaired, is a problem."""
    if answer.strip() in ("", task.empty_answer):
        return Parsed((), ())
    return resolve(_mentions(answer), text, task, by_label=True)


def grammar(text: str, task: TaskSpec, partial: PartialAnswer | None = None) -> str | None:
    """Return a Lark grammar of llguidance for an answer, or for the rest of a partial answer.

    Entities are substrings of `text` without white space at their ends; each label comes at most once, in the order of
    the task. The next mention comes after the last one of `partial` in the text; where the task is not nested,
    behind it. Mentions of different labels may overlap, since which occurrence a mention of an earlier list stands for
    is not sure: `read_answer` decides between them. None if `partial` does not end between two mentions.
    """
    if partial is None:
        empty = literal((task.empty_answer or "{}") + "\n")
        mentions = mention("MENTION", text, escaped)
        if not mentions:
            return f"start: {empty}"
        groups = " | ".join(f"{literal(f'{{{_key(code)}')} list{i}" for i, code in enumerate(task.codes))
        return "\n".join([f"start: {groups} | {empty}", *_lists(task), *mentions])
    if not partial.parsed.resolved:
        return None
    last, tail = partial.last, partial.tail
    number = task.codes.index(last.label)
    following = mention("LATER", text, escaped, last.end)
    if task.nested:
        following = later("LATER", text, escaped, last.start, last.end)
    mentions, ways = mention("MENTION", text, escaped), list[str]()
    if following and (opening := without(tail, ', "')) is not None:
        ways.append(f'{literal(opening)} LATER "\\"" after{number}')
    for i, code in enumerate(task.codes[number + 1 :], start=number + 1):
        if (opening := without(tail, f"], {_key(code)}")) is not None:
            ways.append(f"{literal(opening)} list{i}")
    if end := without(tail, "]}\n"):
        ways.append(literal(end))
    if not ways:
        return None
    return "\n".join([f"start: {' | '.join(ways)}", *_lists(task), *following, *mentions])


def _key(code: str) -> str:
    """Return a label as it is written before its first mention."""
    return f'{json.dumps(code, ensure_ascii=False)}: ["'


def _lists(task: TaskSpec) -> list[str]:
    """Return the rules for the list of each label: from the inside of a mention, and from behind a mention."""
    rules = []
    for i in range(len(task.codes)):
        others = "".join(f" | {literal(f'], {_key(code)}')} list{j}" for j, code in enumerate(task.codes) if j > i)
        rules.append(f'list{i}: MENTION "\\"" after{i}')
        rules.append(f'after{i}: ", \\"" list{i} | {literal("]}" + chr(10))}{others}')
    return rules


def _mentions(answer: str) -> Iterator[Mention | Problem]:
    """Yield the strings of an answer as mentions; a string before a colon is the label of those that follow."""
    label: tuple[str, tuple[int, int]] | None = None
    behind = 0
    for match in _STRING.finditer(answer):
        between = answer[behind : match.start()]
        behind = match.end()
        if not _BETWEEN.fullmatch(between):
            yield Problem(ProblemKind.INVALID, between.strip())
        value = _string(match[0])
        if value is not None and _COLON.match(answer, match.end()):
            label = value, match.span()
        elif value is None or label is None:
            yield Problem(ProblemKind.INVALID, match[0])
        else:
            yield Mention(value, label[0], match.span(), label[1])
    rest = answer[behind:].strip()
    if not _BETWEEN.fullmatch(rest) or not rest.endswith("}"):
        yield Problem(ProblemKind.INVALID, rest)
    elif not _is_strict(answer):
        yield Problem(ProblemKind.REPAIRED, answer.strip())


def _string(source: str) -> str | None:
    try:
        value: str = json.loads(source, strict=False)
    except ValueError:
        return None
    return value if half_surrogate(value) is None else None


def _is_strict(answer: str) -> bool:
    """Whether an answer is exactly an object of lists of strings with each label once."""
    try:
        pairs = json.loads(answer, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return False
    lists = all(isinstance(mentions, list) and all(isinstance(m, str) for m in mentions) for _, mentions in pairs)
    return lists and len({label for label, _ in pairs}) == len(pairs)
