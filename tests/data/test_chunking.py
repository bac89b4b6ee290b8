"""Chunks cover their document, begin and end at sentence borders where possible, and give back all entities."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import DataError, Document, Entity
from spantune.data import Chunk, Cutter, merge


def at_most(size: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= size


def weighed(size: int) -> Callable[[str], bool]:
    """Return a size limit that counts as a tokenizer may: a character outside of ASCII takes three tokens."""
    return lambda text: sum(1 if character < "\x80" else 3 for character in text) <= size


def texts_of(text: str, size: int, overlap: int) -> list[str]:
    return [chunk.document.text for chunk in Cutter(at_most(size), overlap).cut(Document("d", text))]


def test_a_document_that_fits_is_its_own_chunk_without_its_entities() -> None:
    document = Document("d", "甲。乙。", (Entity(0, 1, "x"),), {"k": 1})
    assert Cutter(at_most(4)).cut(document) == [Chunk(Document("d", "甲。乙。", (), {"k": 1}), 0)]


def test_chunks_end_and_begin_where_sentences_do() -> None:
    text = "一二三四五六七八。" * 20
    pieces = Cutter(at_most(50), overlap=10).cut(Document("d", text))
    assert [piece.document.id for piece in pieces[:2]] == ["d#0", "d#1"]
    assert all(piece.document.text.endswith("。") and piece.document.text.startswith("一") for piece in pieces)
    assert all(
        one.end - other.start == 18 for one, other in pairwise(pieces)
    )  # the chunks repeat two sentences of nine characters
    assert pieces[-1].end == len(text)


def test_clauses_white_space_and_characters_come_after_sentences() -> None:
    assert texts_of("一二三四，五六七八九", 8, 0) == ["一二三四，", "五六七八九"]
    assert texts_of("abc defgh ijklm", 12, 0) == ["abc defgh ", "ijklm"]
    assert texts_of("abcdefghijklm", 8, 0) == ["abcdefgh", "ijklm"]
    assert texts_of("一。二三，四五六七八九", 8, 0) == [
        "一。",
        "二三，四五六七八",
        "九",
    ]  # a clause that ends too early is not cut off
    assert texts_of("abcdefghijklm", 8, 2) == ["abcdefgh", "ghijklm"]


def test_no_mark_is_parted_from_its_letter_and_no_joined_emoji_apart() -> None:
    assert texts_of("abcdefgé́é́xyz", 8, 0)[0] == "abcdefg"
    family = "👩\u200d👩\u200d👦"
    assert texts_of("abc" + family + "def", 6, 0)[0] == "abc"
    assert "".join(texts_of("e" + "\u0301" * 40, 8, 0)) == "e" + "\u0301" * 40  # no better place to cut exists


def test_a_limit_is_an_error_with_the_figures() -> None:
    with pytest.raises(DataError, match=r"'n/1' has 11 characters, over extract\.max_characters=10; raise it"):
        Cutter(at_most(3), limit=10).cut(Document("n/1", "x" * 11))
    assert len(Cutter(at_most(3), limit=11).cut(Document("n/1", "x" * 11))) == 4
    with pytest.raises(DataError, match=r"'n/1': not even the character '肺' at 3 fits"):
        Cutter(weighed(2)).cut(Document("n/1", "abc肺"))


def test_what_is_repeated_gives_way_where_it_would_fill_the_chunk() -> None:
    """With the word before the cut repeated, the chunk would have no room for new text."""
    text = "a b肺肺肺肺"
    pieces = Cutter(weighed(6), overlap=1).cut(Document("d", text))
    assert_covers(text, pieces, weighed(6))
    assert [piece.document.text for piece in pieces[:2]] == ["a b肺", "肺肺"]


def test_a_million_characters_take_few_tries() -> None:
    tries = 0

    def fits(text: str) -> bool:
        nonlocal tries
        tries += 1
        return len(text) <= 1500

    text = "x" * 1_000_000
    pieces = Cutter(fits).cut(Document("d", text))
    assert pieces[-1].end == len(text) and len(pieces) < 1_000_000 / 1400 + 1
    assert tries < 9 * len(pieces)


def assert_covers(text: str, pieces: list[Chunk], fits: Callable[[str], bool]) -> None:
    """Check that every character is in a chunk, and that each chunk adds some, fits, and is the text at its offset."""
    assert pieces[0].start == 0 and pieces[-1].end == len(text)
    assert all(text[piece.start : piece.end] == piece.document.text and fits(piece.document.text) for piece in pieces)
    assert all(one.start < other.start <= one.end < other.end for one, other in pairwise(pieces))


characters = st.sampled_from('甲乙a。！;.\n ，, "”😀\u0301\u200d')
long_texts = st.text(characters, min_size=1, max_size=120)


@settings(deadline=None, max_examples=300)
@given(long_texts, st.integers(3, 40), st.integers(0, 20))
def test_any_text_is_covered(text: str, size: int, overlap: int) -> None:
    assert_covers(text, Cutter(weighed(size), overlap).cut(Document("d", text)), weighed(size))


@settings(deadline=None, max_examples=200)
@given(long_texts, st.integers(24, 48), st.integers(1, 6), st.data())
def test_an_entity_no_longer_than_the_overlap_is_whole_in_a_chunk(
    text: str, size: int, overlap: int, data: st.DataObject
) -> None:
    pieces = Cutter(at_most(size), overlap).cut(Document("d", text))
    start = data.draw(st.integers(0, len(text) - 1))
    end = min(len(text), start + overlap)
    room = all(one.end - one.start >= 4 * overlap for one in pieces[:-1])
    assert not room or any(piece.start <= start and end <= piece.end for piece in pieces)


spans = st.lists(
    st.tuples(st.integers(0, 119), st.integers(1, 9), st.sampled_from("xyz"), st.floats(0, 1)), max_size=12
)


@settings(deadline=None, max_examples=300)
@given(long_texts, spans, st.integers(8, 60), st.integers(0, 12))
def test_a_reader_who_says_what_it_sees_gives_the_document_back(
    text: str, found: list[tuple[int, int, str, float]], size: int, overlap: int
) -> None:
    """Each chunk states all entities inside it: none is lost, moved or doubled, and there is no conflict."""
    entities = {Entity(a, a + n, label, score) for a, n, label, score in found if a + n <= len(text)}
    pieces = Cutter(at_most(size), overlap).cut(Document("d", text))
    seen = {
        entity for entity in entities for piece in pieces if piece.start <= entity.start and entity.end <= piece.end
    }
    # No chunk has the whole of an entity at a cut, so an entity that overlaps it may be suppressed.
    if seen != entities:
        return
    merged = merge(Document("d", text), [with_entities(piece, entities) for piece in pieces])
    together = {
        entity
        for entity in entities
        for other in entities
        if shares(entity, other) and not any(sees(piece, entity) and sees(piece, other) for piece in pieces)
    }
    assert set(merged.document.entities) >= entities - together
    assert set(merged.document.entities) | set(merged.suppressed) == entities


@pytest.mark.no_cover
@settings(deadline=None, max_examples=200)
@given(long_texts, st.lists(spans, min_size=8, max_size=8), st.integers(8, 40), st.randoms(use_true_random=False))
def test_merging_is_whole_and_does_not_depend_on_the_order(
    text: str, found: list[list[tuple[int, int, str, float]]], size: int, shuffled: random.Random
) -> None:
    """Chunks state any entities: kept entities do not conflict, and each suppressed one conflicts with a kept one."""
    pieces = [
        replace(piece, document=piece.document.with_entities(stated(piece, spans)))
        for piece, spans in zip(Cutter(at_most(size), 6).cut(Document("d", text)), found, strict=False)
    ]
    merged = merge(Document("d", text), pieces)
    mixed = list(pieces)
    shuffled.shuffle(mixed)
    assert merge(Document("d", text), mixed) == merged
    everything = {entity.shifted(piece.start) for piece in pieces for entity in piece.document.entities}
    kept = set(merged.document.entities)
    assert kept | set(merged.suppressed) == everything and kept.isdisjoint(merged.suppressed)
    assert not any(rivals(one, other, pieces) for one in kept for other in kept)
    assert all(any(rivals(one, other, pieces) for other in kept) for one in merged.suppressed)
    for entity in kept:
        scores = [e.score for p in pieces for e in p.document.entities if e.shifted(p.start) == entity]
        assert entity.score == max(scores, key=lambda score: score or 0.0)


def stated(piece: Chunk, found: list[tuple[int, int, str, float]]) -> list[Entity]:
    size = len(piece.document.text)
    return [Entity(a % size, min(size, a % size + n), label, score) for a, n, label, score in found]


def with_entities(piece: Chunk, entities: set[Entity]) -> Chunk:
    mine = [entity.shifted(-piece.start) for entity in entities if sees(piece, entity)]
    return replace(piece, document=piece.document.with_entities(mine))


def sees(piece: Chunk, entity: Entity) -> bool:
    return piece.start <= entity.start and entity.end <= piece.end


def shares(one: Entity, other: Entity) -> bool:
    return one != other and one.start < other.end and other.start < one.end


def rivals(one: Entity, other: Entity, pieces: list[Chunk]) -> bool:
    def by(entity: Entity) -> set[str]:
        return {
            piece.document.id for piece in pieces if entity in {e.shifted(piece.start) for e in piece.document.entities}
        }

    return shares(one, other) and by(one).isdisjoint(by(other))


# Two chunks, [0, 10) and [6, 16), of sixteen characters.
TEXT = "0123456789abcdef"


def two(first: list[Entity], second: list[Entity]) -> list[Chunk]:
    return [
        Chunk(Document("d#0", TEXT[:10], tuple(first)), 0),
        Chunk(Document("d#1", TEXT[6:], tuple(entity.shifted(-6) for entity in second)), 6),
    ]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        # stated by both: kept once, with the higher score
        ([Entity(7, 9, "x", 0.4)], [Entity(7, 9, "x", 0.7)], [(7, 9, "x", 0.7)]),
        ([Entity(7, 9, "x", None)], [Entity(7, 9, "x", 0.1)], [(7, 9, "x", 0.1)]),
        # stated by one of two chunks that contain it, without conflict
        ([Entity(7, 9, "x", 0.1)], [], [(7, 9, "x", 0.1)]),
        # both chunks contain both entities: the higher score wins
        ([Entity(6, 8, "x", 0.8)], [Entity(7, 9, "x", 0.6)], [(6, 8, "x", 0.8)]),
        ([Entity(6, 8, "x", 0.5)], [Entity(6, 8, "y", 0.6)], [(6, 8, "y", 0.6)]),
        # the cut is inside [8, 12): the chunk that contains all of it wins, whatever the scores are
        ([Entity(8, 10, "x", 0.99)], [Entity(8, 12, "x", 0.2)], [(8, 12, "x", 0.2)]),
        ([Entity(3, 9, "x", 0.2)], [Entity(6, 9, "x", 0.99)], [(3, 9, "x", 0.2)]),
        # no chunk contains both
        ([Entity(3, 8, "x", 0.3)], [Entity(7, 12, "x", 0.4)], [(7, 12, "x", 0.4)]),
        # nested, and stated together by the first chunk: no conflict
        ([Entity(6, 9, "x", 0.9), Entity(7, 8, "y", 0.2)], [Entity(6, 9, "x", 0.1)],
         [(6, 9, "x", 0.9), (7, 8, "y", 0.2)]),
    ],
)  # fmt: skip
def test_who_is_believed(first: list[Entity], second: list[Entity], kept: list[tuple[int, int, str, float]]) -> None:
    merged = merge(Document("d", TEXT), two(first, second))
    assert [(e.start, e.end, e.label, e.score) for e in merged.document.entities] == kept
    assert len(merged.suppressed) == len({*first, *second}) - len(kept)
