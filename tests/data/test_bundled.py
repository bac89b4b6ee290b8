"""The bundled corpora: their size, label balance and correctness, and that no text is copied from another corpus."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from helpers.real import SHARED
from spantune.core import Document
from spantune.data import formats, statistics
from spantune.encoding.prompts import BIOMEDICAL_LABELS, CMEEE_LABELS

SIZES = {
    "clinical-zh-train": 480,
    "clinical-zh-test": 120,
    "biomedical-en-train": 160,
    "biomedical-en-test": 40,
}
PAIRS = ("clinical-zh", "biomedical-en")
NEAR = 0.6


@cache
def documents(name: str) -> tuple[Document, ...]:
    return formats.read(f"bundled:{name}").documents


def both(pair: str) -> tuple[Document, ...]:
    return documents(f"{pair}-train") + documents(f"{pair}-test")


def bare(text: str) -> str:
    """Return `text` without white space and in lower case, because token files differ in both."""
    return "".join(text.split()).casefold()


def test_there_are_no_others() -> None:
    assert set(formats.BUNDLED) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_size_offsets_and_lengths(name: str) -> None:
    corpus = documents(name)
    assert len(corpus) == SIZES[name]
    low, high = (15, 120) if "zh" in name else (40, 260)
    for document in corpus:
        assert low <= len(document.text) <= high, document
        assert document.text == document.text.strip() and not re.search(r"[{}|\\\n\t]|  ", document.text), document
        assert len(set(document.entities)) == len(document.entities)
        for entity in document.entities:
            surface = document.surface(entity)
            assert surface and surface == surface.strip(" ，。；、,.;"), (document.id, surface)


@pytest.mark.parametrize("name", SIZES)
def test_the_file_says_whose_it_is(name: str) -> None:
    first = formats.resolve(f"bundled:{name}").read_text(encoding="utf-8").split("\n")[0]
    assert "Written for spantune and dedicated to the public domain (CC0 1.0)" in first


@pytest.mark.parametrize(("part", "least"), [("train", 20), ("test", 8)])
def test_all_nine_chinese_types_are_there_often_enough(part: str, least: int) -> None:
    counts = statistics(documents(f"clinical-zh-{part}")).entities
    assert set(counts) == {label.code for label in CMEEE_LABELS}
    assert min(counts.values()) >= least, counts


@pytest.mark.parametrize(("part", "least"), [("train", 100), ("test", 25)])
def test_both_english_types_are_there_often_enough(part: str, least: int) -> None:
    counts = statistics(documents(f"biomedical-en-{part}")).entities
    assert set(counts) == {label.code for label in BIOMEDICAL_LABELS}
    assert min(counts.values()) >= least, counts


def test_some_chinese_sentences_have_no_entities_and_some_have_nested_ones() -> None:
    assert 0.04 <= statistics(both("clinical-zh")).without_entities / 600 <= 0.07
    for part in ("train", "test"):
        counted = statistics(documents(f"clinical-zh-{part}"))
        assert counted.nested >= 0.05 * sum(counted.entities.values())
        assert counted.without_entities >= 3 and not counted.crossing
    assert statistics(both("biomedical-en")).without_entities > 0


@pytest.mark.parametrize("pair", PAIRS)
def test_no_sentence_is_there_twice(pair: str) -> None:
    texts = Counter(bare(document.text) for document in both(pair))
    assert [text for text, count in texts.items() if count > 1] == []


@pytest.mark.no_cover
@pytest.mark.parametrize("pair", PAIRS)
def test_no_test_sentence_is_nearly_one_of_train(pair: str) -> None:
    near = []
    matcher = difflib.SequenceMatcher(autojunk=False)
    for test in documents(f"{pair}-test"):
        matcher.set_seq2(test.text)
        for train in documents(f"{pair}-train"):
            matcher.set_seq1(train.text)
            if matcher.real_quick_ratio() > NEAR and matcher.quick_ratio() > NEAR and matcher.ratio() > NEAR:
                near.append((test.text, train.text))
    assert near == []


@pytest.mark.parametrize("pair", PAIRS)
def test_no_topic_is_in_both_parts(pair: str) -> None:
    train, test = (Counter(d.meta["group"] for d in documents(f"{pair}-{part}")) for part in ("train", "test"))
    assert len(train) >= 30 and len(test) >= 8 and not set(train) & set(test)


def shared_texts(folder: Path) -> Iterator[str]:
    """Yield every text of the shared corpora: JSON values, lines, and the joined first columns of token files."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".jsonl", ".json"):
            content = path.read_text(encoding="utf-8-sig")
            yield from _strings(
                [json.loads(line) for line in content.split("\n") if line]
                if path.suffix == ".jsonl"
                else json.loads(content)
            )
        elif path.is_file() and path.suffix != ".pdf":
            content = path.read_text(encoding="utf-8-sig")
            yield from content.split("\n")
            yield from (part for line in content.split("\n") for part in line.split("|||")[:1])
            for block in re.split(r"\n\s*\n", content):
                columns = [line.split()[0] for line in block.split("\n") if line.split()]
                yield "".join(columns)
                yield "".join(token[0] for token in columns)  # weibo_ner: each token is a character and a digit


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def test_no_sentence_is_one_of_the_shared_corpora() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    known = {bare(text) for text in shared_texts(SHARED)}
    assert len(known) > 30_000
    for pair in PAIRS:
        for document in both(pair):
            assert bare(document.text) not in known, document
