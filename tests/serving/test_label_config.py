"""Label Studio's labelling interface: how its labels are matched with those of a run, and what is refused."""

from __future__ import annotations

import pytest

from spantune.core import DataError, Label
from spantune.data import labelling_interface
from spantune.serving.label_config import read_interface

LABELS = (Label(code="dis", name="疾病"), Label(code="sym", name="Symptom"), Label(code="bod"))


def view(labels: str, text: str = '<Text name="t" value="$text"/>', tag: str = '<Labels name="l" toName="t">') -> str:
    return f"<View>{tag}{labels}</Labels>{text}</View>"


def test_labels_match_by_code_name_and_alias_and_the_rest_is_said() -> None:
    xml = view('<Label value="疾病" alias="d"/><View><Label value="X" alias="SYMPTOM"/></View><Label value="Drug"/>')
    interface = read_interface(xml, LABELS)
    assert (interface.from_name, interface.to_name, interface.key, interface.is_link) == ("l", "t", "text", False)
    assert interface.label_of == {"dis": "d", "sym": "SYMPTOM"}  # an annotation has the alias
    assert interface.code_of == {"d": "dis", "疾病": "dis", "SYMPTOM": "sym", "X": "sym"}
    assert interface.unmatched == ("bod",) and interface.foreign == ("Drug",)
    assert [problem.split(":")[0] for problem in interface.problems] == [
        "the project has no label for bod of the run",
        "the run does not know Drug of the project",
    ]


def test_the_interface_that_comes_with_predictions_matches_wholly() -> None:
    interface = read_interface(labelling_interface(LABELS, "note"), LABELS)
    assert interface.label_of == {"dis": "dis", "sym": "sym", "bod": "bod"}
    assert interface.key == "note" and interface.problems == []


def test_an_equal_label_counts_before_one_that_is_equal_but_for_case() -> None:
    labels = (Label(code="a", name="B"), Label(code="b"))
    assert read_interface(view('<Label value="b"/>'), labels).label_of == {"b": "b"}
    assert read_interface(view('<Label value="B"/>'), labels).label_of == {"a": "B"}


def test_of_several_pairs_the_one_with_the_most_labels_is_used() -> None:
    xml = (
        '<View><Choices name="c" toName="t2"><Choice value="dis"/></Choices>'
        '<Labels name="l1" toName="t1"><Label value="sym"/></Labels><Text name="t1" value="$title"/>'
        '<Labels name="l2" toName="t2"><Label value="dis"/><Label value="sym"/></Labels>'
        '<Text name="t2" value="$body" granularity="word"/></View>'
    )
    interface = read_interface(xml, LABELS)
    assert (interface.from_name, interface.to_name, interface.key) == ("l2", "t2", "body")


def test_a_text_behind_a_link_is_known() -> None:
    xml = view('<Label value="dis"/>', '<Text name="t" value="$url" valueType="url"/>')
    assert read_interface(xml, LABELS).is_link


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<View>", "is not XML: no element found"),
        ("", "is not XML"),
        ("<View></View>", "has no <Labels> that belongs to a <Text>: give the project"),
        (view('<Label value="dis"/>', '<HyperText name="t" value="$text"/>'), "its <HyperText> is shown as a page"),
        (view('<Label value="dis"/>', '<Text name="other" value="$text"/>'), "no <Labels> that belongs to a <Text>"),
        (view('<Label value="dis"/>', '<Text name="t" value="Note: $text"/>'), r'such as value="\$text"'),
        (view('<Label value="x"/><Label value="y"/>'), "x, y, are none of the run's, dis, sym, bod"),
        (view("", tag='<Labels name="l" toName="t" value="$labels">'), "none, are none of the run's"),
    ],
)
def test_what_shows_no_prediction_is_refused(xml: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_interface(xml, LABELS)


def test_no_entity_is_expanded() -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE View [<!ENTITY l0 "ha">{laughs}]><View>&l9;</View>'
    outside = '<!DOCTYPE View SYSTEM "file:///etc/passwd"><View/>'
    for xml in (bomb, outside):
        with pytest.raises(DataError, match="has a document type"):
            read_interface(xml, LABELS)
    with pytest.raises(DataError, match="no <Labels> that belongs"):
        read_interface("<a>" * 100_000 + "</a>" * 100_000, LABELS)
