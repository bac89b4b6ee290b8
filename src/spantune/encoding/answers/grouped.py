"""`grouped`: one JSON object on one line, which maps each label that occurs to the list of its mentions.

    {"dis": ["肺炎", "糖尿病"], "sym": ["咳嗽"]}

Labels are in the order of the task, and mentions in the order of the text. The format takes the fewest decoding steps,
since each label is written once. Each mention is searched after the previous mention of the same list only. So slightly
fewer mentions than with `jsonl` are anchored at the right occurrence.
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
    """Return the answer for the entities of `document`."""
    groups = {code: [document.surface(e) for e in document.entities if e.label == code] for code in task.codes}
    filled = {code: mentions for code, mentions in groups.items() if mentions}
    if not filled and task.empty_answer:
        return task.empty_answer + "\n"
    return json.dumps(filled, ensure_ascii=False) + "\n"


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Parse an answer; a part that is not in the format, or that had to be repaired, is a problem."""
    if answer.strip() in ("", task.empty_answer):
        return Parsed((), ())
    return resolve(_mentions(answer), text, task, by_label=True)


def grammar(text: str, task: TaskSpec, partial: PartialAnswer | None = None) -> str | None:
    """Return a Lark grammar of llguidance for an answer, or for the rest of a partial answer.

    Mentions are substrings of `text` without white space at their ends. Each label occurs at most once, in the order of
    the task. The next mention of a list comes after the last one of `partial` in the text; if the task is not nested,
    it begins after its end. Mentions of different labels may overlap, since it is not certain which occurrence a
    mention of an earlier list stands for; `read_answer` decides between them.

    Returns:
        The grammar; None if `partial` does not end between two mentions.
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
    """Return what is written before the first mention of a label."""
    return f'{json.dumps(code, ensure_ascii=False)}: ["'


def _lists(task: TaskSpec) -> list[str]:
    """Return the rules for the rest of each label's list: from a mention on (`list…`), and after one (`after…`)."""
    rules = []
    for i in range(len(task.codes)):
        others = "".join(f" | {literal(f'], {_key(code)}')} list{j}" for j, code in enumerate(task.codes) if j > i)
        rules.append(f'list{i}: MENTION "\\"" after{i}')
        rules.append(f'after{i}: ", \\"" list{i} | {literal("]}" + chr(10))}{others}')
    return rules


def _mentions(answer: str) -> Iterator[Mention | Problem]:
    """Yield the strings of an answer as mentions; a string before a colon is the label of the following strings."""
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
    """Whether an answer is exactly one object of lists of strings, with each label once."""
    try:
        pairs = json.loads(answer, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return False
    lists = all(isinstance(mentions, list) and all(isinstance(m, str) for m in mentions) for _, mentions in pairs)
    return lists and len({label for label, _ in pairs}) == len(pairs)
