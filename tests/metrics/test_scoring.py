"""Scoring compared with its definitions, with nervaluate and with seqeval; its intervals and its errors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import ConfigError, DataError, Document, Entity
from spantune.metrics import Error, Figure, pair, score
from spantune.metrics.error_analysis import errors

LABELS = ("dis", "bod", "sym")
TEXT = "abcdefghij"


POSSIBLE = [(i, j, label) for i in range(len(TEXT)) for j in range(i + 1, len(TEXT) + 1) for label in LABELS]
# nested, crossing, doubly labelled and repeated entities
entities = st.lists(st.sampled_from([Entity(*one) for one in POSSIBLE]), max_size=8).map(tuple)
small = entities.map(lambda found: found[:4])
corpora = st.lists(st.tuples(entities, entities), max_size=5)


def documents(sides: list[tuple[Entity, ...]]) -> list[Document]:
    return [Document(f"d{index}", TEXT, entities) for index, entities in enumerate(sides)]


def by_definition(gold: list[Document], predicted: list[Document], label: str | None) -> Figure:
    """Compute the figure by checking every possible entity of every document."""
    correct = guessed = true = 0
    for one, other in zip(gold, predicted, strict=True):
        ours, theirs = ({(e.start, e.end, e.label) for e in side.entities} for side in (one, other))
        for possible in POSSIBLE:
            if label in (None, possible[2]):
                true += possible in ours
                guessed += possible in theirs
                correct += possible in ours and possible in theirs
    return Figure(correct, guessed, true)


@pytest.mark.no_cover
@settings(max_examples=700, deadline=None)
@given(corpora)
def test_score_is_the_definition_on_nested_documents(corpus: list[tuple[tuple[Entity, ...], tuple[Entity, ...]]]):
    gold, predicted = (documents([sides[index] for sides in corpus]) for index in (0, 1))
    scores = score(gold, predicted, LABELS, resamples=0)
    assert scores.micro == by_definition(gold, predicted, None)
    assert scores.labels == {label: by_definition(gold, predicted, label) for label in LABELS}
    assert scores.documents == len(corpus)


def most(pairs: list[tuple[Entity, Entity, float]]) -> float:
    """Return the largest total of pairs that share no entity, by trying every choice."""
    if not pairs:
        return 0.0
    (one, other, worth), rest = pairs[0], pairs[1:]
    apart = [pair for pair in rest if pair[0] != one and pair[1] != other]
    return max(most(rest), worth + most(apart)) if len(apart) < len(rest) else worth + most(apart)


def overlapping(one: Entity, other: Entity) -> bool:
    return any(place in range(other.start, other.end) for place in range(one.start, one.end))


def by_trying(gold: list[Document], predicted: list[Document], worth: Callable[[Entity, Entity], float]) -> float:
    total = 0.0
    for one, other in zip(gold, predicted, strict=True):
        pairs = [(a, b, worth(a, b)) for a in set(one.entities) for b in set(other.entities)]
        total += most([pair for pair in pairs if pair[2]])
    return total


@pytest.mark.no_cover
@settings(max_examples=700, deadline=None)
@given(st.lists(st.tuples(small, small), max_size=3))
def test_forgiving_figures_are_the_best_one_to_one_choice_on_nested_documents(corpus: list[tuple]):
    gold, predicted = (documents([sides[index] for sides in corpus]) for index in (0, 1))
    scores = score(gold, predicted, LABELS, resamples=0)

    def same_place(a: Entity, b: Entity) -> bool:
        return (a.start, a.end) == (b.start, b.end)

    assert scores.boundary.correct == by_trying(gold, predicted, same_place)
    assert scores.relaxed.correct == by_trying(gold, predicted, lambda a, b: a.label == b.label and overlapping(a, b))
    assert scores.partial.correct == by_trying(
        gold, predicted, lambda a, b: 1.0 if same_place(a, b) else 0.5 * overlapping(a, b)
    )
    for figure in (scores.boundary, scores.relaxed, scores.partial):
        assert (figure.predicted, figure.gold) == (scores.micro.predicted, scores.micro.gold)


@pytest.mark.no_cover
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=6), st.randoms()), max_size=4))
def test_promptcblue_compares_sets_of_mention_and_label(texts: list[tuple[str, random.Random]]):
    def some(text: str, rng: random.Random) -> list[Entity]:
        spans = [sorted(rng.sample(range(len(text) + 1), 2)) for _ in range(rng.randrange(6))]
        return [Entity(*span, rng.choice("xy")) for span in spans]

    gold = [Document(str(i), text, tuple(some(text, rng))) for i, (text, rng) in enumerate(texts)]
    predicted = [one.with_entities(some(*text)) for one, text in zip(gold, texts, strict=True)]
    sets = [[{(d.surface(e), e.label) for e in d.entities} for d in side] for side in (gold, predicted)]
    correct = sum(len(true & guessed) for true, guessed in zip(*sets, strict=True))
    scores = score(gold, predicted, ("x", "y"), protocol="promptcblue", resamples=0)
    assert scores.micro == Figure(correct, sum(map(len, sets[1])), sum(map(len, sets[0])))
    assert scores.protocol == "promptcblue"
    for label, figure in scores.labels.items():
        true, guessed = ([{key for key in one if key[1] == label} for one in side] for side in sets)
        both = sum(len(a & b) for a, b in zip(true, guessed, strict=True))
        assert figure == Figure(both, sum(map(len, guessed)), sum(map(len, true)))


def test_protocols_differ_where_a_mention_occurs_twice():
    gold = [Document("1", "ab ab", (Entity(0, 2, "x"), Entity(3, 5, "x")))]
    predicted = [gold[0].with_entities([Entity(3, 5, "x")])]
    assert score(gold, predicted, ("x",), resamples=0).micro == Figure(1, 1, 2)
    assert score(gold, predicted, ("x",), protocol="promptcblue", resamples=0).micro == Figure(1, 1, 1)
    moved = [gold[0].with_entities([Entity(0, 2, "x"), Entity(2, 4, "x")])]
    assert score(gold, moved, ("x",), protocol="promptcblue", resamples=0).micro == Figure(1, 2, 1)
    with pytest.raises(ConfigError, match="did you mean 'cblue'"):
        score(gold, moved, ("x",), protocol="clue")  # type: ignore[arg-type]


def test_repeated_entities_count_once_and_are_noted():
    gold = [Document("1", TEXT, (Entity(0, 2, "dis"), Entity(0, 2, "dis")))]
    predicted = [gold[0].with_entities([Entity(0, 2, "dis", 0.5), Entity(0, 2, "dis", 0.9), Entity(4, 5, "bod")])]
    scores = score(gold, predicted, LABELS, resamples=0)
    assert scores.micro == Figure(1, 2, 1)
    assert scores.notes == {
        "gold entity repeated in its document, counted once": 1,
        "predicted entity repeated in its document, counted once": 1,
        "predicted entity of label 'bod', which no gold entity has": 1,
    }


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, float("inf")])
def test_scores_that_are_no_probabilities_are_refused(value: float):
    gold = [Document("one", TEXT, (Entity(0, 1, "dis"),))]
    with pytest.raises(DataError, match=r"'one': the predicted entity 'dis' at \[0, 1\) has the score"):
        score(gold, [gold[0].with_entities([Entity(0, 1, "dis", value)])], LABELS)


def test_false_alarms_are_counted_where_gold_has_nothing():
    empty = [Document(f"e{index}", "x" * 100) for index in range(9)]
    gold = [Document("1", "x" * 400), *empty, Document("3", "x" * 50, (Entity(0, 1, "dis"),))]
    predicted = [gold[0].with_entities([Entity(0, 1, "dis"), Entity(0, 2, "dis")]), *gold[1:]]
    alarms = score(gold, predicted, LABELS, resamples=200).alarms
    assert alarms is not None and (alarms.documents, alarms.characters, alarms.predicted) == (10, 1300, 2)
    assert alarms.per_1000 == 2000 / 1300
    assert alarms.per_1000_low == 0.0 and 2 < (alarms.per_1000_high or 0) < 5  # the first document is drawn often
    few = score(gold[1:], predicted[1:], LABELS, resamples=200).alarms
    assert few is not None and few.documents == 9 and few.per_1000_low is few.per_1000_high is None
    assert score(gold[-1:], gold[-1:], LABELS, resamples=200).alarms is None


def flat(rng: random.Random, size: int) -> tuple[Entity, ...]:
    entities, place = [], rng.randrange(3)
    while place < size - 3:
        end = place + rng.randint(1, 3)
        entities.append(Entity(place, end, rng.choice(LABELS)))
        place = end + rng.randrange(3)
    return tuple(entities)


def altered(one: Document, rng: random.Random) -> Document:
    """Return another flat annotation that agrees with `one` in some entities and boundaries."""
    if rng.random() < 0.3:
        return one
    return one.with_entities([e for e in flat(rng, len(one.text)) if e in one.entities or rng.random() < 0.6])


def flat_corpus(rng: random.Random) -> tuple[list[Document], list[Document]]:
    gold = [Document(f"{index}", "x" * 20, flat(rng, 20)) for index in range(rng.randint(1, 5))]
    return gold, [altered(one, rng) for one in gold]


@pytest.mark.no_cover
def test_figures_equal_nervaluates_on_700_flat_corpora():
    nervaluate = pytest.importorskip("nervaluate")
    rng = random.Random(1)
    for _ in range(700):
        corpus = flat_corpus(rng)
        sides = [
            [[{"label": e.label, "start": e.start, "end": e.end - 1} for e in one.entities] for one in side]
            for side in corpus
        ]
        theirs = nervaluate.Evaluator(*sides, tags=list(LABELS), loader="dict").evaluate()["overall"]
        scores = score(*corpus, LABELS, resamples=0)
        for ours, name in ((scores.micro, "strict"), (scores.boundary, "exact"), (scores.partial, "partial")):
            its = theirs[name]
            assert (ours.predicted, ours.gold) == (its.actual, its.possible)
            assert ours.correct == its.correct + its.partial / 2
            assert ours.f1 == pytest.approx(its.f1)


def tags(one: Document) -> list[str]:
    found = ["O"] * len(one.text)
    for entity in one.entities:
        found[entity.start : entity.end] = [
            f"B-{entity.label}",
            *[f"I-{entity.label}"] * (entity.end - entity.start - 1),
        ]
    return found


def chunks(found: list[str]) -> set[tuple[int, int, str]]:
    """Return the entities of BIO tags by the CoNLL rule, a reference if seqeval is not installed."""
    starts = [place for place, tag in enumerate(found) if tag[0] == "B"]
    ends = [next((p for p in range(s + 1, len(found)) if found[p] != f"I-{found[s][2:]}"), len(found)) for s in starts]
    return {(start, end, found[start][2:]) for start, end in zip(starts, ends, strict=True)}


def test_figures_equal_a_reading_of_bio_tags_on_700_flat_corpora():
    rng = random.Random(2)
    for _ in range(700):
        corpus = flat_corpus(rng)
        read = [[chunks(tags(one)) for one in side] for side in corpus]
        correct = sum(len(true & guessed) for true, guessed in zip(*read, strict=True))
        totals = [sum(map(len, side)) for side in read]
        assert score(*corpus, LABELS, resamples=0).micro == Figure(correct, totals[1], totals[0])


@pytest.mark.no_cover
def test_figures_equal_seqevals_on_700_flat_corpora():
    seqeval = pytest.importorskip("seqeval.metrics.v1", reason="seqeval is not installed")
    scheme = pytest.importorskip("seqeval.scheme").IOB2
    rng = random.Random(2)
    for _ in range(700):
        corpus = flat_corpus(rng)
        if not any(one.entities for side in corpus for one in side):
            continue
        sides = [[tags(one) for one in side] for side in corpus]
        scores = score(*corpus, LABELS, resamples=0)
        for name, figure in (("micro", scores.micro), ("macro", scores.macro)):
            theirs = seqeval.precision_recall_fscore_support(*sides, average=name, scheme=scheme, zero_division=0)
            assert (figure.precision, figure.recall, figure.f1) == pytest.approx(theirs[:3])


def test_nested_entity_is_found_where_nervaluate_finds_none():
    """Gold {(0,4,a), (0,2,b)} and predicted {(0,1,b), (0,4,a)} have one correct entity; nervaluate finds none."""
    gold = [Document("1", TEXT, (Entity(0, 4, "a"), Entity(0, 2, "b")))]
    predicted = [Document("1", TEXT, (Entity(0, 1, "b"), Entity(0, 4, "a")))]
    scores = score(gold, predicted, ("a", "b"), resamples=0)
    assert scores.micro == Figure(correct=1, predicted=2, gold=2)
    assert scores.micro.precision == scores.micro.recall == scores.micro.f1 == 0.5
    assert [scores.labels["a"].f1, scores.labels["b"].f1, scores.macro_f1] == [1.0, 0.0, 0.5]


def test_order_and_scores_of_entities_do_not_matter():
    gold = [Document("1", TEXT, (Entity(0, 4, "a"), Entity(0, 2, "a"))), Document("2", TEXT, (Entity(5, 6, "a"),))]
    predicted = [gold[1].with_entities([Entity(5, 6, "a", 0.3)]), gold[0].with_entities(reversed(gold[0].entities))]
    assert score(gold, predicted, ("a",), resamples=0).micro == Figure(3, 3, 3)


def test_undefined_figures_are_zero_and_have_no_interval():
    scores = score([Document("1", TEXT)], [Document("1", TEXT)], LABELS)
    assert (scores.micro.precision, scores.micro.recall, scores.micro.f1, scores.macro_f1) == (0.0, 0.0, 0.0, 0.0)
    assert scores.micro.f1_low is None and scores.labels["dis"].f1_high is None
    assert score([], [], LABELS).documents == 0


def test_macro_leaves_out_labels_that_never_occur():
    gold = [Document("1", TEXT, (Entity(0, 1, "dis"), Entity(1, 2, "bod")))]
    predicted = [gold[0].with_entities([Entity(0, 1, "dis")])]
    assert score(gold, predicted, LABELS, resamples=0).macro_f1 == 0.5


def noisy(count: int, seed: int = 0) -> tuple[list[Document], list[Document]]:
    rng = random.Random(seed)
    gold = [Document(str(index), "x" * 30, flat(rng, 30)) for index in range(count)]
    return gold, [one.with_entities([e for e in one.entities if rng.random() < 0.7]) for one in gold]


def width(figure: Figure) -> float:
    assert figure.f1_low is not None and figure.f1_high is not None
    assert 0 <= figure.f1_low <= figure.f1 <= figure.f1_high <= 1
    return figure.f1_high - figure.f1_low


def test_interval_holds_the_point_and_shrinks_with_documents():
    few, many = score(*noisy(40), LABELS), score(*noisy(640), LABELS)
    assert all(width(figure) > 0 for figure in (few.micro, *few.labels.values()))
    assert width(few.micro) / width(many.micro) == pytest.approx(4, rel=0.4)
    assert width(few.labels["dis"]) > width(few.micro)


def test_interval_is_determined_by_the_seed():
    corpus = noisy(30)
    assert score(*corpus, LABELS) == score(*corpus, LABELS)
    assert score(*corpus, LABELS, seed=1) != score(*corpus, LABELS, seed=2)


def test_interval_covers_the_true_f1_about_as_often_as_it_says():
    """Each entity is found with probability 0.7 and nothing else is predicted, so the true F1 is 1.4 / 1.7."""
    hits = 0
    for seed in range(100):
        micro = score(*noisy(60, seed), LABELS, resamples=400).micro
        assert micro.f1_low is not None and micro.f1_high is not None
        hits += micro.f1_low <= 1.4 / 1.7 <= micro.f1_high
    assert 87 <= hits <= 100


def test_perfect_predictions_have_an_interval_of_one_point():
    gold, _ = noisy(20)
    micro = score(gold, gold, LABELS).micro
    assert (micro.f1_low, micro.f1, micro.f1_high) == (1.0, 1.0, 1.0)


def test_a_figure_of_few_documents_has_no_interval() -> None:
    """Nine documents are too few and ten are enough; the same holds for the documents with a label."""
    ones = [Document(str(index), TEXT, (Entity(0, 2, "dis"),)) for index in range(10)]
    wrong = [ones[0].with_entities(()), *ones[1:]]
    nine, ten = score(ones[:9], wrong[:9], LABELS).micro, score(ones, wrong, LABELS).micro
    assert nine.f1_low is nine.precision_high is None and nine.f1 == pytest.approx(16 / 17)
    assert ten.f1_low is not None and ten.f1_high is not None and ten.f1_low < ten.f1 < ten.f1_high
    others = [Document(f"o{index}", TEXT, (Entity(3, 5, "bod"),)) for index in range(20)]
    mixed = score(ones[:9] + others, wrong[:9] + others, LABELS)
    assert mixed.labels["dis"].f1_low is None and mixed.labels["bod"].f1_low == 1.0
    assert mixed.micro.f1_low is not None and mixed.macro.f1_low is not None
    assert mixed.slices["nesting"]["nested"].f1_low is None if "nested" in mixed.slices["nesting"] else True


def test_as_dict_is_the_json_of_the_design():
    gold = [Document("1", TEXT, (Entity(0, 2, "dis"), Entity(3, 5, "dis"), Entity(6, 7, "dis"))), Document("2", TEXT)]
    predicted = [gold[0].with_entities([Entity(0, 2, "dis"), Entity(3, 6, "bod")]), gold[1]]
    tree = json.loads(json.dumps(score(gold, predicted, LABELS, resamples=50).as_dict()))
    assert (tree["documents"], tree["protocol"], tree["notes"]) == (
        2,
        "cblue",
        {"predicted entity of label 'bod', which no gold entity has": 1},
    )
    micro = tree["strict"]["micro"]
    assert micro["f1_low"] is None and micro["recall_high"] is None and tree["strict"]["macro"]["f1_high"] is None
    assert (micro["correct"], micro["predicted"], micro["gold"]) == (1, 2, 3)
    assert (micro["precision"], micro["recall"], micro["f1"]) == (0.5, pytest.approx(1 / 3), pytest.approx(0.4))
    assert set(micro) == {f"{n}{e}" for n in ("precision", "recall", "f1") for e in ("", "_low", "_high")} | {
        "correct",
        "predicted",
        "gold",
    }
    assert tree["strict"]["macro"]["f1"] == pytest.approx(0.25)
    assert tree["strict"]["labels"]["sym"]["f1_low"] is None
    assert (tree["boundary"]["correct"], tree["relaxed"]["correct"], tree["partial"]["correct"]) == (1, 1, 1.5)
    assert set(tree["slices"]) == {"nesting", "entity length", "text length", "label frequency"}
    assert tree["alarms"] == {
        "documents": 1,
        "characters": 10,
        "predicted": 0,
        "per_1000": 0.0,
        "per_1000_low": None,
        "per_1000_high": None,
    }


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        ([Document("one", TEXT)], [], "document 'one' is gold only"),
        ([], [Document("two", TEXT)], "document 'two' is predicted only"),
        ([Document("one", TEXT)] * 2, [Document("one", TEXT)], "document 'one' occurs twice among the gold"),
        ([Document("one", TEXT)], [Document("one", TEXT)] * 2, "document 'one' occurs twice among the predicted"),
        ([Document("one", TEXT)], [Document("one", TEXT + " ")], "document 'one': the gold text"),
        ([Document("one", TEXT, (Entity(0, 1, "dss"),))], [Document("one", TEXT)], "'one': gold label 'dss'.*'dis'"),
        ([Document("one", TEXT)], [Document("one", TEXT, (Entity(0, 1, "x"),))], "'one': predicted label 'x'"),
    ],
)
def test_documents_that_do_not_pair_are_refused(gold: list[Document], predicted: list[Document], message: str):
    with pytest.raises(DataError, match=message):
        score(gold, predicted, LABELS)


def test_pair_keeps_the_order_of_gold():
    gold = [Document("b", TEXT), Document("a", TEXT)]
    assert [one.id for one, _ in pair(gold, gold[::-1])] == ["b", "a"]


A, B = "dis", "bod"


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([(0, 2, A)], [(0, 2, A)], ["correct"]),
        ([(0, 2, A)], [(0, 2, B)], ["type"]),
        ([(0, 2, A)], [(0, 3, A)], ["boundary"]),
        ([(0, 2, A)], [(1, 3, B)], ["boundary+type"]),
        ([(0, 2, A)], [], ["missed"]),
        ([], [(0, 2, A)], ["spurious"]),
        ([(0, 2, A)], [(2, 4, A)], ["missed", "spurious"]),
        # an exact match is paired before an overlap, and a nested prediction is left over
        ([(0, 4, A)], [(0, 2, A), (0, 4, A)], ["correct", "spurious"]),
        # the same span is paired before an overlap with the same label
        ([(0, 4, A)], [(0, 4, B), (0, 5, A)], ["type", "spurious"]),
        # the same label is paired before a larger overlap with another label
        ([(0, 6, A)], [(0, 5, B), (5, 7, A)], ["boundary", "spurious"]),
        # the larger overlap is paired first
        ([(0, 6, A)], [(0, 2, A), (2, 7, A)], ["boundary", "spurious"]),
        # two labels on one span
        ([(0, 2, A), (0, 2, B)], [(0, 2, B), (0, 2, "sym")], ["correct", "type"]),
    ],
)
def test_every_kind_of_error(gold: list[tuple], predicted: list[tuple], kinds: list[str]):
    one, other = (Document("1", TEXT, tuple(Entity(*item) for item in side)) for side in (gold, predicted))
    assert sorted(error.kind for error in errors(one, other)) == sorted(kinds)


def test_larger_overlap_is_the_one_that_is_paired():
    gold = Document("1", TEXT, (Entity(0, 6, A),))
    near, far = Entity(2, 7, A), Entity(0, 2, A)
    assert errors(gold, gold.with_entities([far, near])) == [
        Error("spurious", None, far),
        Error("boundary", gold.entities[0], near),
    ]


def test_errors_of_different_texts_are_refused():
    with pytest.raises(DataError, match="document '1'"):
        errors(Document("1", "a"), Document("1", "b"))


@settings(max_examples=200, deadline=None)
@given(entities, entities)
def test_errors_name_every_entity_once(true: tuple[Entity, ...], guessed: tuple[Entity, ...]):
    gold, predicted = Document("1", TEXT, true), Document("1", TEXT, guessed)
    found = errors(gold, predicted)
    assert sorted(error.gold for error in found if error.gold) == sorted(set(true))
    assert sorted(error.predicted for error in found if error.predicted) == sorted(set(guessed))
    assert sum(error.kind == "correct" for error in found) == len(set(true) & set(guessed))
    missed = [error.gold for error in found if error.kind == "missed" and error.gold]
    spurious = [error.predicted for error in found if error.kind == "spurious" and error.predicted]
    assert not any(max(m.start, s.start) < min(m.end, s.end) for m in missed for s in spurious)


def test_import_is_free_of_torch():
    code = "import sys, spantune.metrics.scoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
