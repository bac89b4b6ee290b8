"""Packs: one sequence that holds the shared instruction once, and then several examples one after another.

    [prefix][rest of prompt 1, answer 1][rest of prompt 2, answer 2]…

A token attends only to the prefix and to its own example, and positions restart after the prefix. So every answer token
has the logits and the gradient that it would have if its example were alone. This module only handles integers;
`attention` makes the mask. The prefix is the longest common token prefix of the examples, because BPE may merge tokens
across the end of the instruction.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from spantune.encoding.encoder import Example

PREFIX = 0
NO_TARGET = -100


class HasIds(Protocol):
    """An example of any kind, whose token ids begin with the prefix."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids."""


AnyExample = TypeVar("AnyExample", bound=HasIds)


@dataclass(frozen=True, slots=True)
class Joined:
    """The prefix and the examples' own tokens as one sequence; all lists except `starts` have its length.

    `positions` and `owner` are as in `Pack`. `reach` is the position of the last token that a token sees, if a text is
    seen as a whole: for a token of the prefix its own position, for another token the last position of its example.
    `starts` has the index at which the own tokens of each example begin.
    """

    ids: list[int]
    positions: list[int]
    owner: list[int]
    reach: list[int]
    starts: list[int]


def joined(prefix: Sequence[int], examples: Sequence[HasIds]) -> Joined:
    """Join `examples`, all of which begin with `prefix`, into one sequence."""
    shared = len(prefix)
    rows = Joined(list(prefix), list(range(shared)), [PREFIX] * shared, list(range(shared)), [])
    for number, example in enumerate(examples, start=1):
        assert example.ids[:shared] == tuple(prefix)
        own, length = len(example.ids) - shared, len(example.ids)
        rows.starts.append(len(rows.ids))
        rows.ids.extend(example.ids[shared:])
        rows.positions.extend(range(shared, length))
        rows.owner.extend([number] * own)
        rows.reach.extend([length - 1] * own)
    return rows


def grouped(examples: Sequence[AnyExample], prefix: Sequence[int], budget: int) -> list[list[AnyExample]]:
    """Divide the examples of a step into packs of at most `budget` tokens each, prefix included."""
    groups = fill([len(example.ids) - len(prefix) for example in examples], budget - len(prefix))
    return [[examples[index] for index in group] for group in groups]


@dataclass(frozen=True, slots=True)
class Pack:
    """One packed sequence; the first four lists have its length.

    `ids` are the token ids, and `positions` the positions for the model. `owner` is 0 for the prefix and 1, 2, … for
    the examples. `targets` has the id that the position has to predict, or -100 if it predicts no answer token. If the
    loss is on choices, `allowed` has the allowed ids of each target, in the order of the targets; otherwise it is
    empty.
    """

    ids: list[int]
    positions: list[int]
    owner: list[int]
    targets: list[int]
    allowed: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def answer_tokens(self) -> int:
        """The number of positions with loss."""
        return sum(target != NO_TARGET for target in self.targets)

    @property
    def answers(self) -> int:
        """The number of examples with loss."""
        return len({owner for owner, target in zip(self.owner, self.targets, strict=True) if target != NO_TARGET})


def shared_prefix(examples: Sequence[Example]) -> int:
    """Return the length of the longest common token prefix that leaves each example a prompt token of its own.

    The last prompt token predicts the first answer token, so it has to belong to the example.
    """
    if not examples:
        return 0
    return min(common_prefix([example.ids for example in examples]), min(e.answer_start for e in examples) - 1)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return the length of the longest common prefix of all `sequences`."""
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))  # these two have the shortest common prefix
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def fill(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices by best-fit decreasing, so that the lengths of each group sum to at most `budget`.

    The two groups with the smallest sums are then balanced if that lowers the larger sum, because a short pack takes
    hardly less time than one of twice its length. A length over the budget gets a group of its own.
    """
    groups = best_fit(lengths, budget)
    if len(groups) > 1:
        sums = [sum(lengths[index] for index in group) for group in groups]
        last = sorted(range(len(groups)), key=lambda number: (-sums[number], number))[-2:]
        halves = _halves(lengths, [index for number in last for index in groups[number]])
        if max(sum(lengths[index] for index in half) for half in halves) < max(sums[number] for number in last):
            for number, half in zip(last, halves, strict=True):
                groups[number] = half
    return groups


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices, the longest first: each into the fullest group that has room for it, or else into a new group."""
    groups: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths, range(len(lengths))):
        fitting = [(space, number) for number, space in enumerate(room) if space >= lengths[index]]
        if fitting:
            _, number = min(fitting)
        else:
            number = len(groups)
            groups.append([])
            room.append(budget)
        groups[number].append(index)
        room[number] -= lengths[index]
    return groups


def divide(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide indices into `parts` groups with about equal sums of lengths; each group is in ascending order.

    The method is largest differencing (Karmarkar and Karp 1982). A division has `parts` groups. The two divisions whose
    groups differ most in their sums are merged repeatedly: the largest group of one is joined with the smallest group
    of the other, and so on. Groups may be empty.
    """
    divisions: list[tuple[int, int, list[tuple[int, list[int]]]]] = []  # minus spread, number, groups by falling sum
    for index in range(len(lengths)):
        groups = [(lengths[index], [index]), *[(0, []) for _ in range(parts - 1)]]
        heapq.heappush(divisions, (-lengths[index] if parts > 1 else 0, index, groups))
    if not divisions:
        return [[] for _ in range(parts)]
    while len(divisions) > 1:
        (_, number, first), (_, _, second) = heapq.heappop(divisions), heapq.heappop(divisions)
        merged = [(a + b, left + right) for (a, left), (b, right) in zip(first, reversed(second), strict=True)]
        merged.sort(key=lambda group: (-group[0], group[1]))
        heapq.heappush(divisions, (merged[-1][0] - merged[0][0], number, merged))
    return [sorted(group) for _, group in divisions[0][2]]


def _halves(lengths: Sequence[int], chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide the chosen indices into two groups with about equal sums of lengths."""
    larger: list[int] = []
    smaller: list[int] = []
    ahead = 0  # the sum of `larger` minus that of `smaller`
    for index in _longest_first(lengths, chosen):
        smaller.append(index)
        ahead -= lengths[index]
        if ahead < 0:
            larger, smaller, ahead = smaller, larger, -ahead
    return larger, smaller


def _longest_first(lengths: Sequence[int], chosen: Iterable[int]) -> list[int]:
    return sorted(chosen, key=lambda index: (-lengths[index], index))


def layout(prefix: Sequence[int], examples: Sequence[Example]) -> Pack:
    """Make one pack of `examples`, all of which begin with `prefix`."""
    shared, rows = len(prefix), joined(prefix, examples)
    pack = Pack(rows.ids, rows.positions, rows.owner, [NO_TARGET] * shared)
    for example in examples:
        assert shared < example.answer_start
        rest = example.ids[shared:]
        first = example.answer_start - shared - 1  # predicts the first answer token
        targets = [NO_TARGET] * first + list(rest[first + 1 :]) + [NO_TARGET]
        if example.choices is not None:
            chosen = {index - shared - 1 for index in example.choices}
            targets = [target if place in chosen else NO_TARGET for place, target in enumerate(targets)]
            pack.allowed.extend(example.choices[index] for index in sorted(example.choices))
        pack.targets.extend(targets)
    return pack


def pack_examples(examples: Sequence[Example], prefix: Sequence[int], budget: int) -> list[Pack]:
    """Make the packs of one optimizer step, each of at most `budget` tokens, prefix included."""
    return [layout(prefix, group) for group in grouped(examples, prefix, budget)]
