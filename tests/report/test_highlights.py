"""The errors that a report shows first: which are chosen, in which order, and the reasons given."""

from __future__ import annotations

from collections.abc import Sequence

from spantune.core import Document, Entity
from spantune.metrics import judge
from spantune.report.highlights import CONFIDENT, MOST_ERRORS, Context, Highlight, doubts, instructive

LABELS = ["dis", "sym", "bod"]


def shown(
    gold: Sequence[Document], predicted: Sequence[Document], train: Sequence[Document] = ()
) -> tuple[list[Highlight], list[Highlight]]:
    outcome = judge(gold, predicted, LABELS)
    context = Context.of(outcome, LABELS, train)
    return instructive(outcome, context), doubts(outcome, context)


def pair(name: str, text: str, gold: Sequence[Entity], predicted: Sequence[Entity]) -> tuple[Document, Document]:
    return Document(name, text, tuple(gold)), Document(name, text, tuple(predicted))


def test_what_is_wrong_often_comes_before_what_is_wrong_once_with_a_high_score() -> None:
    pairs = [pair(f"m{n}", "flu", [Entity(0, 3, "dis")], []) for n in range(3)]
    pairs += [
        pair("sure", "a pain", [], [Entity(2, 6, "sym", 0.97)]),
        pair("unsure", "arm", [], [Entity(0, 3, "bod", 0.2)]),
    ]
    pairs += [pair("right", "flu", [Entity(0, 3, "dis")], [Entity(0, 3, "dis", 0.8)])]
    errors, _ = shown(*zip(*pairs, strict=True), train=[pairs[0][0]])
    assert [(error.title, error.count) for error in errors] == [
        ("missed: \u201cflu\u201d, gold dis, predicted nothing", 3),
        ("spurious: \u201cpain\u201d, gold nothing, predicted sym", 1),
        ("spurious: \u201carm\u201d, gold nothing, predicted bod", 1),
    ]
    assert errors[0].document == "m0" and errors[0].reason == (
        "Gold has it, and nothing was predicted here. 3 errors of this kind on this text, in 3 documents. "
        "Elsewhere the model found it once. The training documents annotate \u201cflu\u201d as 1 × dis."
    )
    assert errors[1].reason == (
        "Predicted with score 0.97; gold has nothing here. The training documents never annotate \u201cpain\u201d."
    )


def test_ten_are_chosen_and_of_one_kind_and_label_two_while_there_are_others() -> None:
    pairs = [pair(f"s{n}", f"w{n:04}", [], [Entity(0, 5, "sym", 0.9 - n / 100)]) for n in range(20)]
    pairs += [pair("type", "leg", [Entity(0, 3, "bod")], [Entity(0, 3, "dis", 0.3)])]
    errors, _ = shown(*zip(*pairs, strict=True))
    assert len(errors) == MOST_ERRORS == 10
    assert [error.document for error in errors] == [*(f"s{n}" for n in range(9)), "type"]
    assert "Predicted as dis with score 0.30; gold has bod." in errors[-1].reason
    assert "training" not in errors[-1].reason  # without training documents there is no such reason


def test_gold_is_doubtful_where_it_lacks_a_prediction_of_a_high_score() -> None:
    pairs = [
        pair("low", "flu", [], [Entity(0, 3, "dis", CONFIDENT - 0.01)]),
        pair("high", "flu", [], [Entity(0, 3, "dis", CONFIDENT)]),
        pair("longer", "the flu", [Entity(4, 7, "dis")], [Entity(0, 7, "dis", 0.99)]),
        pair("unscored", "flu", [], [Entity(0, 3, "dis")]),
        pair("right", "flu", [Entity(0, 3, "dis")], [Entity(0, 3, "dis", 1.0)]),
    ]
    _, found = shown(*zip(*pairs, strict=True))
    assert [(doubt.document, doubt.score) for doubt in found] == [("longer", 0.99), ("high", CONFIDENT)]
    assert found[0].reason == ("Predicted \u201cthe flu\u201d as dis with score 0.99; gold has \u201cflu\u201d as dis.")
    assert "Gold has \u201cflu\u201d as dis 2 times in these documents." in found[1].reason


def test_a_long_text_is_cut_around_the_error_and_escaped() -> None:
    text = f"{'x' * 100}<b>{'y' * 100}"
    errors, _ = shown(*zip(pair("1", text, [Entity(100, 103, "dis")], []), strict=True))
    assert "\u2026" + "x" * 60 in errors[0].gold and "y" * 60 + "\u2026" in errors[0].gold
    assert "x" * 61 not in errors[0].gold and "&lt;b&gt;" in errors[0].gold and "<b>" not in errors[0].gold
    assert 'data-tag="dis \u2212 missed"' in errors[0].gold and "data-tag" not in errors[0].predicted
