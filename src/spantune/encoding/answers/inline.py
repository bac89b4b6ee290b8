"""`inline`: the text itself with tags around its entities, which may be nested.

    <dis>肺炎</dis>患者<sym>咳嗽</sym>

Offsets are exact by construction, but answers are longer than in any other format. `&` and `<` of the text are written
as `&amp;` and `&lt;`. A closing tag closes the innermost open entity of its label. So two entities of one label that
cross, or that begin at the same offset, are parsed as nested ones; the grammar does not allow the second case. No token
crosses the end of a tag, in training and in decoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from spantune.core import Document, Entity, Problem, ProblemKind, TaskSpec
from spantune.encoding.answers.anchoring import Mention, Parsed, PartialAnswer, Resolved, resolve
from spantune.encoding.answers.lark import choice, literal

_ESCAPES = {"&": "&amp;", "<": "&lt;"}
_IN_LABEL = re.compile(r"[&<>/\x00-\x1f\x7f]")
_TOKEN = re.compile(r"<[^<>]*>|&amp;|&lt;|.", re.DOTALL)
_PARTIAL = re.compile(r"(?:<[^<>]*|&[a-z]*)\Z")
_PLAIN = {escape: character for character, escape in _ESCAPES.items()}


def render(document: Document, task: TaskSpec) -> str:
    """Return the text of `document` with tags around its entities."""
    if not document.entities and task.empty_answer:
        return task.empty_answer + "\n"
    opens: dict[int, list[Entity]] = {}
    closes: dict[int, list[Entity]] = {}
    for entity in document.entities:
        opens.setdefault(entity.start, []).append(entity)
        closes.setdefault(entity.end, []).append(entity)
    pieces = []
    for place in range(len(document.text) + 1):
        inner_first = sorted(closes.get(place, []), key=lambda e: (-e.start, e.label))
        pieces += [_closing(entity.label) for entity in inner_first]
        outer_first = sorted(opens.get(place, []), key=lambda e: (-e.end, e.label))
        pieces += [_opening(entity.label) for entity in outer_first]
        pieces += [_ESCAPES.get(character, character) for character in document.text[place : place + 1]]
    return "".join(pieces) + "\n"


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Parse an answer.

    If the answer copies the text exactly, its offsets are used. Otherwise each mention is searched in the text, and the
    answer is a `repaired` problem.
    """
    if answer.strip() == task.empty_answer:
        return Parsed((), ())
    read = _read(answer, task)
    copied = read.copied.removesuffix("\n") if read.copied == text + "\n" else read.copied
    if not text.startswith(copied):
        mentions = [
            Mention(
                copied[stated.entity.start : stated.entity.end], stated.entity.label, stated.span, stated.label_span
            )
            for stated in sorted(read.closed, key=lambda resolved: resolved.entity)
        ]
        parsed = resolve(mentions, text, task)
        repaired = Problem(ProblemKind.REPAIRED, answer.strip())
        return Parsed(parsed.resolved, (*read.problems, *parsed.problems, repaired), parsed.repeats)
    unclosed = answer[read.behind :] if copied != text else "".join(_opening(label) for label, _, _ in read.open)
    problems = [*read.problems, *([Problem(ProblemKind.INVALID, unclosed)] if unclosed else [])]
    return Parsed(tuple(_trimmed(read.closed, text, problems)), tuple(problems))


def _trimmed(closed: Iterable[Resolved], text: str, problems: list[Problem]) -> Iterator[Resolved]:
    """Yield entities without white space at their ends; surfaces that had any are added to `problems`."""
    for resolved in closed:
        entity = resolved.entity
        surface = text[entity.start : entity.end]
        start = entity.start + len(surface) - len(surface.lstrip())
        if surface == surface.strip():
            yield resolved
        else:
            problems.append(Problem(ProblemKind.REPAIRED if surface.strip() else ProblemKind.INVALID, surface))
            if surface.strip():
                yield replace(resolved, entity=replace(entity, start=start, end=start + len(surface.strip())))


