"""Near-duplicates: what counts as equal, what is verified, and that all pairs of a full comparison are found."""

from __future__ import annotations

import random

import numpy as np
import pytest

from spantune.core import ConfigError
from spantune.data.likeness import _pairs_of, fold, near_duplicates

LONG = "患者三天前无明显诱因出现右下腹持续性疼痛伴恶心呕吐在当地医院予以补液治疗后未见好转遂来我院急诊就诊"


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity, written independently: pairs of ideographs of the folded texts."""
    a, b = ({text[i : i + 2] for i in range(len(text))} for text in (one, other))
    return len(a & b) / len(a | b)


def test_what_makes_no_difference() -> None:
    assert fold("ＰＣＯ₂ 为 38.5 ℃，") == fold("pco2为40.12°c") != fold("pco2为℉")
    assert near_duplicates(["体温 38.5℃。", "头痛", "体温39.0°C", "体温 12.34 ℃！"]) == [(0, 2), (0, 3)]


def test_one_character_of_fifty_may_differ() -> None:
    changed = LONG.replace("急诊", "门诊")
    assert near_duplicates([LONG, "另一句话", changed]) == [(0, 2)]
    assert near_duplicates([LONG, changed], threshold=0.99) == []


def test_english() -> None:
    one = "Atorvastatin prevented and reversed dexamethasone-induced hypertension in the rat, after four days."
    assert near_duplicates([one, "Thus, " + one.lower(), "Sodium nitroprusside lowered the pressure."]) == [(0, 1)]


def test_unrelated_long_english_texts_are_not_similar() -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    assert near_duplicates([" ".join(chance.choices(words, k=1500)) for _ in range(2)]) == []


def test_repetitions_are_paired_with_the_first_only() -> None:
    changed = LONG.replace("急诊", "门诊")
    assert near_duplicates([LONG, LONG, changed, LONG, changed]) == [(0, 1), (0, 2), (0, 3), (2, 4)]


def test_texts_of_signs_and_numbers_only_are_compared_as_they_are() -> None:
    assert near_duplicates(["1.", "2.", "3。4", "1."]) == [(0, 3)]
    assert near_duplicates(["", "。", "！", "", "。", "a"]) == [(0, 3), (1, 4)]
    assert near_duplicates([]) == []


@pytest.mark.no_cover
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_all_pairs_of_a_full_comparison_are_found(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spantune.data.likeness._FEW", 3)  # so that the many texts in a band are compared in turn
    chance = random.Random(7)
    signs = [chr(0x4E00 + number) for number in range(400)]
    texts = ["".join(chance.choices(signs, k=chance.randint(20, 90))) for _ in range(60)]
    for text in list(texts):
        for changes in (1, 3, 6):
            copy = list(text)
            for _ in range(changes):
                copy[chance.randrange(len(copy))] = chance.choice(signs)
            texts.append("".join(copy))
    expected = [(i, j) for j in range(len(texts)) for i in range(j) if similarity(texts[i], texts[j]) >= threshold]
    assert len(expected) > 40
    assert near_duplicates(texts, threshold) == sorted(expected)


@pytest.mark.parametrize("few", [2, 256])
def test_texts_that_share_a_band_are_paired_each_with_each(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spantune.data.likeness._FEW", few)
    pairs = np.concatenate(list(_pairs_of(np.array([3, 5, 8, 9]))))
    assert pairs.tolist() == [[3, 5], [3, 8], [3, 9], [5, 8], [5, 9], [8, 9]]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5])
def test_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ConfigError, match="expected a share above 0"):
        near_duplicates(["a", "b"], threshold)
