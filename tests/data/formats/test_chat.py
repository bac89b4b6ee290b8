"""Chat data (alpaca, messages, ShareGPT, UniversalNER): instructions around the text, answers and bad input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import Options, formats
from spantune.data.raw.anchored import AMBIGUOUS

ANSWER = '{"entity_text": "腹痛", "entity_label": "sym"}{"entity_text": "腹", "entity_label": "bod"}'


def alpaca(said: str, answer: str, instruction: str = "找出实体") -> dict[str, object]:
    return {"instruction": instruction, "input": said, "output": answer}


def messages(said: str, answer: str, system: str = "") -> dict[str, object]:
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": said}, {"role": "assistant", "content": answer}]}


def sharegpt(said: str, answer: str) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": answer}], "system": "x"}


@pytest.mark.parametrize("record", [alpaca, messages, sharegpt])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_the_layouts_are_recognised_and_the_tutorials_prefix_is_no_text(record, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [record("文本:患者腹痛三天。", ANSWER), record("文本:无不适。", "没有找到任何实体")]
    corpus = formats.read(file_of(tmp_path, name, rows))
    assert corpus.format == "chat"
    assert [document.text for document in corpus.documents] == ["患者腹痛三天。", "无不适。"]
    assert spans(corpus.documents) == [[("腹", 2, "bod"), ("腹痛", 2, "sym")], []]
    assert corpus.notes == {
        "taken off the user's turn, where it stands in every record: '文本:'": 2,
        "id made from the document's number": 2,
    }


def test_an_instruction_in_the_users_turn_is_taken_off_where_every_record_has_it(tmp_path: Path) -> None:
    frame = "Find the symptoms, such as 腹痛.\nText: {}\nAnswer with JSON."
    rows = [messages(frame.format(text), ANSWER) for text in ("患者腹痛。", "患者无腹痛。")]
    corpus = formats.read(file_of(tmp_path, "t.jsonl", rows))
    assert [document.text for document in corpus.documents] == ["患者腹痛。", "患者无腹痛。"]
    assert [start for _, start, _ in spans(corpus.documents)[1]] == [3, 3]
    assert sum("taken off" in note for note in corpus.notes) == 2


def test_a_shared_beginning_of_texts_is_no_instruction(tmp_path: Path) -> None:
    rows = [alpaca(text, "[]") for text in ("患者腹痛。", "患者无腹痛。")]
    corpus = formats.read(file_of(tmp_path, "t.json", rows))
    assert [document.text for document in corpus.documents] == ["患者腹痛。", "患者无腹痛。"]


ANSWERS = {
    "lines": ANSWER.replace("}{", "}\n{"),
    "array": json.dumps([{"text": "腹痛", "type": "sym"}, {"text": "腹", "type": "bod"}], ensure_ascii=False),
    "fenced": '```json\n{"entities": [{"text": "腹痛", "label": "sym"}, {"text": "腹", "label": "bod"}]}\n```',
    "by label": '{"bod": ["腹"], "sym": ["腹痛"]}',
    "pairs": '[["腹痛", "sym"], ["腹", "bod"]]',
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_every_layout_are_read(answer: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [messages("患者腹痛三天。", answer, "找出实体")]))
    assert spans(corpus.documents) == [[("腹", 2, "bod"), ("腹痛", 2, "sym")]]


def test_quotes_that_the_tutorial_does_not_escape_are_read(tmp_path: Path) -> None:
    answer = '{"entity_text": "a "b"", "entity_label": "x"}{"entity_text": "c", "entity_label": "y"}'
    corpus = formats.read(file_of(tmp_path, "t.json", [alpaca('a "b" c', answer)]))
    assert spans(corpus.documents) == [[('a "b"', 0, "x"), ("c", 6, "y")]]


def test_universalner_asks_for_one_label_after_another(tmp_path: Path) -> None:
    said = [
        ("human", "Text: Ada Roe of Rome met Roe."), ("gpt", "I've read this text."),
        ("human", "What describes person in the text?"), ("gpt", '["Ada Roe", "Roe"]'),
        ("human", "What describes place in the text?"), ("gpt", '["Rome"]'),
        ("human", "What describes time in the text?"), ("gpt", "[]"),
    ]  # fmt: skip
    row = {"id": "ner_1", "conversations": [{"from": who, "value": value} for who, value in said]}
    corpus = formats.read(file_of(tmp_path, "t.json", [row]))
    assert corpus.documents[0].id == "ner_1"
    assert spans(corpus.documents) == [[("Ada Roe", 0, "person"), ("Roe", 4, "person"), ("Rome", 11, "place")]]
    assert corpus.notes[AMBIGUOUS] == 1


@pytest.mark.parametrize(("said", "answer"), [("query", "response"), ("prompt", "completion")])
def test_a_question_and_an_answer_of_other_names(said: str, answer: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [{said: "患者腹痛。", answer: ANSWER, "history": []}]))
    assert spans(corpus.documents) == [[("腹", 2, "bod"), ("腹痛", 2, "sym")]]
    assert corpus.notes["field 'history' not read"] == 1


def test_texts_to_extract_from_need_no_answer_that_can_be_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, "t.jsonl", [messages("患者腹痛。", "I cannot help with that.")])
    (document,) = formats.stream(path, None, Counter(), Options(unannotated=True))
    assert (document.text, document.entities) == ("患者腹痛。", ())


def test_gliner_2_states_entities_as_an_object(tmp_path: Path) -> None:
    row = {"input": "Ada Roe sings.", "output": {"entities": {"person": ["Ada Roe"], "place": []}}}
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [row]))
    assert spans(corpus.documents) == [[("Ada Roe", 0, "person")]]


@pytest.mark.parametrize("name", ["back.json", "back.jsonl"])
@settings(deadline=None, max_examples=40)
@given(documents=st.lists(annotated(), min_size=1, max_size=3))
def test_what_is_written_is_read_back_but_for_the_places_that_are_counted(name: str, documents: list[Document]) -> None:
    corpus, notes = round_trip(documents, "chat", name)
    assert [document.text for document in corpus.documents] == [document.text for document in documents]
    same = [a.entities == b.entities for a, b in zip(corpus.documents, documents, strict=True)]
    assert all(same) == (not notes.get("entity whose text stands several times: its place is not kept"))


def test_the_instruction_names_the_labels_in_the_language_of_the_texts(tmp_path: Path) -> None:
    chinese = [Document("a", "腹痛", (Entity(0, 2, "sym", 0.5),), {"ward": 1}), Document("b", "无")]
    notes = formats.write(tmp_path / "zh.json", chinese, "chat")
    first, second = json.loads((tmp_path / "zh.json").read_text("utf-8"))
    assert "：sym。" in first["instruction"] and first["input"] == "文本:腹痛"
    assert (first["output"], second["output"]) == ('{"entity_text": "腹痛", "entity_label": "sym"}', "没有找到任何实体")
    assert notes == {"id left out": 2, "meta left out": 1, "score left out": 1}
    formats.write(tmp_path / "en.jsonl", [Document("a", "pain", (Entity(0, 4, "sym"),))], "chat")
    (row,) = map(json.loads, (tmp_path / "en.jsonl").read_text("utf-8").splitlines())
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][0]["content"].startswith("Find every entity of these types in the given text: sym.")


@pytest.mark.parametrize(
    ("record", "fragments"),
    [
        (alpaca("无", '{"entity_text": "肺", "entity_label": "bod"}'), ["field output", "'肺' (bod) does not occur"]),
        (alpaca("无", "The text is fine."), ["field output", "the answer is not JSON", "'The text is fine.'"]),
        (alpaca("无", '{"sym": ["无"], "sym": []}'), ["field output", "'sym' is repeated"]),
        (alpaca("无", '[{"start": 3}]'), ["field output[0].start", "the number 3", "a list"]),
        (alpaca("无", "[3]"), ["field output[0]", "expected [text, label]"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["field messages", "an assistant's answer"]),
        ({"messages": [{"role": "assistant", "content": "a"}]}, ["field messages[0].role", "a turn of 'assistant'"]),
        ({"messages": 2 * messages("a", "[]")["messages"]}, ["found 2 answers", "a record of its own"]),  # type: ignore[operator]
        (alpaca("", "[]", ""), ["field instruction", "empty"]),
    ],
)
def test_bad_records_are_refused_by_place(record: object, fragments: list[str], tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "bad.jsonl", [record]), None, ["bad.jsonl:1", *fragments])


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ('<think>\n\n</think>\n\n[["腹痛", "sym"]]', None),
        ('<think>腹痛 is one</think>[["腹痛", "sym"]]', "reasoning before an answer not read"),
        (json.dumps('[["腹痛", "sym"]]'), "answer is JSON inside a string of JSON"),
    ],
)
def test_what_is_around_an_answer_is_taken_off_and_noted(answer: str, note: str | None, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "患者"}, {"type": "text", "text": "腹痛。"}]
    for said in ("患者腹痛。", parts):
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "messages": turns}) + "\n", encoding="utf-8")
        corpus = formats.read(tmp_path / "a.jsonl")
        assert [(d.text, [d.surface(e) for e in d.entities]) for d in corpus.documents] == [("患者腹痛。", ["腹痛"])]
        assert corpus.notes == ({} if note is None else {note: 1})


def test_a_turn_with_an_image_is_refused(tmp_path: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "[]"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"content\[0\]\.type: found a part of type 'image_url'; expected text"):
        formats.read(tmp_path / "a.jsonl")
