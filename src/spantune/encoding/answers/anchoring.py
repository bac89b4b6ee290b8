"""Anchor the mentions of an answer to spans of the text, by the rule of `core.Anchors`; report those without a span.

`render` writes entities sorted by (start, end, label). So a mention is anchored to the first occurrence that comes
after the previous entity in this order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spantune.core import Anchors, Entity, Problem, ProblemKind, TaskSpec

LOOP_REPEATS = 2
"""The number of repeated mentions in a row that shows that an answer loops; a single one may be a mistake."""


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
    """The entities of an answer, in the order in which they were written, and its problems.

    `repeats` is the number of consecutive mentions at the end of the answer that only repeat earlier ones.
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
    """The answer that was written so far, and the result of parsing it."""

    answer: str
    parsed: Parsed

    @property
    def last(self) -> Entity:
        """The last entity of the answer."""
        return self.parsed.resolved[-1].entity

    @property
    def tail(self) -> str:
        """The part of the answer after its last entity."""
        return self.answer[self.parsed.resolved[-1].span[1] :]


class Resolver:
    """Anchors the mentions of an answer to `text`, one after another as they are written; see `resolve`."""

    def __init__(self, text: str, task: TaskSpec, *, by_label: bool = False):
        self._text, self._by_label = text, by_label
        self._codes = frozenset(task.codes)
        self._anchors = Anchors(text, nested=task.nested)
        self._resolved: list[Resolved] = []
        self._problems: list[Problem] = []
        self._repeats = 0

    @property
    def parsed(self) -> Parsed:
        """The result of the mentions so far."""
        return Parsed(tuple(self._resolved), tuple(self._problems), self._repeats)

    def add(self, mention: Mention | Problem) -> None:
        """Anchor the next mention; a Problem of the parser is kept as it is."""
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
    """Anchor mentions to `text`; Problems among them, which the parser found, are kept.

    Args:
        mentions: mentions and problems, in the order of the answer.
        text: the document's text.
        task: its labels are the valid ones.
        by_label: whether the order of the text holds only for the mentions of each label, and not for all mentions.

    White space at the ends of a mention is trimmed and reported as `repaired`. If the task is not nested, an occurrence
    that overlaps no earlier entity is preferred. If there is none, `read_answer` decides which entity is kept.
    """
    resolver = Resolver(text, task, by_label=by_label)
    for mention in mentions:
        resolver.add(mention)
    return resolver.parsed
