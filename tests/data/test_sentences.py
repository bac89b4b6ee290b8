"""Where sentences end and where a text may be cut: never in an abbreviation, a number, an address or a word."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import Document, Entity
from spantune.data import Cutter, split_long
from spantune.data.sentences import clause_ends, sentence_ends, space_ends

TEXTS = [
    ["See www.example.com for more. ", "It runs on node.js today. ", "Done."],
    ["Go to http://x.org/a?b=1;c=2. ", "Then stop."],
    ["He lives near the U.S. Senate building. ", "He came from the U.S. ", "It was late."],
    ["Give 3.5 mg. ", "Then wait. ", "Give 3.5 mg. twice. ", "Version 2.0 is out. ", "1.5 was before."],
    ["Dr. Roe saw him. ", "Mrs. X and Prof. Li left on Jan. 5. ", "It rained in Jan. ", "So be it."],
    ["Use drugs, e.g. aspirin, i.e. ASA. ", "Stop."],
    ["See No. 5 and Fig. 2. ", "No. ", "He left."],
    ["J. Smith and A. B. Jones wrote it. ", "She took vitamin C. ", "The rest was fine."],
    ["At 5 a.m. he woke. ", "At 6 p.m. ", "The nurse came."],
    ["Smith et al. found it. ", "Cells, tissue, etc. ", "The end. ", "Acme Inc. was sold."],
    ["Wait… what? ", "Really?! ", "Yes... ", "No."],
    ['He said "Stop." ', "Then he left (at once.) ", "[Then he came.] ", "End."],
    ["1. First item\n", "2. Second item\n", "It was 5. ", "End."],
    ["Candida spp. were found. ", "Pt. was seen on Hosp. day 3. ", "Rx. Aspirin, cf. op. cit. and more. ", "End."],
    ["patient had fever. ", "he was treated."],
    ["患者发热。", "咳嗽三天！", "怎么办？！", "“不知道。”", "好；", "行。"],
    ["他说：“走吧！”", "（完。）", "「好。」", "他想……然后走了。", "“可是……”", "她说。"],
    ["见图1.5。", "用aspirin 3.5 mg。", "Dr. Roe来了。", "患者见Dr. Li后好转。", "He said hi. ", "好。"],
    ["体温38.5℃。", "血压120/80 mmHg. ", "无异常。", "Is it so?", "是。", "好.", "行。"],
]


@pytest.mark.parametrize("sentences", TEXTS, ids=lambda sentences: sentences[0].strip())
def test_sentences_end_where_a_reader_ends_them(sentences: list[str]) -> None:
    text = "".join(sentences)
    ends = [0, *sentence_ends(text)]
    ends += [] if ends[-1] == len(text) else [len(text)]
    assert [text[start:end] for start, end in pairwise(ends)] == sentences
    assert ends[1:] == list(accumulate(map(len, sentences)))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('aB3.。!?…;；,，:\n "”)（Dr肺'), max_size=30))
def test_places_are_ascending_and_behind_what_ends_there(text: str) -> None:
    for places in (sentence_ends(text), clause_ends(text), space_ends(text)):
        assert places == sorted(set(places)) and all(0 < place <= len(text) for place in places)
        assert not any(text[place : place + 1].isspace() for place in places)


@pytest.mark.parametrize("sign", [".", ". ", "…", '!"', '."', " ", "a", "Dr. ", "U.S.", "1.\n"])
def test_a_long_text_of_one_sign_is_read_once(sign: str) -> None:
    """An algorithm with quadratic time would take minutes."""
    text = sign * (200_000 // len(sign))
    for ends in (sentence_ends, clause_ends, space_ends):
        ends(text)


@pytest.mark.parametrize("size", [7, 10, 13])
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_chunk_of_a_long_sentence_ends_between_words(size: int, overlap: int) -> None:
    text = "患者服用aspirin片和insulin后血压120mmHg体温38.5℃无异常反应的记录在案"
    words = ["aspirin", "insulin", "120mmHg", "38"]
    chunks = Cutter(lambda part: len(part) <= size, overlap).cut(Document("d", text))
    inside = {
        place
        for word in words
        if len(word) < size - overlap
        for place in range(text.find(word) + 1, text.find(word) + len(word))
    }
    assert len(chunks) > 3 and inside.isdisjoint(chunk.end for chunk in chunks)
    assert chunks[0].start == 0 and chunks[-1].end == len(text)
    assert all(after.start <= before.end for before, after in pairwise(chunks))


def test_numbers_and_addresses_are_no_clauses() -> None:
    assert clause_ends("1,000 at 10:30, then: 5") == [16, 22]
    assert clause_ends("发热，咳嗽,乏力") == [3, 6]


def test_pieces_for_training_end_at_sentences_and_cut_no_entity() -> None:
    text = "Dr. Roe gave 3.5 mg. It helped. The U.S. Food. Inc. sold it. End."
    name = text.index("U.S. Food. Inc.")
    document = Document("d", text, (Entity(name, name + 15, "org"), Entity(0, 7, "per")))
    pieces = split_long(document, lambda piece: len(piece.text) <= 34)
    assert [piece.text for piece in pieces] == ["Dr. Roe gave 3.5 mg. It helped. ", "The U.S. Food. Inc. sold it. End."]
    assert [piece.surface(entity) for piece in pieces for entity in piece.entities] == ["Dr. Roe", "U.S. Food. Inc."]
