"""Sentence splitting, counts, label checks and the cutting of long documents."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import Chunk, chunking, counts, formats, loading, merge

LONG = "入院后测血压。夜间诉头痛！“睡不好。”家属陪护；次日复查 CT. No change. Stable"


def numbered(count: int) -> list[Document]:
    return [Document(str(number), f"第{number}句。") for number in range(count)]


def at_most(size: int) -> Callable[[Document], bool]:
    return lambda document: len(document.text) <= size


def test_holdout_takes_the_first_tenth_and_limit_the_first_of_the_rest() -> None:
    train, held = loading.holdout(numbered(29), 0.1)
    assert [document.id for document in held] == ["0", "1"]
    assert [document.id for document in train] == [str(number) for number in range(2, 29)]
    assert [document.id for document in loading.limit(train, 3)] == ["2", "3", "4"]
    assert loading.limit(train, None) == loading.limit(train, 99) == train
    assert loading.holdout(numbered(3), 0) == (numbered(3), [])


@pytest.mark.parametrize("share", [1, -0.1, 0.1])
def test_holdout_refuses_a_share_that_holds_out_all_or_nothing(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.holdout"):
        loading.holdout(numbered(5), share)


def test_statistics_count_what_is_there() -> None:
    nested = Document("a", "右膝关节肿痛。", (Entity(0, 4, "bod"), Entity(0, 6, "sym"), Entity(2, 4, "bod")))
    crossing = Document("b", "abcd", (Entity(0, 3, "x"), Entity(1, 4, "y"), Entity(1, 4, "z")))
    found = counts.statistics([nested, crossing, Document("c", "abcd"), Document("d", "x" * 40)])
    assert found == counts.Statistics(
        documents=4,
        sentences=4,
        entities={"bod": 2, "sym": 1, "x": 1, "y": 1, "z": 1},
        nested=2,
        depths={1: 4, 2: 1, 3: 1},
        crossing=2,
        shared_spans=1,
        without_entities=2,
        length_p50=4,
        length_p90=40,
        length_max=40,
        duplicates=1,
        surfaces=5,
        repeated_surfaces=0,
        ambiguous_surfaces=1,
        ambiguous={"bcd": {"y": 1, "z": 1}},
        characters=counts.histogram([7, 4, 4, 40]),
        entity_characters=counts.histogram([4, 6, 2, 3, 3, 3]),
    )


def test_an_entity_annotated_twice_counts_twice() -> None:
    found = counts.statistics([Document("a", "abc", (Entity(0, 3, "x"), Entity(0, 1, "x"), Entity(0, 1, "x")))])
    assert (found.entities, found.nested, found.depths) == ({"x": 3}, 2, {1: 1, 2: 2})


def test_depth_is_that_of_the_longest_chain() -> None:
    chain = Document("a", "abcdefgh", tuple(Entity(0, end, "x") for end in (8, 6, 4, 2)))
    assert sorted(counts.nesting(chain).values()) == [1, 2, 3, 4]
    # (3, 5) is inside two spans that cross, so its depth is 2, not 3; one span with two labels is not nested
    crossing = Document("b", "abcdefgh", (Entity(0, 5, "x"), Entity(3, 8, "x"), Entity(3, 5, "x"), Entity(3, 5, "y")))
    assert sorted(counts.nesting(crossing).values()) == [1, 1, 2, 2]


def test_surfaces_that_occur_elsewhere_or_have_several_labels() -> None:
    twice = Document("a", "咳嗽加重，咳嗽咳痰", (Entity(0, 2, "sym"), Entity(5, 7, "sym"), Entity(7, 9, "sym")))
    overlapping = Document("b", "aaa", (Entity(0, 2, "x"),))  # "aa" begins at 0 and at 1
    found = counts.statistics([twice, overlapping, Document("c", "咳嗽", (Entity(0, 2, "dis"),))])
    assert found.repeated_surfaces == 0.6 and found.surfaces == 3
    assert found.ambiguous == {"咳嗽": {"sym": 2, "dis": 1}}


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("  ", 0), ("无标点", 1), ("一。二！三", 3), ("一。二。 ", 2), ("Yes. 3.5 mg", 2)]
)
def test_sentences(text: str, count: int) -> None:
    assert counts.statistics([Document("a", text)]).sentences == count


@given(st.lists(st.integers(0, 10**6), max_size=60))
def test_a_histogram_counts_every_value_once_in_bins_that_join(values: list[int]) -> None:
    bins = counts.histogram(values)
    assert len(bins) <= counts.BINS + 2 and bool(bins) == bool(values)
    for one in bins:
        assert one.count == sum(one.low <= value and (one.high is None or value < one.high) for value in values)
    assert sum(one.count for one in bins) == len(values)
    assert all(before.high == after.low for before, after in pairwise(bins))


def test_bins_are_named_as_they_are_read() -> None:
    assert [one.name for one in counts.histogram([0, 1, 1])] == ["0", "1"]
    long = [*range(20, 220), *range(20, 220), 5000]
    assert [counts.histogram(long)[0].name, counts.histogram(long)[-1].name] == ["20–39", "200 and more"]


def test_statistics_refuse_nothing() -> None:
    with pytest.raises(DataError, match="no documents"):
        counts.statistics([])


def test_shared_texts_are_listed_once_in_order() -> None:
    first = [Document(str(n), text) for n, text in enumerate("dabca")]
    assert loading.shared_texts(first, [Document("x", "a"), Document("y", "d"), Document("z", "q")]) == ["d", "a"]


def joined(document: Document, pieces: list[Document]) -> Document:
    """Join the pieces of a document to one document."""
    assert "".join(piece.text for piece in pieces) == document.text
    starts = [0 if piece.id == document.id else piece.meta["offset"] for piece in pieces]
    return merge(document, [Chunk(piece, start) for piece, start in zip(pieces, starts, strict=True)]).document


def test_split_cuts_at_sentence_ends_with_offsets() -> None:
    document = Document("n", LONG, (Entity(10, 12, "sym"),), {"group": "g"})
    pieces = chunking.split_long(document, at_most(13))
    assert [piece.text for piece in pieces] == [
        "入院后测血压。夜间诉头痛！",
        "“睡不好。”家属陪护；",
        "次日复查 CT. ",
        "No change. ",
        "Stable",
    ]
    assert [piece.id for piece in pieces] == ["n#0", "n#1", "n#2", "n#3", "n#4"]
    assert pieces[1].meta == {"group": "g", "parent": "n", "offset": 13}
    assert pieces[0].surface(pieces[0].entities[0]) == "头痛"


def test_a_document_that_fits_is_left_alone() -> None:
    document = Document("n", LONG, meta={"offset": 40})
    assert chunking.split_long(document, at_most(len(LONG))) == [document]
    assert joined(document, [document]) == document


def test_a_sentence_end_inside_an_entity_is_passed_over() -> None:
    document = Document("n", "甲。乙。丙。", (Entity(0, 3, "x"),))
    assert [piece.text for piece in chunking.split_long(document, at_most(4))] == ["甲。乙。", "丙。"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (Document("n/1", "短。" + "长" * 30 + "。短。"), r"\[2, 33\) .*no sentence and no clause ends inside"),
        (Document("n/1", "甲。乙。丙。丁。", (Entity(0, 3, "x"), Entity(2, 7, "y"))), r"\[0, 8\) .*entities span"),
    ],
)
def test_what_cannot_be_cut_is_refused(document: Document, why: str) -> None:
    with pytest.raises(DataError, match=rf"'n/1' \({len(document.text)} characters\).*{why}.*max_tokens"):
        chunking.split_long(document, at_most(5))


@settings(deadline=None)
@given(
    st.text(st.sampled_from('甲乙a。！;.\n "”😀\u0301'), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(1, 8), st.sampled_from("xyz")), max_size=6),
    st.integers(8, 30),
)
def test_pieces_join_to_exactly_the_document(text: str, spans: list[tuple[int, int, str]], size: int) -> None:
    entities = tuple({Entity(a, a + n, label) for a, n, label in spans if a + n <= len(text)})
    document = Document("d", text, entities)
    try:
        pieces = chunking.split_long(document, at_most(size))
    except DataError:
        return
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text) <= size for piece in pieces)
    assert joined(document.with_entities(()), pieces) == document


def test_pieces_of_a_piece_join_again() -> None:
    document = Document("n", LONG, (Entity(0, 2, "x"), Entity(10, 12, "sym")))
    first = chunking.split_long(document, at_most(25))[0]
    smaller = chunking.split_long(first, at_most(13))
    assert [piece.id for piece in smaller] == ["n#0#0", "n#0#1"]
    assert joined(first, smaller) == first


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_real_corpus_has_the_known_traps() -> None:
    train = formats.read(SHARED / "cmeee_v1/train.jsonl").documents
    found = counts.statistics(train)
    assert (found.duplicates, found.shared_spans, found.length_max, found.without_entities) == (43, 33, 4870, 0)
    assert round(found.repeated_surfaces, 2) == 0.18 and found.nested == found.depths[2] == 3644
    assert sum(one.count for one in found.characters) == 15000 and found.ambiguous["贫血"]["dis"] == 103
    dev = formats.read(SHARED / "cmeee_v1/dev.jsonl").documents
    assert loading.shared_texts(train, dev) == []
    assert loading.shared_texts(dev, formats.read(SHARED / "cmeee_v2_few_shot/cmeee.jsonl").documents) != []
    rest, held = loading.holdout(train, 0.1)
    assert (len(held), len(rest), len(loading.limit(rest, 2000))) == (1500, 13500, 2000)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_long_real_documents_are_cut_and_joined_exactly_or_refused_by_name() -> None:
    """Most long texts of CMeEE are lists of references, which contain no end of a sentence."""
    size, cut, refused = 1000, 0, 0
    for document in formats.read(SHARED / "cmeee_v1/train.jsonl").documents:
        if len(document.text) <= size:
            continue
        try:
            pieces = chunking.split_long(document, at_most(size))
        except DataError as error:
            assert f"'{document.id}'" in str(error)
            refused += 1
            continue
        assert all(len(piece.text) <= size for piece in pieces)
        assert joined(document.with_entities(()), pieces) == document
        cut += 1
    assert (cut, refused) == (15, 0)
