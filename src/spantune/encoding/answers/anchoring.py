"""Anchor the mentions of an answer to spans of the text, by the rule of `core.Anchors`, and report what has no place.

Entities are rendered sorted by (start, end, label), so a mention is the first occurrence that comes after the previous
entity in this order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spantune.core import Anchors, Entity, Problem, ProblemKind, TaskSpec

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


class Resolver:
    """Anchors the mentions of an answer to `text` as they are written; see `resolve`."""

    def __init__(self, text: str, task: TaskSpec, *, by_label: bool = False):
        self._text, self._by_label = text, by_label
        self._codes = frozenset(task.codes)
        self._anchors = Anchors(text, nested=task.nested)
        self._resolved: list[Resolved] = []
        self._problems: list[Problem] = []
        self._repeats = 0

    @property
    def parsed(self) -> Parsed:
        """What was read so far."""
        return Parsed(tuple(self._resolved), tuple(self._problems), self._repeats)

    def add(self, mention: Mention | Problem) -> None:
        """Anchor the next mention; the parser's problems are passed on."""
        if isinstance(mention, Problem):
            self._problems.append(mention)
            return
        surface = mention.text.strip()
        if mention.label not in self._codes:
            self._problems.append(Problem(ProblemKind.LABEL, mention.label))
        elif not surface or surface not in self._text:
            self._problems.append(Problem(ProblemKind.UNGROUNDED, mention.text))
        elif entity := self._anchors.place(surface, mention.label, mention.label if self._by_label else ""):
            if surface != mention.text:
                self._problems.append(Problem(ProblemKind.REPAIRED, mention.text))
            self._repeats = 0
            self._resolved.append(Resolved(entity, mention.span, mention.label_span))
        else:
            self._problems.append(Problem(ProblemKind.REPEATED, mention.text))
            self._repeats += 1


def resolve(mentions: Iterable[Mention | Problem], text: str, task: TaskSpec, *, by_label: bool = False) -> Parsed:
    """Anchor mentions to `text`; the parser's problems are passed on.

    With `by_label`, the mentions of each label are in the order of the text; otherwise all mentions are. White space at
    the ends of a mention is trimmed, and is a `repaired` problem. Where the task is not nested, an occurrence that
    overlaps no earlier entity is preferred; `read_answer` decides where there is none.
    """
    resolver = Resolver(text, task, by_label=by_label)
    for mention in mentions:
        resolver.add(mention)
    return resolver.parsed
