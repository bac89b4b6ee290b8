"""Tag sequences to spans of tokens and back: BIO (IOB2), IOB1, and BIOES with its other letters (BMES, BIOUL, BIOEW).

A tag is spelt `B-PER`, `B_PER` or with another sign (prefix), `b-PER` (lower), `PER-B` or `PER_B` (suffix), `B` (bare;
the user names the label) or `PER` (io; adjacent tokens with the same type are one entity).

In every scheme, spans are found by the rule of conlleval: B and S always begin an entity; I and E begin one after O,
after the end of an entity and after another type. The scheme is the one that most tags of the file follow. It only
decides which beginnings and ends are invalid. No sequence is refused here: the faults are returned, and the caller
refuses or repairs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from spantune.core import DataError, Document, Entity
from spantune.data.raw.document import Options

Scheme = Literal["IOB1", "IOB2", "BIOES"]
Spelling = Literal["prefix", "lower", "suffix", "bare", "io"]

_ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_MARKS = "-_:./|–—"  # between letter and type
_PREFIXED = re.compile(rf"(?P<role>[{''.join(_ROLES)}])[{_MARKS}](?P<label>\S+)")
_SUFFIXED = re.compile(rf"(?P<label>\S+)[-_](?P<role>[{''.join(_ROLES)}])")


UNSET = "_"
"""An empty cell in CoNLL-U and HIPE. In a column of tags it means no entity."""
_SPELLINGS: tuple[Spelling, ...] = ("prefix", "lower", "suffix", "bare")
_PLAIN_LABEL = re.compile(r"[A-Za-z][\w./:&+-]+")


class Tag(NamedTuple):
    """A tag as written, its role (O, B, I, E or S) and its label."""

    text: str
    role: str
    label: str


class Chunk(NamedTuple):
    """The tokens `[start, end)` with one label; `fault` says what is invalid in their tags, `place` at which token."""

    start: int
    end: int
    label: str
    fault: str | None = None
    place: int = 0


OUTSIDE = Tag("O", "O", "")


@lru_cache(maxsize=1 << 12)
def parse_tag(text: str, spelling: Spelling = "prefix", label: str = "") -> Tag | None:
    """Parse `text` as a tag; None if it is none. A tag that is spelt bare gets the label `label`."""
    if text == "O":
        return OUTSIDE
    if spelling == "lower":
        return parse_tag(text[:1].upper() + text[1:]) if text[:1].islower() else None
    if spelling == "bare":
        letter = text.rstrip(_MARKS)  # `B-` has no type either, and is read as `B`
        return Tag(text, _ROLES[letter], label) if letter in _ROLES else None
    if spelling == "io":
        return Tag(text, "I", text) if text and not re.search(r"\s", text) else None
    match = (_PREFIXED if spelling == "prefix" else _SUFFIXED).fullmatch(text)
    return Tag(text, _ROLES[match["role"]], match["label"]) if match else None


def are_tags_of(text: object, tags: object) -> bool:
    """Return whether `tags` has one tag for each character of the string `text`, or each token of the list `text`."""
    return (
        isinstance(text, str | list)
        and isinstance(tags, list)
        and 0 < len(text) == len(tags)
        and all(isinstance(tag, str) and parse_tag(tag) is not None for tag in tags)
    )


def spelling_of(cells: Mapping[str, int], rows: int, *, is_named: bool = False) -> Spelling | None:
    """Return how the tags of a column are spelt; None if the column holds no tags.

    Labels alone count as tags if a fifth of the cells is O, or if one is and the user names the column. The small
    letters b and i count as B and I only if there are no other tags, since `e-mail` may be a type.

    Args:
        cells: how often each different cell occurs.
        rows: the number of cells.
        is_named: whether the user names the column.
    """
    outside, small, unset = cells.get("O", 0), cells.get("o", 0), cells.get(UNSET, 0)
    found = {kind: sum(n for cell, n in cells.items() if cell != "O" and parse_tag(cell, kind)) for kind in _SPELLINGS}
    empty = outside + unset
    if found["lower"] > small and found["lower"] + empty == rows and any(cell[:2] in ("b-", "b_") for cell in cells):
        return "lower"
    if found["prefix"] >= found["suffix"] and found["prefix"] and 2 * (found["prefix"] + empty) >= rows:
        return "prefix"
    if found["suffix"] and outside and 2 * (found["suffix"] + empty) >= rows:
        return "suffix"
    if outside and found["bare"] and 10 * (found["bare"] + empty) >= 9 * rows:
        return "bare"
    plain = sum(n for cell, n in cells.items() if cell != "O" and _PLAIN_LABEL.fullmatch(cell))
    if plain and outside and (is_named or 5 * outside >= rows) and 10 * (plain + empty) >= 9 * rows:
        return "io"
    return "prefix" if outside and 10 * empty >= 9 * rows else None


def scheme_of(steps: Mapping[tuple[str | None, str | None], int], parse: Callable[[str], Tag | None]) -> Scheme:
    """Return the scheme that the steps from one tag to the next show.

    Args:
        steps: how often each pair (cell, next cell) occurs; None stands for the edge of a sentence.
        parse: returns the tag in a cell, or None.
    """
    scheme = SchemeCensus()
    for (cell_before, cell), count in steps.items():
        before, tag = (OUTSIDE if text is None else parse(text) or OUTSIDE for text in (cell_before, cell))
        scheme.add(tag, before, count)
    return scheme.scheme


@dataclass(slots=True)
class SchemeCensus:
    """Counts the transitions between tags that distinguish the schemes, over any number of sentences.

    Args:
        closed: tags E and S.
        unclosed: entities whose last tag is B or I.
        begun_inside: entities whose first tag is I.
        begun_freely: tags B after a tag without the same label, where IOB1 has I.
    """

    closed: int = 0
    unclosed: int = 0
    begun_inside: int = 0
    begun_freely: int = 0

    def add(self, tag: Tag, before: Tag, count: int = 1) -> None:
        """Count steps from the tag `before` to `tag`; the edge of a sentence counts as OUTSIDE."""
        begins = _begins(tag, before)
        self.closed += count * (tag.role in "ES")
        self.unclosed += count * (before.role in "BI" and (tag.role == "O" or begins))
        self.begun_inside += count * (begins and tag.role == "I")
        self.begun_freely += count * (tag.role == "B" and tag.label != before.label)

    @property
    def scheme(self) -> Scheme:
        """BIOES if E or S end at least as many entities as B or I do; IOB1 if more begin with I than with a free B."""
        if self.closed and self.closed >= self.unclosed:
            return "BIOES"
        return "IOB1" if self.begun_inside > self.begun_freely else "IOB2"


def decode(tags: Sequence[Tag], scheme: Scheme) -> Iterator[Chunk]:
    """Yield the chunks of a sentence in order. A beginning or end that `scheme` does not allow is their `fault`."""
    start = 0
    for place in range(1, len(tags) + 1):
        following = tags[place] if place < len(tags) else OUTSIDE
        if following.role == "O" or _begins(following, tags[place - 1]):
            if tags[start].role != "O":
                yield _chunk(tags, start, place, scheme)
            start = place


def encode(count: int, chunks: Iterable[Chunk], scheme: Literal["bio", "bioes"]) -> list[str]:
    """Return the tags of `count` tokens for `chunks`, which must not overlap."""
    tags = ["O"] * count
    for chunk in chunks:
        tags[chunk.start : chunk.end] = [f"I-{chunk.label}"] * (chunk.end - chunk.start)
        tags[chunk.start] = f"B-{chunk.label}"
        if scheme == "bioes":
            tags[chunk.end - 1] = f"{'S' if chunk.end - chunk.start == 1 else 'E'}-{chunk.label}"
    return tags


def flat(document: Document, options: Options) -> list[Entity]:
    """Return those entities of `document` that one row of tags can hold: all, only the outermost or the innermost.

    Of overlapping entities, `outermost` keeps the longest and `innermost` the shortest. Of several with that length,
    the one with the highest score is kept, and of these the first. A missing score counts as 1.

    Raises:
        DataError: two entities overlap, and `options.nested` is `error`.
    """
    chosen: list[Entity] = []
    sign = -1 if options.nested == "outermost" else 1
    for entity in sorted(document.entities, key=lambda entity: _precedence(entity, sign)):
        rival = next((e for e in chosen if e.start < entity.end and entity.start < e.end), None)
        if rival is None:
            chosen.append(entity)
        elif options.nested == "error":
            raise DataError(
                f"document {document.id!r}: {_named(document, rival)} and {_named(document, entity)} overlap, which "
                "one row of tags cannot show; give --nested outermost or innermost, or write another format",
                field="entities",
            )
    return sorted(chosen)


def _precedence(entity: Entity, sign: int) -> tuple[int, float, Entity]:
    return sign * (entity.end - entity.start), -1 if entity.score is None else -entity.score, entity


def _begins(tag: Tag, before: Tag) -> bool:
    """Return whether `tag` begins an entity after the tag `before`, by the rule of conlleval."""
    return tag.role != "O" and (tag.role in "BS" or before.role in "OES" or before.label != tag.label)


def _chunk(tags: Sequence[Tag], start: int, end: int, scheme: Scheme) -> Chunk:
    before = tags[start - 1] if start else OUTSIDE
    after = f"after {before.text}" if start else "at the beginning"
    first, last, label = tags[start], tags[end - 1], tags[start].label
    opening = {"IOB1": "I", "IOB2": "B", "BIOES": "B or S"}[scheme]
    chunk = Chunk(start, end, label)
    if scheme == "BIOES":
        if first.role in "IE":
            return chunk._replace(fault=_fault(first, f"begins an entity {after}", scheme, opening), place=start)
        if last.role in "BI":
            return chunk._replace(fault=_fault(last, "ends an entity", scheme, "E or S"), place=end - 1)
        return chunk
    if first.role == ("I" if scheme == "IOB2" else "B") and (scheme == "IOB2" or before.label != label):
        return chunk._replace(fault=_fault(first, f"begins an entity {after}", scheme, opening), place=start)
    for place in (start, end - 1):
        if tags[place].role in "ES":
            return chunk._replace(fault=_fault(tags[place], "ends an entity", scheme, "no such tag"), place=place)
    return chunk


def _fault(tag: Tag, what: str, scheme: Scheme, expected: str) -> str:
    return f"{tag.text} {what}, where the scheme of the file, {scheme}, has {expected}"


def _named(document: Document, entity: Entity) -> str:
    return f"{entity.label} {document.surface(entity)!r} [{entity.start}, {entity.end})"
