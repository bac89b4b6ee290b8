"""A comparison finds real differences, does not report noise as one, and refuses what cannot be compared."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from spantune.core import ConfigError, DataError, Document, Entity
from spantune.metrics import System, compare

LABELS = ("dis", "bod", "sym")


def gold_of(count: int) -> list[Document]:
    rng = random.Random(0)
    return [
        Document(str(i), "x" * 30, tuple(Entity(p, p + 3, rng.choice(LABELS[:2])) for p in range(0, 27, 9)))
        for i in range(count)
    ]


def found(gold: list[Document], share: float, seed: int) -> list[Document]:
    """Return predictions that have each gold entity with probability `share`."""
    rng = random.Random(seed)
    return [one.with_entities([e for e in one.entities if rng.random() < share]) for one in gold]


def test_a_real_difference_is_found_and_said() -> None:
    gold = gold_of(150)
    result = compare([System("old", gold, found(gold, 0.6, 1)), System("new", gold, found(gold, 0.8, 2))], LABELS)
    (difference,) = result.differences
    gap = difference.micro
    assert gap.real and gap.p == gap.p_holm < 0.001 and 0 < gap.f1_low < gap.f1 < gap.f1_high
    assert gap.f1 == pytest.approx(result.systems["new"].micro.f1 - result.systems["old"].micro.f1)
    assert re.fullmatch(
        r"The F1 of new is \d+\.\d points higher than that of old "
        r"\(95 % interval \+\d+\.\d to \+\d+\.\d, p < 0\.001\): the difference is real\.",
        difference.sentence,
    )
    assert set(difference.labels) == {"dis", "bod"}  # sym occurs nowhere, so it is not tested
    assert all(label.p <= label.p_holm for label in difference.labels.values())


@pytest.mark.no_cover
def test_noise_is_called_chance_about_as_often_as_it_should() -> None:
    gold = gold_of(60)
    real = 0
    for seed in range(60):
        pair = [System("a", gold, found(gold, 0.7, 2 * seed)), System("b", gold, found(gold, 0.7, 2 * seed + 1))]
        (difference,) = compare(pair, LABELS, resamples=500).differences
        real += difference.micro.real
        assert difference.micro.real == difference.sentence.endswith("the difference is real.")
    assert real <= 8  # 5 % of 60 is 3


def test_pairing_finds_what_the_intervals_of_both_hide() -> None:
    gold = gold_of(80)
    base = found(gold, 0.7, 5)
    rng = random.Random(9)
    better = [
        one.with_entities(whole.entities if rng.random() < 0.15 else one.entities)
        for one, whole in zip(base, gold, strict=True)
    ]
    result = compare([System("base", gold, base), System("better", gold, better)], LABELS)
    first, second = (scores.micro for scores in result.systems.values())
    assert first.f1_high is not None and second.f1_low is not None and second.f1_low < first.f1_high
    assert result.differences[0].micro.real


def test_the_same_predictions_do_not_differ() -> None:
    gold = gold_of(20)
    one = found(gold, 0.5, 0)
    (difference,) = compare([System("a", gold, one), System("b", gold, one[::-1])], LABELS, resamples=200).differences
    assert (difference.micro.f1, difference.micro.f1_low, difference.micro.f1_high, difference.micro.p) == (0, 0, 0, 1)
    assert difference.sentence.startswith("b and a have the same F1")


def test_few_documents_give_a_difference_without_an_interval_that_is_never_real() -> None:
    gold = gold_of(9)
    nothing = [one.with_entities(()) for one in gold]
    (difference,) = compare([System("a", gold, nothing), System("b", gold, gold)], LABELS).differences
    assert difference.micro.f1 == 1.0 and difference.micro.p < 0.05
    assert difference.micro.f1_low is difference.micro.f1_high is None and not difference.micro.real
    assert "100.0 points higher than that of a (no interval, p = 0.0" in difference.sentence
    assert difference.sentence.endswith("these are too few documents to say whether that is chance.")
    assert all(gap.f1_low is None for gap in difference.labels.values())
    assert difference.as_dict()["micro"]["f1_low"] is None  # type: ignore[index]


def test_the_order_of_documents_does_not_matter() -> None:
    gold = gold_of(40)
    first, second = found(gold, 0.7, 0), found(gold, 0.7, 1)
    (one,) = compare([System("a", gold, first), System("b", gold, second)], LABELS, resamples=300).differences
    (other,) = compare([System("a", gold, first), System("b", gold[::-1], second)], LABELS, resamples=300).differences
    assert one == other


def test_several_systems_are_compared_with_the_first_and_corrected() -> None:
    gold = gold_of(60)
    systems = [System(str(seed), gold, found(gold, share, seed)) for seed, share in enumerate((0.7, 0.75, 0.8))]
    result = compare(systems, LABELS, resamples=1000)
    assert [(one.first, one.second) for one in result.differences] == [("0", "1"), ("0", "2")]
    smaller = min((one.micro for one in result.differences), key=lambda gap: gap.p)
    assert smaller.p_holm == pytest.approx(min(1, 2 * smaller.p))
    assert "after Holm's correction for 2 comparisons" in result.differences[0].sentence
    tree = result.as_dict()
    assert tree["documents"] == 60 and tree["protocol"] == "cblue" and set(tree["systems"]) == {"0", "1", "2"}
    assert tree["differences"][1]["micro"]["f1"] == result.differences[1].micro.f1


def test_protocols_and_names_are_guarded() -> None:
    gold = gold_of(3)
    one = System("a", gold, gold)
    with pytest.raises(ConfigError, match=r"a is scored under protocol cblue and b under promptcblue"):
        compare([one, System("b", gold, gold, "promptcblue")], LABELS)
    with pytest.raises(ConfigError, match="two different systems"):
        compare([one, one], LABELS)
    with pytest.raises(ConfigError, match="two different systems"):
        compare([one], LABELS)


def test_another_annotation_of_the_same_texts_is_refused_by_id_and_by_text() -> None:
    gold = gold_of(4)
    other = [gold[0], gold[1].with_entities([Entity(0, 5, "sym")]), *gold[2:]]
    with pytest.raises(DataError, match=r"the gold annotations of a and b differ in 1 of 4 texts .* document '1'"):
        compare([System("a", gold, gold), System("b", other, other)], LABELS)
    texts = [Document(f"v1-{i}", f"text {i}", (Entity(0, 4, "dis"),)) for i in range(3)]
    renamed = [Document(f"v2-{i}", one.text, (Entity(0, 6, "dis"),)) for i, one in enumerate(texts)]
    with pytest.raises(DataError, match=r"differ in 3 of 3 texts .* V1 and V2"):
        compare([System("a", texts, texts), System("b", renamed, renamed)], LABELS)


def test_other_documents_and_texts_are_refused() -> None:
    gold = gold_of(4)
    with pytest.raises(DataError, match=r"different documents: '3' is one of a only \(1 such\)"):
        compare([System("a", gold, gold), System("b", gold[:3], gold[:3])], LABELS)
    moved = [replace(gold[0], text="y" * 30), *gold[1:]]
    with pytest.raises(DataError, match="different texts: document '0'"):
        compare([System("a", gold, gold), System("b", moved, moved)], LABELS)


def test_predictions_that_do_not_fit_name_their_system() -> None:
    gold = gold_of(4)
    with pytest.raises(DataError, match=r"^b: document '3' is gold only"):
        compare([System("a", gold, gold), System("b", gold, gold[:3])], LABELS)
