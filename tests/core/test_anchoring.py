"""Anchoring surfaces: the next occurrence is taken, else an earlier one, in groups, and none if all are taken."""

from __future__ import annotations

from spantune.core import Anchors, Entity, occurrences


def test_a_surface_is_the_first_occurrence_after_the_one_before() -> None:
    anchors = Anchors("pain, fever, pain, pain")
    assert anchors.place("fever", "sym") == Entity(6, 11, "sym")
    assert anchors.place("pain", "sym") == Entity(13, 17, "sym")
    assert anchors.place("pain", "sym") == Entity(19, 23, "sym")
    assert anchors.place("pain", "sym") == Entity(0, 4, "sym"), "nothing is ahead"
    assert anchors.place("pain", "sym") is None
    assert anchors.place("cough", "sym") is None


def test_a_shorter_surface_at_the_same_start_comes_before_and_is_not_ahead() -> None:
    anchors = Anchors("ab a")
    assert anchors.place("ab", "x") == Entity(0, 2, "x")
    assert anchors.place("a", "x") == Entity(3, 4, "x")


def test_each_group_has_its_own_order() -> None:
    anchors = Anchors("a b a b")
    assert anchors.place("b", "x", "x") == Entity(2, 3, "x")
    assert anchors.place("a", "y", "y") == Entity(0, 1, "y")
    assert anchors.place("a", "x", "x") == Entity(4, 5, "x")


def test_occurrences_overlap_and_an_empty_surface_has_none() -> None:
    assert [entity.start for entity in occurrences("aa", "x", "aaaa", 1)] == [1, 2]
    assert list(occurrences("", "x", "aaaa")) == []
