"""Splits: label shares, no leaks, the same split again, and no document moves when others are appended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import formats
from spantune.data.splitting import Division, Rule, few_shot, parse_shares, sample, split, write_splits

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
LONG = "患者三天前受凉后出现咳嗽咳痰，痰为白色黏痰，不易咳出，伴发热，体温最高三十九度，自行口服退热药后体温可降至正常"


def signs(number: int) -> str:
    """Return a text unlike that of any other number; digits alone make no difference to near-duplicates."""
    return "".join(chr(0x4E00 + (number * 7919 + place * 613) % 20_000) for place in range(8))


def numbered(count: int, label: Callable[[int], Sequence[str]] = lambda number: ["dis"]) -> list[Document]:
    """Return documents with different texts; document n has an entity for each label in `label(n)`."""
    return [
        Document(str(n), f"{n * 7919:x}号{chr(0x4E00 + n % 5000)}😀", tuple(Entity(0, 1, name) for name in label(n)))
        for n in range(count)
    ]


def home(division: Division) -> dict[str, str]:
    return {document.id: name for name, part in division.parts.items() for document in part}


# --- what a split promises ---------------------------------------------------------------------------------------


def test_every_document_is_in_one_split_in_the_order_of_the_file() -> None:
    documents = numbered(300)
    division = split(documents, Rule(SHARES))
    assert sorted(home(division), key=int) == [document.id for document in documents] and division.size == 300
    for part in division.parts.values():
        assert list(part) == sorted(part, key=lambda document: int(document.id))


def test_the_same_seed_is_the_same_split_and_another_is_another() -> None:
    documents = numbered(300)
    first, again, other = (home(split(documents, Rule(SHARES, seed))) for seed in (1, 1, 2))
    assert first == again
    assert 30 < sum(first[name] != other[name] for name in first) < 200


@pytest.mark.parametrize("seed", range(5))
def test_common_and_rare_labels_reach_every_split_in_proportion(seed: int) -> None:
    documents = numbered(
        1000,
        lambda n: [
            *(["common"] if n % 2 else []),
            *(["rare"] if n % 40 == 7 else []),
            *(["tenth"] if n % 10 == 3 else []),
        ],
    )
    found = split(documents, Rule(SHARES, seed)).as_dict()["labels"]
    assert sum(found["rare"].values()) == 25
    assert 18 <= found["rare"]["train"] <= 22 and found["rare"]["dev"] >= 1 and found["rare"]["test"] >= 1
    assert abs(found["tenth"]["test"] - 10) <= 3 and abs(found["tenth"]["dev"] - 10) <= 3
    assert abs(found["common"]["test"] - 50) <= 5 and abs(found["common"]["dev"] - 50) <= 5


def test_documents_without_entities_are_stratified_too() -> None:
    found = split(numbered(400, lambda n: [] if n % 20 == 0 else ["dis"]), Rule(SHARES))
    empty = [sum(not document.entities for document in part) for part in found.parts.values()]
    assert sum(empty) == 20 and all(empty) and abs(empty[0] - 16) <= 2


texts = st.sampled_from([LONG, LONG + "。", LONG[:-1], "短", "短句", "另一句话", "x", "xyz", "\u0301", "😀😀"])


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    rows = draw(st.lists(st.tuples(texts, st.sampled_from("abc"), st.sampled_from([None, "g", "h", 3])), max_size=25))
    fillers = numbered(40)
    made = [
        Document(f"m{n}", text, (Entity(0, 1, label),), {"group": group} if group else {})
        for n, (text, label, group) in enumerate(rows)
    ]
    return draw(st.permutations([*fillers, *made]))


@settings(max_examples=60, deadline=None)
@given(corpora(), corpora())
def test_nothing_leaks_and_appending_moves_no_earlier_document_but_those_it_names(
    first: list[Document], more: list[Document]
) -> None:
    more = [Document(f"+{document.id}", document.text, document.entities, document.meta) for document in more]
    rule = Rule({"a": 0.5, "b": 0.5}, by="group" if any(d.meta for d in first) else None)
    before, after = split(first, rule), split([*first, *more], rule)
    for division in (before, after):
        keys: dict[Any, str] = {}
        near = {LONG, LONG + "。", LONG[:-1]}
        for name, part in division.parts.items():
            for document in part:
                assert keys.setdefault(document.text, name) == name
                assert keys.setdefault("near" if document.text in near else document.id, name) == name
                if rule.by and document.meta:
                    assert keys.setdefault(("group", document.meta["group"]), name) == name
    changed = {name for name, where in home(before).items() if home(after)[name] != where}
    assert changed <= set(after.moved)
    if not after.moved:
        assert not changed


def test_an_appended_near_duplicate_joins_what_it_resembles() -> None:
    documents = [*numbered(60), Document("long", LONG)]
    for seed in range(4):
        rule = Rule({"train": 0.5, "test": 0.5}, seed)
        was = home(split(documents, rule))
        after = split([*documents, Document("copy", LONG + "。"), Document("same", LONG)], rule)
        now = home(after)
        assert now["copy"] == now["same"] == was["long"]
        assert {name: now[name] for name in was} == was
        assert ("copy", "long") in after.copies and ("same", "long") in after.copies


def test_a_document_that_joins_two_clusters_takes_the_later_one_along_and_says_so() -> None:
    documents = [Document(f"g{n}", signs(n), meta={"group": f"g{n}"}) for n in range(40)]
    rule = Rule({"train": 0.5, "test": 0.5}, by="group")
    was = home(split(documents, rule))
    other = next(n for n in range(1, 40) if was[f"g{n}"] != was["g0"])
    bridge = Document("bridge", documents[0].text, meta={"group": f"g{other}"})
    after = split([*documents, bridge], rule)
    assert home(after)["bridge"] == home(after)[f"g{other}"] == home(after)["g0"] == was["g0"]
    assert after.moved == (f"g{other}",) and after.as_dict()["moved"] == [f"g{other}"]
    same = {name for name in was if name != f"g{other}"}
    assert all(home(after)[name] == was[name] for name in same)


def test_groups_stay_whole_and_are_named_in_the_record() -> None:
    documents = [Document(str(n), signs(n), meta={"ward": n % 30}) for n in range(300)]
    division = split(documents, Rule(SHARES, by="ward"))
    wards = {name: {document.meta["ward"] for document in part} for name, part in division.parts.items()}
    assert sum(map(len, wards.values())) == 30 and all(wards.values())
    assert {int(ward) for ward in division.groups} == set(range(30))
    assert all(int(ward) in wards[name] for ward, name in division.groups.items())
    # The group decides, not the text: other texts in the same groups get the same splits.
    renamed = [Document(document.id, document.text + "改", meta=document.meta) for document in documents]
    assert split(renamed, Rule(SHARES, by="ward")).groups == division.groups


def test_a_corrected_annotation_and_a_removed_line_move_few_documents() -> None:
    documents = numbered(2000, lambda n: ["a", "b"] if n % 3 else ["c"])
    was = home(split(documents, Rule(SHARES)))
    corrected = [d.with_entities(()) if d.id == "100" else d for d in documents]
    for changed in (corrected, documents[1:]):
        now = home(split(changed, Rule(SHARES)))
        assert sum(now[name] != was[name] for name in now) < 0.2 * len(now)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"train": 0.8, "dev": 0.1}, ["sum to 0.9", "expected 1"]),
        ({"train": 1.0, "dev": 0.0}, ["share of dev is 0", "leave the split out"]),
        ({"train": 1.5, "dev": -0.5}, ["share of dev is -0.5"]),
        ({"../x": 1.0}, ["'../x' cannot name a split", "letters"]),
        ({"split": 1.0}, ["'split' cannot name"]),
        ({"": 1.0}, ["'' cannot name"]),
        ({"train": float("nan")}, ["sum to nan"]),
        ({}, ["sum to 0"]),
    ],
)
def test_shares_that_cannot_be_right(shares: dict[str, float], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Rule(shares)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_likeness_that_cannot_be_right(threshold: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0 and at most 1"):
        Rule(SHARES, threshold=threshold)


@pytest.mark.parametrize(
    ("shares", "names", "words"),
    [
        ("0.8;0.2", None, ["0.8;0.2", "commas"]),
        ("0.8,0.1,", None, ["0.8,0.1,"]),
        ("0.4,0.2,0.2,0.2", None, ["4 shares", "--names"]),
        ("0.5,0.5", "a,b,c", ["2 shares", "'a,b,c'"]),
        ("0.5,0.5", "a,a", ["'a,a'", "each once"]),
    ],
)
def test_command_line_shares_that_cannot_be_right(shares: str, names: str | None, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_shares(shares, names)
    assert all(word in str(caught.value) for word in words), caught.value


def test_usual_names() -> None:
    assert parse_shares("1") == {"train": 1.0}
    assert parse_shares("0.9,0.1") == {"train": 0.9, "test": 0.1}
    assert parse_shares("0.8,0.1,0.1") == SHARES
    assert parse_shares("0.5,0.5", "left,right") == {"left": 0.5, "right": 0.5}


def test_a_split_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match=r"the split 'dev' \(share 0.1\) would have no document \(train .*larger share"):
        split(numbered(1), Rule(SHARES))
    one_group = [Document(str(n), f"{n}号", meta={"g": "x"}) for n in range(50)]
    with pytest.raises(DataError, match=r"would have no document.*smaller groups"):
        split(one_group, Rule(SHARES, by="g"))


def test_a_group_key_that_no_document_has() -> None:
    documents = [Document("a", "甲", meta={"patient": 3}), Document("b", "乙")]
    with pytest.raises(DataError, match=r"'patent'.*did you mean 'patient'"):
        split(documents, Rule({"all": 1.0}, by="patent"))
    with pytest.raises(DataError, match="no meta at all"):
        split(numbered(3), Rule({"all": 1.0}, by="patient"))


# --- samples -------------------------------------------------------------------------------------------------------


def test_a_larger_sample_contains_a_smaller_one_and_both_are_in_proportion() -> None:
    documents = numbered(1000, lambda n: ["rare"] if n % 50 == 0 else [] if n % 4 == 0 else ["common"])
    ids = [[document.id for document in sample(documents, count, 3)] for count in (10, 50, 100, 200, 1000)]
    for smaller, larger in pairwise(ids):
        assert set(smaller) < set(larger)
    assert ids[-1] == [document.id for document in documents] and ids[1] == sorted(ids[1], key=int)
    hundred = sample(documents, 100, 3)
    labels = Counter(entity.label for document in hundred for entity in document.entities)
    assert len(hundred) == 100 and labels["rare"] in (1, 2, 3) and 74 <= labels["common"] <= 76
    assert ids[2] != [document.id for document in sample(documents, 100, 4)]


def test_a_sample_of_more_than_there_is() -> None:
    with pytest.raises(DataError, match="sample of 4 of 3 documents"):
        sample(numbered(3), 4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=4), min_size=1, max_size=30), st.integers(1, 4), st.integers()
)
def test_few_shots_hold_k_of_every_label_and_none_is_superfluous(labels: list[list[str]], k: int, seed: int) -> None:
    documents = [
        Document(str(n), f"{n:04}", tuple(Entity(i, i + 1, name) for i, name in enumerate(names)))
        for n, names in enumerate(labels)
    ]
    total = Counter(name for names in labels for name in names)
    if not total:
        return
    chosen = few_shot(documents, k, seed, allow_fewer=True)
    assert chosen == few_shot(documents, k, seed, allow_fewer=True)

    def holds(part: Sequence[Document]) -> bool:
        have = Counter(entity.label for document in part for entity in document.entities)
        return all(have[label] >= min(k, count) for label, count in total.items())

    assert holds(chosen)
    assert not any(holds([other for other in chosen if other is not one]) for one in chosen)


def test_few_shots_are_few_and_differ_by_seed() -> None:
    documents = numbered(200, lambda n: ["a", "b", "c"] if n % 20 == 0 else ["a"])
    first, other = few_shot(documents, 3, 0), few_shot(documents, 3, 1)
    assert len(first) == len(other) == 3 and first != other


def test_too_few_shots_name_the_labels() -> None:
    documents = numbered(10, lambda n: ["common"] if n else ["common", "rare"])
    with pytest.raises(DataError, match=r"'rare' has 1 of 2 entities among 10 documents.*--allow-fewer"):
        few_shot(documents, 2)
    assert len(few_shot(documents, 2, allow_fewer=True)) == 2
    with pytest.raises(DataError, match="no entities at all"):
        few_shot(numbered(3, lambda n: []), 1, allow_fewer=True)


# --- files ---------------------------------------------------------------------------------------------------------


def test_written_splits_read_back_and_the_record_counts_them(tmp_path: Path) -> None:
    division = split(numbered(200), Rule(SHARES, seed=5))
    assert write_splits(tmp_path / "out", division, facts={"source": "corpus.jsonl"}) == {}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "dev.jsonl",
        "split.json",
        "test.jsonl",
        "train.jsonl",
    ]
    record = json.loads((tmp_path / "out" / "split.json").read_text(encoding="utf-8"))
    assert record["source"] == "corpus.jsonl" and record["seed"] == 5 and record["shares"] == SHARES
    for name, part in division.parts.items():
        assert formats.read(tmp_path / "out" / f"{name}.jsonl").documents == part
        assert record["documents"][name] == len(part) == record["labels"]["dis"][name]
    assert sum(record["label_shares"]["dis"].values()) == pytest.approx(1, abs=0.001)


def test_other_formats_have_their_own_endings_and_notes(tmp_path: Path) -> None:
    notes = write_splits(tmp_path / "out", split(numbered(60), Rule(SHARES)), "marked")
    assert notes and (tmp_path / "out" / "train.txt").is_file()


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    crossing = Document("x", "abcd", (Entity(0, 3, "l"), Entity(1, 4, "l")))
    division = split([*numbered(60), crossing], Rule(SHARES))
    with pytest.raises(DataError, match="document 'x'"):
        write_splits(tmp_path / "out", division, "marked")
    with pytest.raises(DataError, match="unknown format 'marker'"):
        write_splits(tmp_path / "out", division, "marker")
    with pytest.raises(DataError, match="no folder"):
        write_splits(tmp_path / "none" / "out", division)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"exists and is not empty.*another folder"):
        write_splits(tmp_path / "full", division)
    assert [(file.name, file.read_text()) for file in (tmp_path / "full").iterdir()] == [("train.jsonl", "mine")]


# --- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_real_corpus_is_split_in_proportion_and_stays_when_it_grows() -> None:
    documents = formats.read(SHARED / "cmeee_v2_few_shot/cmeee.jsonl").documents
    whole, part = split(documents, Rule(SHARES)), split(documents[:1500], Rule(SHARES))
    record = whole.as_dict()
    assert all(all(counts.values()) for counts in record["labels"].values())
    for label, counts in record["label_shares"].items():
        if label in ("dep", "equ"):  # these labels are in 25 and 54 documents
            continue
        assert counts["train"] == pytest.approx(0.8, abs=0.04)
        assert counts["dev"] == pytest.approx(0.1, abs=0.04) and counts["test"] == pytest.approx(0.1, abs=0.04)
    now = home(whole)
    assert {name: now[name] for name in home(part)} == home(part)
    texts = [{document.text for document in part} for part in whole.parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
