"""Each slice is strict scoring of the entities with one property, and an entity is in one slice of each kind."""

from __future__ import annotations

import random

from spantune.core import Document, Entity
from spantune.metrics import Figure, score

LABELS = ("a", "b")


def sliced(gold: list[Document], predicted: list[Document], train: list[Document] | None = None) -> dict:
    return {kind: dict(part) for kind, part in score(gold, predicted, LABELS, train=train, resamples=0).slices.items()}


def some(rng: random.Random, size: int) -> tuple[Entity, ...]:
    spans = [sorted(rng.sample(range(size + 1), 2)) for _ in range(rng.randrange(7))]
    return tuple(Entity(*span, rng.choice(LABELS)) for span in spans)


def within(one: Entity, other: Entity) -> bool:
    return other.start <= one.start and one.end <= other.end and one.end - one.start < other.end - other.start


def test_nesting_is_its_definition_on_random_documents() -> None:
    rng = random.Random(0)
    for _ in range(300):
        gold = [Document(str(i), "x" * 12, some(rng, 12)) for i in range(3)]
        predicted = [
            one.with_entities([*rng.sample(one.entities, len(one.entities) // 2), *some(rng, 12)]) for one in gold
        ]
        both = list(zip(gold, predicted, strict=True))
        nesting = sliced(gold, predicted).get("nesting", {})
        properties = {
            "inside": lambda e, side: any(within(e, other) for other in side),
            "nested": lambda e, side: any(within(e, other) or within(other, e) for other in side),
            "flat": lambda e, side: not any(within(e, other) or within(other, e) for other in side),
        }
        for name, holds in properties.items():
            true = [{e for e in one.entities if holds(e, one.entities)} for one, _ in both]
            guessed = [{e for e in other.entities if holds(e, other.entities)} for _, other in both]
            correct = sum(len(part & set(one.entities)) for part, (one, _) in zip(guessed, both, strict=True))
            found = sum(len(part & set(other.entities)) for part, (_, other) in zip(true, both, strict=True))
            wanted = Figure(correct, sum(map(len, guessed)), sum(map(len, true)), found=found)
            assert nesting.get(name, Figure(0, 0, 0, found=0)) == wanted


def test_recall_and_precision_of_nested_entities_count_apart() -> None:
    """The inner entity is found without the outer one: it counts as a nested gold entity and a flat prediction."""
    gold = [Document("1", "abcdef", (Entity(0, 4, "a"), Entity(0, 2, "b")))]
    nesting = sliced(gold, [gold[0].with_entities([Entity(0, 2, "b")])])["nesting"]
    assert nesting["nested"] == Figure(0, 0, 2, found=1) and nesting["nested"].recall == 0.5
    assert nesting["inside"] == Figure(0, 0, 1, found=1)
    assert nesting["flat"] == Figure(1, 1, 0, found=0) and nesting["flat"].precision == 1.0
    assert nesting["nested"].as_dict()["found"] == 1


def test_one_span_with_two_labels_is_not_nested() -> None:
    gold = [Document("1", "abcdef", (Entity(0, 4, "a"), Entity(0, 4, "b")))]
    assert set(sliced(gold, gold)["nesting"]) == {"flat"}


def test_lengths_fall_into_their_bins() -> None:
    sizes = (1, 2, 3, 4, 7, 8, 15, 16, 31)
    gold = [Document(str(size), "x" * (2 * size), (Entity(0, size, "a"),)) for size in sizes]
    found = sliced(gold, gold)
    assert {name: figure.gold for name, figure in found["entity length"].items()} == {
        "1": 1, "2-3": 2, "4-7": 2, "8-15": 2, "16+": 2
    }  # fmt: skip
    assert {name: figure.gold for name, figure in found["text length"].items()} == {"0-31": 7, "32-63": 2}


def test_surfaces_are_seen_where_the_training_data_annotate_them() -> None:
    train = [Document("t", "flu and cold and flu", (Entity(0, 3, "b"),))]
    gold = [Document("1", "flu, cold", (Entity(0, 3, "a"), Entity(5, 9, "a")))]
    predicted = [gold[0].with_entities([Entity(0, 3, "a"), Entity(5, 8, "a")])]
    found = sliced(gold, predicted, train)
    assert found["surface"] == {"seen": Figure(1, 1, 1), "unseen": Figure(0, 1, 1)}
    assert found["label frequency"] == {"0": Figure(1, 2, 2)}  # label a is not in the training data
    assert "surface" not in sliced(gold, predicted)
    assert sliced(gold, predicted)["label frequency"] == {"1-9": Figure(1, 2, 2)}


def test_slices_of_a_kind_add_up_to_the_whole() -> None:
    rng = random.Random(3)
    gold = [Document(str(i), "x" * 40, some(rng, 40)) for i in range(60)]
    predicted = [
        one.with_entities([e for e in one.entities if rng.random() < 0.6] + list(some(rng, 40))) for one in gold
    ]
    scores = score(gold, predicted, LABELS, train=gold[:20], resamples=0)
    for kind, parts in scores.slices.items():
        parts = {name: part for name, part in parts.items() if name != "inside"}
        for name in ("correct", "predicted", "gold"):
            assert sum(getattr(part, name) for part in parts.values()) == getattr(scores.micro, name), kind
