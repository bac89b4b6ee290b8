"""Tag sequences to spans of tokens and back: BIO (IOB2), IOB1, and BIOES with its other letters (BMES, BIOUL, BIOEW).

A tag is spelt `B-PER`, `B_PER` or with another sign (prefix), `b-PER` (lower), `PER-B` or `PER_B` (suffix), `B` (bare,
the user names the label) or `PER` (io, where neighbours of one type are one entity).

Spans are found by conlleval's rule in every scheme: B and S always begin one, I and E do after O, after an end and
after another type. The scheme, which the majority of the whole file shows, only decides which beginnings and ends are
invalid. No sequence is refused here: its faults are returned, and the caller refuses or repairs them.
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
"""An empty cell in CoNLL-U and HIPE; in a column of tags, no entity."""
_SPELLINGS: tuple[Spelling, ...] = ("prefix", "lower", "suffix", "bare")
_PLAIN_LABEL = re.compile(r"[A-Za-z][\w./:&+-]+")


class Tag(NamedTuple):
    """A tag as written, its role (O, B, I, E or S) and its label."""

    text: str
    role: str
    label: str


class Chunk(NamedTuple):
    """Tokens `[start, end)` under one label; `fault` says what is invalid in their tags, `place` at which token."""

    start: int
    end: int
    label: str
    fault: str | None = None
    place: int = 0


OUTSIDE = Tag("O", "O", "")


@lru_cache(maxsize=1 << 12)
def parse_tag(text: str, spelling: Spelling = "prefix", label: str = "") -> Tag | None:
    """Return `text` as a tag, which has `label` if it is spelt bare; None if it is not one."""
    if text == "O":
        return OUTSIDE
    if spelling == "lower":
        return parse_tag(text[:1].upper() + text[1:]) if text[:1].islower() else None
    if spelling == "bare":
        letter = text.rstrip(_MARKS)  # `B-` has no type either
        return Tag(text, _ROLES[letter], label) if letter in _ROLES else None
    if spelling == "io":
        return Tag(text, "I", text) if text and not re.search(r"\s", text) else None
    match = (_PREFIXED if spelling == "prefix" else _SUFFIXED).fullmatch(text)
    return Tag(text, _ROLES[match["role"]], match["label"]) if match else None


def are_tags_of(text: object, tags: object) -> bool:
    """Whether `tags` are those of the characters of `text`, or of its tokens if it is a list."""
    return (
        isinstance(text, str | list)
        and isinstance(tags, list)
        and 0 < len(text) == len(tags)
        and all(isinstance(tag, str) and parse_tag(tag) is not None for tag in tags)
    )


def spelling_of(cells: Mapping[str, int], rows: int, *, is_named: bool = False) -> Spelling | None:
    """Return how tags are spelt, from how often each cell of a column of `rows` occurs; None if it holds none.

    Labels alone are taken for tags where a fifth of the cells is O, or some of a column that the user names. Small
    letters are taken for B and I where no other tags are: `e-mail` may be a type.
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
    """Return the scheme that the steps from one tag to the next show; None stands for the edges of a sentence."""
    scheme = SchemeCensus()
    for (cell_before, cell), count in steps.items():
        before, tag = (OUTSIDE if text is None else parse(text) or OUTSIDE for text in (cell_before, cell))
        scheme.add(tag, before, count)
    return scheme.scheme


@dataclass(slots=True)
class SchemeCensus:
    """Counts, over any number of sentences, of the transitions that distinguish the schemes."""

    closed: int = 0
    unclosed: int = 0
    begun_inside: int = 0
    begun_freely: int = 0

    def add(self, tag: Tag, before: Tag, count: int = 1) -> None:
        """Count steps from `before` to `tag`; a sentence begins and ends with OUTSIDE."""
        begins = _begins(tag, before)
        self.closed += count * (tag.role in "ES")
        self.unclosed += count * (before.role in "BI" and (tag.role == "O" or begins))
        self.begun_inside += count * (begins and tag.role == "I")
        self.begun_freely += count * (tag.role == "B" and tag.label != before.label)

    @property
    def scheme(self) -> Scheme:
        """BIOES if more entities are closed than not; IOB1 if more begin with I than with a B that IOB1 forbids."""
        if self.closed and self.closed >= self.unclosed:
            return "BIOES"
        return "IOB1" if self.begun_inside > self.begun_freely else "IOB2"


def decode(tags: Sequence[Tag], scheme: Scheme) -> Iterator[Chunk]:
    """Yield the chunks of a sentence in order; what `scheme` does not allow is their fault."""
    start = 0
    for place in range(1, len(tags) + 1):
        following = tags[place] if place < len(tags) else OUTSIDE
        if following.role == "O" or _begins(following, tags[place - 1]):
            if tags[start].role != "O":
                yield _chunk(tags, start, place, scheme)
            start = place


def encode(count: int, chunks: Iterable[Chunk], scheme: Literal["bio", "bioes"]) -> list[str]:
    """Return the tags of `count` tokens under `chunks`, which do not overlap."""
    tags = ["O"] * count
    for chunk in chunks:
        tags[chunk.start : chunk.end] = [f"I-{chunk.label}"] * (chunk.end - chunk.start)
        tags[chunk.start] = f"B-{chunk.label}"
        if scheme == "bioes":
            tags[chunk.end - 1] = f"{'S' if chunk.end - chunk.start == 1 else 'E'}-{chunk.label}"
    return tags


def flat(document: Document, options: Options) -> list[Entity]:
    """Return the entities of `document` that one row of tags can hold: all, or by option the outermost or innermost.

    Of overlapping entities, `outermost` keeps the longest, `innermost` the shortest, and of those with one length the
    one with the highest score, which is 1 where there is none; of equals, the first.

    Raises:
        DataError: two overlap and `options.nested` is `error`.
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
    """Whether `tag` begins an entity after `before`, by conlleval's rule."""
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