def grammar(text: str, task: TaskSpec, partial: PartialAnswer | None = None) -> str | None:
    """Return a Lark grammar of llguidance for the answer up to its next tag, or to its end.

    An entity begins and ends with a character that is not white space. If the task is not nested, an entity opens only
    outside of other entities.

    Returns:
        The grammar; None if `partial` does not end with a tag.
    """
    empty = f" | {literal(task.empty_answer + chr(10))}" if task.empty_answer and partial is None else ""
    read = _read(partial.answer if partial else "", task)
    if read.partial or not text.startswith(read.copied):
        return None
    place, labels = len(read.copied), [label for label, _, _ in read.open]
    rest, last = text[place:], len(text.rstrip()) - len(read.copied)  # after index `last` of `rest` is only white space
    closes_here = () if read.opened else {label for label, start, _ in read.open if start < place}
    here = {label for label, start, _ in read.open if start == place}
    closing = choice(_closing(code) for code in task.codes if code in labels)
    opening = choice(_opening(code) for code in task.codes) if task.nested or not labels else ""
    first = [_closing(code) for code in task.codes if code in closes_here and text[place - 1 : place].strip()]
    if opening and rest[:1].strip():
        first += [_opening(code) for code in task.codes if code not in here]
    must_close = bool(labels) and last <= 0
    if not rest or must_close:
        return f"start: {choice(first or [chr(10)])}{empty}"
    ways = ["FIRST" if first else "", f"{literal(_escaped(rest[0]))} s1"]
    rules = [f"FIRST: {choice(first)}"] if first else []
    rules += [f"OPENING: {opening}"] if opening else []
    rules += [f"CLOSING: {closing}"] if closing else []
    for i, character in enumerate(rest[1:], start=1):
        if labels and i == last:
            rules.append(f"s{i}: CLOSING")
            break
        opens = opening and character.strip()
        closes = closing and rest[i - 1].strip()
        tags = [*(["OPENING"] if opens else []), *(["CLOSING"] if closes else [])]
        rules.append(f"s{i}: {' | '.join([*tags, f'{literal(_escaped(character))} s{i + 1}'])}")
    else:
        rules.append(f"s{len(rest)}: {'CLOSING' if labels else literal(chr(10))}")
    return "\n".join([f"start: {' | '.join(filter(None, ways))}{empty}", *rules])


def pieces(answer: str) -> list[str]:
    """Split an answer into the parts that are tokenised separately; each part ends with a tag, except the last one."""
    return re.findall(r"[^<]*(?:<[^<>]*>)|[^<]+", answer)


@dataclass
class _Reading:
    """The text that an answer copies, its closed entities, and its open labels with start offset and range of the tag.

    `behind` is the offset in the answer after its last entity. `opened` says whether the answer ends with an opening
    tag, and `partial` whether it ends inside a tag or an escape.
    """

    copied: str = ""
    closed: list[Resolved] = field(default_factory=list)
    open: list[tuple[str, int, tuple[int, int]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    behind: int = 0
    opened: bool = False
    partial: bool = False


def _read(answer: str, task: TaskSpec) -> _Reading:
    opening = {_opening(code): code for code in task.codes}
    closing = {_closing(code): code for code in task.codes}
    partial = _PARTIAL.search(answer)
    read, copied, place = _Reading(partial=partial is not None), [], 0
    for match in _TOKEN.finditer(answer, 0, partial.start() if partial else len(answer)):
        token = match[0]
        read.opened = token in opening
        if token in opening:
            read.open.append((opening[token], place, match.span()))
        elif token in closing:
            _close(read, closing[token], place, match)
        else:
            copied.append(_PLAIN.get(token, token))
            place += len(copied[-1])
    read.copied = "".join(copied)
    return read


def _close(read: _Reading, label: str, place: int, match: re.Match[str]) -> None:
    """Close the innermost open entity of a label."""
    index = next((i for i in reversed(range(len(read.open))) if read.open[i][0] == label), None)
    if index is None:
        read.problems.append(Problem(ProblemKind.INVALID, match[0]))
        return
    _, start, tag = read.open.pop(index)
    if start == place:
        read.problems.append(Problem(ProblemKind.INVALID, _opening(label) + match[0]))
    elif any(resolved.entity == Entity(start, place, label) for resolved in read.closed):
        read.problems.append(Problem(ProblemKind.REPEATED, "".join((_opening(label), match[0]))))
    else:
        read.closed.append(Resolved(Entity(start, place, label), (tag[0], match.end()), tag))
        read.behind = match.end()


def _opening(code: str) -> str:
    return f"<{_IN_LABEL.sub(lambda match: f'&#{ord(match[0])};', code)}>"


def _closing(code: str) -> str:
    return f"</{_opening(code)[1:]}"


def _escaped(character: str) -> str:
    return _ESCAPES.get(character, character)
