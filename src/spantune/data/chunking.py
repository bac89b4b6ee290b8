"""Long texts: cut into overlapping chunks, and what was found in them merged by offset.

A chunk ends where a sentence does; where none does in reach, at a clause, at white space, or else between two
characters. It begins before the end of the one before it, so that an entity across a cut is whole in one of them.
Every character is in a chunk and no text is changed. Overlap costs what it repeats, and where chunks disagree one of
them must be believed: see `merge`. It refuses a text over its limit, with the figure, and never cuts one short.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from unicodedata import category

from spantune.core import DataError, Document, Entity, half_surrogate

_CLAUSE_END = re.compile(r"[，、,：:…—]+[”’」』）】)\]\"']*\s*")
_SPACE = re.compile(r"\s+")
_ZERO_WIDTH_JOINER = "\u200d"
_FIRST_GUESS = 1024  # characters of a chunk; later ones are guessed from the one before


@dataclass(frozen=True)
class Chunk:
    """A part of a document, called `<id>#<k>`, and where in the document it starts."""

    document: Document
    start: int

    @property
    def end(self) -> int:
        """Where it ends in the whole text."""
        return self.start + len(self.document.text)


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into chunks.

    Args:
        fits: whether a text is short enough to be taken at once.
        overlap: characters that a chunk repeats of the one before it, and up to as many again so as to begin with a
            sentence or a clause; never more than half of that one.
        limit: most characters of a document.
    """

    fits: Callable[[str], bool]
    overlap: int = 64
    limit: int | None = None

    def cut(self, document: Document) -> list[Chunk]:
        """The chunks of `document`, without entities; a document that fits is its own and only chunk.

        Raises:
            DataError: the text is over the limit, holds what is not text, or not one character of it fits.
        """
        size = len(document.text)
        half = half_surrogate(document.text)
        if half is not None:
            raise DataError(
                f"document {document.id!r}: half a surrogate pair at character {half}, which no encoding has; the text "
                "was decoded from something that is not UTF-8: decode it anew",
                field="text",
            )
        if self.limit is not None and size > self.limit:
            raise DataError(
                f"document {document.id!r} has {size} characters, over extract.max_characters={self.limit}; raise it, "
                "or split the document",
                field="text",
            )
        bare = document.with_entities(())
        if self.fits(document.text):
            return [Chunk(bare, 0)]
        return [
            Chunk(replace(bare, id=f"{document.id}#{number}", text=document.text[start:end]), start)
            for number, (start, end) in enumerate(self._spans(document))
        ]

    def _spans(self, document: Document) -> Iterator[tuple[int, int]]:
        text = document.text
        marks = [[match.end() for match in mark.finditer(text)] for mark in (SENTENCE_END, _CLAUSE_END, _SPACE)]
        start, last, guess = 0, 0, _FIRST_GUESS
        while last < len(text):
            reach = self._reach(text, start, guess)
            if reach <= last:  # what is repeated fills the chunk
                start, reach = last, self._reach(text, last, guess)
            if reach == start:
                raise DataError(
                    f"document {document.id!r}: not even the character {text[start]!r} at {start} fits beside the "
                    "instruction; raise extract.chunk_tokens or train.max_tokens, or lower extract.max_new_tokens",
                    field="text",
                )
            end = reach if reach == len(text) else _end(text, last, reach, marks)
            yield start, end
            guess = end - start
            overlap = min(self.overlap, guess // 4)
            start, last = _start(text, end - 2 * overlap, end - overlap, marks) if overlap else end, end

    def _reach(self, text: str, start: int, guess: int) -> int:
        """About the furthest place up to which the text from `start` on fits; `start` when no character does."""
        low, high = start, min(start + guess, len(text))
        while high > low and self.fits(text[start:high]):
            low, high = high, min(start + 2 * (high - start), len(text))
        while high - low > 1 + (low - start) // 32:
            middle = (low + high) // 2
            if self.fits(text[start:middle]):
                low = middle
            else:
                high = middle
        return low


@dataclass(frozen=True)
class Merged:
    """A document with the entities of its chunks, and those that another chunk's overruled."""

    document: Document
    overruled: tuple[Entity, ...]


def merge(parent: Document, chunks: Sequence[Chunk]) -> Merged:
    """Bring the entities of `chunks`, in whatever order they come, back to the offsets of `parent`.

    An entity that several chunks state counts once, with its highest score. Two that share characters and that no
    chunk states together are in conflict: if one of them comes from a chunk that could see both, and the other does
    not, the first holds (a cut went through the other, or through what it lies in); else the higher score decides.
    All else is kept.
    """
    stated: dict[Entity, _Statement] = {}
    for chunk in chunks:
        assert parent.text.startswith(chunk.document.text, chunk.start)
        for entity in chunk.document.entities:
            whole = entity.shifted(chunk.start)
            known = stated.get(whole, _Statement(whole, ()))
            stated[whole] = _Statement(max(known.entity, whole, key=_score), (*known.by, chunk))
    rivals = _rivals(stated.values())

    def rank(entity: Entity) -> tuple[bool, float, Entity]:
        one = stated[entity]
        return (
            any(stated[rival].sees(one) and not one.sees(stated[rival]) for rival in rivals[entity]),
            -_score(one.entity),
            entity,
        )

    kept: set[Entity] = set()
    for entity in sorted(stated, key=rank):
        if kept.isdisjoint(rivals[entity]):
            kept.add(entity)
    overruled = tuple(sorted(one.entity for entity, one in stated.items() if entity not in kept))
    return Merged(parent.with_entities(stated[entity].entity for entity in kept), overruled)


@dataclass(frozen=True)
class _Statement:
    """An entity at its place in the whole text, and the chunks that state it."""

    entity: Entity
    by: tuple[Chunk, ...]

    def sees(self, other: _Statement) -> bool:
        """Whether a chunk that states this one holds the whole of `other` too."""
        return any(chunk.start <= other.entity.start and other.entity.end <= chunk.end for chunk in self.by)


def _rivals(statements: Iterable[_Statement]) -> Mapping[Entity, set[Entity]]:
    """The entities that each is in conflict with."""
    rivals: dict[Entity, set[Entity]] = defaultdict(set)
    ordered = sorted(statements, key=lambda statement: statement.entity)
    for index, one in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.entity.start >= one.entity.end:
                break
            if not any(chunk in other.by for chunk in one.by):
                rivals[one.entity].add(other.entity)
                rivals[other.entity].add(one.entity)
    return rivals


def _score(entity: Entity) -> float:
    return -1.0 if entity.score is None else entity.score


def _end(text: str, last: int, reach: int, marks: Sequence[Sequence[int]]) -> int:
    """The best place in (last, reach] to end a chunk: behind a sentence, else late behind a clause or white space."""
    late = last + (reach - last) // 2
    for places, after in zip(marks, (last, late, late), strict=True):
        place = _last_mark(places, reach)
        if place > after:
            return place
    return _between_characters(text, last, reach)


def _start(text: str, first: int, last: int, marks: Sequence[Sequence[int]]) -> int:
    """The best place in [first, last] to begin a chunk: the last one before a sentence, clause or word."""
    for places in marks:
        place = _last_mark(places, last)
        if place >= first:
            return place
    return _between_characters(text, first, last)


def _last_mark(places: Sequence[int], limit: int) -> int:
    """The last of the ascending `places` that is not over `limit`; -1 when there is none."""
    index = bisect_right(places, limit)
    return places[index - 1] if index else -1


def _between_characters(text: str, first: int, place: int) -> int:
    """`place`, or the nearest one before it, after `first`, that parts no mark from its letter and no joined emoji."""
    best = place
    while best > first and (category(text[best])[0] == "M" or _ZERO_WIDTH_JOINER in text[best - 1 : best + 1]):
        best -= 1
    return best if best > first else place


# A sentence ends after its stops, the quotes and brackets that they close, and the space that follows.
SENTENCE_END = re.compile(r"(?:[。！？；!?;\n]+[”’」』）】)\]\"']*|\.(?=[^\s\d]|\s))\s*")


def split_long(document: Document, fits: Callable[[Document], bool]) -> list[Document]:
    """Cut `document` at sentence ends into the fewest pieces that `fits` accepts; `[document]` when it fits whole.

    A piece is called `<id>#<k>` and has meta `parent` and `offset` (in characters). No entity is cut: a sentence end
    inside one is passed over.

    Raises:
        DataError: what stands between two sentence ends does not fit.
    """
    if fits(document):
        return [document]
    pieces: list[Document] = []
    start, end = 0, 0
    for cut in _cuts(document):
        if not fits(_piece(document, len(pieces), start, cut)):
            if end > start:
                pieces.append(_piece(document, len(pieces), start, end))
                start = end
            if not fits(_piece(document, len(pieces), start, cut)):
                raise _unsplittable(document, start, cut)
        end = cut
    return [*pieces, _piece(document, len(pieces), start, end)]


def _cuts(document: Document) -> list[int]:
    """The ends of sentences that lie in no entity, and the end of the text."""
    size = len(document.text)
    ends = {match.end() for match in SENTENCE_END.finditer(document.text)} - {size}
    inside = {end for end in ends for entity in document.entities if entity.start < end < entity.end}
    return [*sorted(ends - inside), size]


def _piece(document: Document, number: int, start: int, end: int) -> Document:
    entities = tuple(
        entity.shifted(-start) for entity in document.entities if start <= entity.start and entity.end <= end
    )
    meta = {**document.meta, "parent": document.id, "offset": start}
    return Document(f"{document.id}#{number}", document.text[start:end], entities, meta)


def _unsplittable(document: Document, start: int, end: int) -> DataError:
    passage = document.text[start:end]
    spanned = any(match.end() < len(passage) for match in SENTENCE_END.finditer(passage))
    why = "entities span the sentence ends inside it" if spanned else "no sentence ends inside it"
    return DataError(
        f"document {document.id!r} ({len(document.text)} characters): the {end - start} characters "
        f"[{start}, {end}) {passage[:20]!r}… are too long and {why}; raise train.max_tokens, or shorten the text",
        field="text",
    )
