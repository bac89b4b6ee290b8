"""Anchor mentions to spans of the text, with a cursor that moves backwards only if nothing is found ahead.

Entities are rendered sorted by (start, end, label), so a mention is the first occurrence that comes after the previous
entity in this order. On gold CMeEE answers this recovers 99 % of the entities exactly, against 93 % for the first
occurrence and 96 % for matching the k-th mention to the k-th occurrence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from spantune.core import Entity, Problem, ProblemKind, TaskSpec

LOOP_REPEATS = 2
"""Repeated mentions in a row that show that an answer loops; a single one is a slip."""


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity as the model wrote it; `span` and `label_span` are half-open ranges of the answer, as in Resolved."""

    text: str
    label: str
    span: tuple[int, int]
    label_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Resolved:
    """An anchored entity, the half-open range of the answer that states it, and the range that states its label."""

    entity: Entity
    span: tuple[int, int]
    label_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parsed:
    """The entities of an answer in the order written, and its problems.

    `repeats` is the number of mentions at its end, one after another, that only repeat earlier ones.
    """

    resolved: tuple[Resolved, ...]
    problems: tuple[Problem, ...]
    repeats: int = 0

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The anchored entities."""
        return tuple(resolved.entity for resolved in self.resolved)

    @property
    def is_looping(self) -> bool:
        """Whether the answer ends with mentions that only repeat earlier ones."""
        return self.repeats >= LOOP_REPEATS


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """The answer written so far, and what it parses to."""

    answer: str
    parsed: Parsed

    @property
    def last(self) -> Entity:
        """The last entity of the answer."""
        return self.parsed.resolved[-1].entity

    @property
    def tail(self) -> str:
        """The part of the answer behind its last entity."""
        return self.answer[self.parsed.resolved[-1].span[1] :]


def resolve(mentions: Iterable[Mention | Problem], text: str, task: TaskSpec, *, by_label: bool = False) -> Parsed:
    """Anchor mentions to `text`; the parser's problems are passed on.

    With `by_label`, the mentions of each label are in the order of the text; otherwise all mentions are. White space at
    the ends of a mention is trimmed, and is a `repaired` problem. Where the task is not nested, an occurrence that
    overlaps no earlier entity is preferred; `read_answer` decides where there is none.
    """
    cursors, used, covered = dict[str, Entity](), set[Entity](), bytearray(len(text))
    resolved: list[Resolved] = []
    problems: list[Problem] = []
    repeats = 0
    for mention in mentions:
        if isinstance(mention, Problem):
            problems.append(mention)
            continue
        trimmed = replace(mention, text=mention.text.strip())
        if mention.label not in task.codes:
            problems.append(Problem(ProblemKind.LABEL, mention.label))
        elif not trimmed.text or trimmed.text not in text:
            problems.append(Problem(ProblemKind.UNGROUNDED, mention.text))
        else:
            group = mention.label if by_label else ""
            last = cursors.get(group, Entity(0, 0, ""))
            # if the answer is not in order, search from the beginning of the text
            ways = [_occurrences(trimmed, text, last), _occurrences(trimmed, text)]
            if not task.nested:
                free = [_occurrences(trimmed, text, Entity(last.end, 0, "")), _occurrences(trimmed, text)]
                ways = [(e for e in way if 1 not in covered[e.start : e.end]) for way in free] + ways
            entity = next((e for way in ways for e in way if e not in used), None)
            if entity is None:
                problems.append(Problem(ProblemKind.REPEATED, mention.text))
                repeats += 1
                continue
            if trimmed != mention:
                problems.append(Problem(ProblemKind.REPAIRED, mention.text))
            repeats = 0
            cursors[group] = entity
            used.add(entity)
            covered[entity.start : entity.end] = b"\1" * (entity.end - entity.start)
            resolved.append(Resolved(entity, mention.span, mention.label_span))
    return Parsed(tuple(resolved), tuple(problems), repeats)


def _occurrences(mention: Mention, text: str, last: Entity | None = None) -> Iterator[Entity]:
    """Yield the entities that a mention could be, in the order of the text; only those later than `last`."""
    place = text.find(mention.text, last.start if last else 0)
    while place >= 0:
        entity = Entity(place, place + len(mention.text), mention.label)
        if last is None or entity > last:
            yield entity
        place = text.find(mention.text, place + 1)
