"""PubTator: title and abstract, kept concepts and relations, round trips and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import formats

FILE = """\
12|t|Aspirin in gout.
12|a|Aspirin helped: ｆｕｌｌ.
12\t0\t7\tAspirin\tChemical\tD001241
12\t11\t15\tgout\tDisease\tD006073|D1\tgout
12\t17\t24\tAspirin\tChemical
12\tCID\tD001241\tD006073

13|t|No abstract
13|a|
"""


def test_text_is_title_blank_abstract_and_a_file_comes_back_line_for_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.txt", "\n" + FILE)
    corpus = formats.read(path)
    assert (corpus.format, corpus.notes) == ("pubtator", {})
    assert [(d.id, d.text) for d in corpus.documents] == [
        ("12", "Aspirin in gout. Aspirin helped: ｆｕｌｌ."), ("13", "No abstract ")
    ]  # fmt: skip
    assert spans(corpus.documents) == [
        [("Aspirin", 0, "Chemical"), ("gout", 11, "Disease"), ("Aspirin", 17, "Chemical")],
        [],
    ]
    assert formats.write(tmp_path / "back.txt", corpus.documents, "pubtator") == {}
    assert (tmp_path / "back.txt").read_text("utf-8") == FILE + "\n"


def test_concepts_of_entities_that_are_gone_are_counted(tmp_path: Path) -> None:
    document = formats.read(file_of(tmp_path, "a.txt", FILE)).documents[0]
    changed = Document("12", document.text, (*document.entities[1:], Entity(0, 10, "New", 0.5)), document.meta)
    notes = formats.write(tmp_path / "back.txt", [changed], "pubtator")
    assert notes == {"concept left out: its entity is gone": 1, "score left out": 1}
    assert "12\t0\t10\tAspirin in\tNew\n12\t11\t15\tgout\tDisease\tD006073|D1\tgout\n" in (
        tmp_path / "back.txt"
    ).read_text("utf-8")


def test_documents_without_a_blank_line_between_and_without_abstract(tmp_path: Path) -> None:
    content = "1|t|A cold\n1\t2\t6\tcold\tDisease\t-1\n2|t|A cough\n2|a|Bad.\n2\t2\t7\tcough\tDisease\n"
    corpus = formats.read(file_of(tmp_path, "a.txt", content))
    assert corpus.format == "pubtator"
    assert [document.text for document in corpus.documents] == ["A cold", "A cough Bad."]
    assert spans(corpus.documents) == [[("cold", 2, "Disease")], [("cough", 2, "Disease")]]


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_round_trip_keeps_what_it_does_not_refuse(documents: list[Document]) -> None:
    named = [Document(f"d{n}", d.text, d.entities) for n, d in enumerate(documents)]
    try:
        corpus, _ = round_trip(named, "pubtator", "back.txt")
    except DataError as error:
        assert any(reason in str(error) for reason in ("line break", "tab or a line break"))
        return
    assert [(d.id, d.text, d.entities) for d in corpus.documents] == [(d.id, d.text, d.entities) for d in named]


@pytest.mark.parametrize("name", ["", "a b", "a|b", "a\tb", "\ufeffa"])
def test_ids_that_cannot_begin_a_line_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the id is empty, longer than 100 characters or has white space or a bar"):
        formats.write(tmp_path / "x", [Document(name, "a")], "pubtator")


def test_a_bar_elsewhere_is_not_this_format(tmp_path: Path) -> None:
    assert formats.detect(file_of(tmp_path, "a.txt", "x|t|y|||0    0    dis|||\n")) == "chip"


BEGIN = "1|t|A cold\n"


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (BEGIN + "1\t2\t6\tcolds\tDisease\n", ["a.txt:2, field entity 1", "'colds'", "does not occur"]),
        (BEGIN + "1\t3\t7\tcold\tDisease\n", ["a.txt:2", "it occurs at 2"]),
        (BEGIN + "1\t2\t6\tcold\n", ["a.txt:2", "expected id⇥start⇥end⇥mention⇥type⇥concept"]),
        (BEGIN + "1\t2\t6\t\tDisease\n", ["a.txt:2", "the mention or its type is empty"]),
        (BEGIN + "2\t2\t6\tcold\tDisease\n", ["a.txt:2", "expected a line of the document 1"]),
        (BEGIN + "\n1\t2\t6\tcold\tDisease\n", ["a.txt:3", "expected PMID|t|title"]),
        (BEGIN + "\n" + BEGIN, ["a.txt:3", "the id '1' is repeated"]),
    ],
)
def test_bad_lines_are_refused(content: str, fragments: list[str], tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "a.txt", content), "pubtator", fragments)
