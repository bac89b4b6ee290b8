"""Cut long texts: `Cutter` into overlapping chunks for extraction, `split_long` into pieces for training.

Both cut by the rules of `sentences`. Part k of the document `<id>` gets the id `<id>#<k>`, and no text is changed.

A chunk ends at the end of a sentence. If none is in reach, it ends after a clause, at white space, or between two
words. The next chunk begins before that end, so that an entity at a cut is complete in one of the two. `merge` unites
the entities of all chunks and decides where they disagree. A text over the limit is refused, never truncated.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from unicodedata import category

from spantune.core import DataError, Document, Entity, half_surrogate
from spantune.data.sentences import clause_ends, sentence_ends, space_ends

_ZERO_WIDTH_JOINER = "\u200d"
_LONG = 1 << 15  # characters; if a beginning of this length does not fit, the rest of the text is not measured
_FIRST_GUESS = 1024  # characters of the first chunk; for each later chunk, the size of the previous one is guessed


def _part(document: Document, number: int, start: int, end: int) -> Document:
    """Return `[start, end)` of `document` as the document `<id>#<number>`, with the entities that lie inside."""
    entities = (e.shifted(-start) for e in document.entities if start <= e.start and e.end <= end)
    return replace(document, id=f"{document.id}#{number}", text=document.text[start:end], entities=tuple(entities))


@dataclass(frozen=True)
class Chunk:
    """A part of a document and the offset in the document at which it starts."""

    document: Document
    start: int

    @property
    def end(self) -> int:
        """The offset in the whole text at which the chunk ends."""
        return self.start + len(self.document.text)


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into chunks.

    Args:
        fits: returns whether a text is short enough for one chunk.
        overlap: the number of characters of the previous chunk that a chunk repeats. It may repeat up to twice as many
            to begin with a sentence or a clause, but never more than half of the previous chunk.
        limit: the most characters that a document may have; None for any number.
    """

    fits: Callable[[str], bool]
    overlap: int = 64
    limit: int | None = None

    def cut(self, document: Document) -> list[Chunk]:
        """Return the chunks of `document`, without entities. A document that fits is a single chunk with its own id.

        Raises:
            DataError: the text is over the limit, has half a surrogate pair, or not even one character of it fits.
        """
        return list(self.chunks(document))

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """Yield the chunks of `document` as `cut` returns them; each is cut when it is asked for.

        Raises:
            DataError: as `cut` raises it; that a character does not fit is found when the cutter reaches it.
        """
        self.check(document)
        bare, beginning = document.with_entities(()), document.text[:_LONG]
        is_short = len(beginning) == len(document.text) or self.fits(beginning)
        if is_short and self.fits(document.text):
            yield Chunk(bare, 0)
            return
        for number, (start, end) in enumerate(self._spans(document)):
            yield Chunk(_part(bare, number, start, end), start)

    def check(self, document: Document) -> None:
        """Check everything about `document` that can be known without cutting it.

        Raises:
            DataError: the text is over the limit, or has half a surrogate pair.
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

    def _spans(self, document: Document) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each chunk. The variable `last` is the end of the previous chunk.

        Raises:
            DataError: not even one character fits.
        """
        text = document.text
        places = [ends(text) for ends in (sentence_ends, clause_ends, space_ends)]
        start, last, guess = 0, 0, _FIRST_GUESS
        while last < len(text):
            reach = self._reach(text, start, guess)
            if reach <= last:  # the overlap alone fills the chunk
                start, reach = last, self._reach(text, last, guess)
            if reach == start:
                raise DataError(
                    f"document {document.id!r}: not even the character {text[start]!r} at {start} fits beside the "
                    "instruction; raise extract.chunk_tokens or train.max_tokens, or lower extract.max_new_tokens",
                    field="text",
                )
            end = reach if reach == len(text) else _end(text, last, reach, places)
            yield start, end
            guess = end - start
            overlap = min(self.overlap, guess // 4)
            start, last = _start(text, end - 2 * overlap, end - overlap, places) if overlap else end, end

    def _reach(self, text: str, start: int, guess: int) -> int:
        """Return an end such that `text[start:end]` fits, at most 3 % too small; `start` if no character fits."""
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
    """A document with the entities of its chunks, and the entities that were dropped for those of another chunk."""

    document: Document
    suppressed: tuple[Entity, ...]


def merge(parent: Document, chunks: Sequence[Chunk]) -> Merged:
    """Unite the entities of `chunks`, given in any order, at their offsets in `parent`.

    An entity that several chunks state counts once, with its highest score. Two entities are in conflict if they share
    characters and no chunk states both. One of them may come from a chunk that contains both, while the other does not.
    The former is then kept, because the other one was cut, or its context was. Otherwise the one with the higher score
    is kept. Entities without a conflict are all kept.
    """
    stated: dict[Entity, _Statement] = {}
    for chunk in chunks:
        assert parent.text.startswith(chunk.document.text, chunk.start)
        for entity in chunk.document.entities:
            shifted = entity.shifted(chunk.start)
            known = stated.get(shifted, _Statement(shifted, ()))
            stated[shifted] = _Statement(max(known.entity, shifted, key=_score), (*known.chunks, chunk))
    rivals = _rivals(stated.values())

    def rank(entity: Entity) -> tuple[bool, float, Entity]:
        statement = stated[entity]
        is_cut = any(stated[rival].sees(statement) and not statement.sees(stated[rival]) for rival in rivals[entity])
        return is_cut, -_score(statement.entity), entity

    accepted: set[Entity] = set()
    for entity in sorted(stated, key=rank):
        if accepted.isdisjoint(rivals[entity]):
            accepted.add(entity)
    suppressed = tuple(sorted(statement.entity for entity, statement in stated.items() if entity not in accepted))
    return Merged(parent.with_entities(stated[entity].entity for entity in accepted), suppressed)


@dataclass(frozen=True)
class _Statement:
    """An entity at its offsets in the whole text, and the chunks that state it."""

    entity: Entity
    chunks: tuple[Chunk, ...]

    def sees(self, rival: _Statement) -> bool:
        """Return whether a chunk that states this entity contains the whole entity of `rival`."""
        return any(chunk.start <= rival.entity.start and rival.entity.end <= chunk.end for chunk in self.chunks)


def _rivals(statements: Iterable[_Statement]) -> Mapping[Entity, set[Entity]]:
    """Return for each entity the entities that it is in conflict with; see `merge`."""
    rivals: dict[Entity, set[Entity]] = defaultdict(set)
    ordered = sorted(statements, key=lambda statement: statement.entity)
    for index, first in enumerate(ordered):
        for second in ordered[index + 1 :]:
            if second.entity.start >= first.entity.end:
                break
            if not any(chunk in second.chunks for chunk in first.chunks):
                rivals[first.entity].add(second.entity)
                rivals[second.entity].add(first.entity)
    return rivals


def _score(entity: Entity) -> float:
    return -1.0 if entity.score is None else entity.score


def _end(text: str, last: int, reach: int, places: Sequence[Sequence[int]]) -> int:
    """Return the best end of a chunk in (last, reach]: after a sentence, else a clause or space in the second half."""
    half = last + (reach - last) // 2
    for ends, minimum in zip(places, (last, half, half), strict=True):
        end = _last_place(ends, reach)
        if end > minimum:
            return end
    return _between_characters(text, last, reach)


def _start(text: str, first: int, last: int, places: Sequence[Sequence[int]]) -> int:
    """Return the best start of a chunk in [first, last]: the last start of a sentence, else of a clause or a word."""
    for starts in places:
        start = _last_place(starts, last)
        if start >= first:
            return start
    return _between_characters(text, first, last)


def _last_place(places: Sequence[int], limit: int) -> int:
    """Return the last of `places`, which are ascending, that is at most `limit`; -1 if there is none."""
    index = bisect_right(places, limit)
    return places[index - 1] if index else -1


def _between_characters(text: str, first: int, place: int) -> int:
    """Return the last place in (first, place] at which no word, no letter with its marks and no joined emoji is cut.

    If there is no such place, a single word fills the range, and it is cut between two letters. If that is not possible
    either, the text is cut at `place`.
    """
    for is_whole in (_is_between_words, _is_between_letters):
        best = place
        while best > first and not is_whole(text, best):
            best -= 1
        if best > first:
            return best
    return place


def _is_between_letters(text: str, place: int) -> bool:
    return category(text[place])[0] != "M" and _ZERO_WIDTH_JOINER not in text[place - 1 : place + 1]


def _is_between_words(text: str, place: int) -> bool:
    """Return whether `place` is inside no word or number. Two ideographs may be parted: they have no spaces between."""
    inside = all(character.isalnum() and character < "\u2e80" for character in text[place - 1 : place + 1])
    return not inside and _is_between_letters(text, place)


def split_long(document: Document, fits: Callable[[Document], bool]) -> list[Document]:
    """Cut `document` at sentence ends into the fewest pieces that `fits` accepts; `[document]` if it fits as a whole.

    A single sentence that does not fit is cut after its clauses; a list of references, for example, may have no
    sentence end. No entity is cut: an end inside an entity is skipped. The meta of a piece has `parent`, the id of the
    document, and `offset`, the offset of the piece in characters.

    Raises:
        DataError: the text between two neighbouring ends does not fit.
    """
    if fits(document):
        return [document]
    pieces: list[Document] = []
    start, end = 0, 0
    for cut in _cuts(document, fits):
        if end > start and not fits(_piece(document, len(pieces), start, cut)):
            pieces.append(_piece(document, len(pieces), start, end))
            start = end
        end = cut
    return [*pieces, _piece(document, len(pieces), start, end)]


def _cuts(document: Document, fits: Callable[[Document], bool]) -> Iterator[int]:
    """Yield the ends of sentences, and of clauses in a sentence that does not fit; the last is the end of the text."""
    start = 0
    for end in _outside_entities(document, sentence_ends(document.text), 0, len(document.text)):
        if not fits(_piece(document, 0, start, end)):
            begin = start
            for clause in _outside_entities(document, clause_ends(document.text), start, end):
                if not fits(_piece(document, 0, begin, clause)):
                    raise _unsplittable(document, begin, clause)
                begin = clause
                yield clause
        else:
            yield end
        start = end


def _outside_entities(document: Document, ends: Iterable[int], start: int, end: int) -> list[int]:
    """Return those of `ends` between `start` and `end` that are inside no entity, and `end` itself."""
    inside = (place for place in ends if start < place < end)
    return [*(place for place in inside if not any(e.start < place < e.end for e in document.entities)), end]


def _piece(document: Document, number: int, start: int, end: int) -> Document:
    meta = {**document.meta, "parent": document.id, "offset": start}
    return replace(_part(document, number, start, end), meta=meta)


def _unsplittable(document: Document, start: int, end: int) -> DataError:
    passage = document.text[start:end]
    spanned = any(place < len(passage) for ends in (sentence_ends, clause_ends) for place in ends(passage))
    why = "entities span the ends of clauses inside it" if spanned else "no sentence and no clause ends inside it"
    return DataError(
        f"document {document.id!r} ({len(document.text)} characters): the {end - start} characters "
        f"[{start}, {end}) {passage[:20]!r}… are too long and {why}; raise train.max_tokens, or shorten the text",
        field="text",
    )
