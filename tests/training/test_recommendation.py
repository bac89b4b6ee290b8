"""Settings that a recipe leaves open are chosen by the sizes of corpus and model; stated settings are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spantune.core import Config, Document, Entity, load_config, parse_config
from spantune.data import formats
from spantune.training import Recommendation, prepare, recommend, recommendation
from spantune.training.recommendation import (
    ANY,
    READ_FROM,
    READ_TABLE,
    TABLE,
    entities_a_label,
    with_answer,
    with_values,
)
from spantune.training.schedule import total_steps

SMALL = 270_000_000


def least(**sections: dict[str, Any]) -> Config:
    plain: dict[str, Any] = {"model": {"source": "bundled:x"}, "task": {"labels": ["a"]}, "data": {"train": "t.jsonl"}}
    return parse_config({**plain, **sections})


def test_every_size_of_corpus_and_model_has_a_row() -> None:
    reached = {recommend(documents, weights) for documents in (1, 20, 21, 100, 500, 10**7)
               for weights in (1, SMALL, 10**9, 3 * 10**9, 14 * 10**9)}  # fmt: skip
    assert reached == set(TABLE)
    assert len({row.name for row in TABLE}) == len(TABLE) and recommend(ANY, ANY) == TABLE[-1]
    read = {recommend(documents, weights, "spans") for documents in (300, 301, 3000, 10**7) for weights in (1, 10**10)}
    assert read == set(READ_TABLE) and len({row.name for row in READ_TABLE}) == len(READ_TABLE)


@pytest.mark.parametrize("documents", [15, 36, 100, 500, 1000])
def test_a_small_model_takes_some_hundred_steps_of_any_corpus(documents: int) -> None:
    filled = with_values(least(), documents, SMALL)
    assert 200 <= total_steps(filled.train, documents) <= 700


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_absent_values_are_those_of_the_row(row: Recommendation) -> None:
    filled = with_values(least(), row.documents, row.weights)
    train, lora = filled.train, filled.lora
    assert (train.learning_rate, train.batch_examples, train.epochs, train.loss_on, lora.rank, lora.alpha) == (
        row.learning_rate, row.batch_examples, row.epochs, row.loss_on, row.rank, row.alpha
    )  # fmt: skip
    assert with_values(filled, 1, 1) == filled  # as in a resumed run


def test_stated_values_are_kept_and_alpha_follows_the_rank() -> None:
    stated = {"learning_rate": 3e-5, "batch_examples": 7, "epochs": 0.5, "loss_on": "answer"}
    filled = with_values(least(train=stated, lora={"rank": 64}), 40, SMALL)
    assert filled.train.model_dump(include=set(stated)) == stated
    assert (filled.lora.rank, filled.lora.alpha) == (64, 128)
    assert with_values(least(lora={"alpha": 5}), 40, SMALL).lora.alpha == 5


@pytest.mark.parametrize("sections", [
    {"extract": {"grounded": False}}, {"train": {"pack": "none"}}, {"train": {"cut_tokens": 99}}
])  # fmt: skip
def test_the_loss_is_on_the_answer_where_choices_cannot_be_had(sections: dict[str, Any]) -> None:
    assert with_values(least(**sections), 40, SMALL).train.loss_on == "answer"


@pytest.mark.parametrize("row", READ_TABLE, ids=lambda row: row.name)
def test_what_is_read_gets_its_own_values_and_no_loss_on_answers(row: Recommendation) -> None:
    filled = with_values(least(task={"labels": ["a"], "answer": "spans"}), row.documents, row.weights)
    train, lora = filled.train, filled.lora
    assert (train.learning_rate, train.batch_examples, train.epochs, lora.rank, lora.alpha) == (
        row.learning_rate, row.batch_examples, row.epochs, row.rank, row.alpha
    )  # fmt: skip
    assert train.loss_on is None and with_values(filled, 1, 1) == filled


def test_the_answer_is_that_of_the_recipe_or_its_preset() -> None:
    assert with_answer(least(task={"labels": ["a"], "answer": "inline"}), ANY).task.answer == "inline"
    assert with_answer(least(task={"labels": ["a"], "answer": "spans"}), 10).task.answer == "spans"
    assert with_answer(least(task={"preset": "cmeee_tutorial"}), ANY).task.answer is None


def test_entities_are_counted_by_label_whatever_documents_they_are_in() -> None:
    documents = [Document("a", "abc", (Entity(0, 1, "x"), Entity(1, 2, "x"), Entity(2, 3, "y"))), Document("b", "")]
    assert entities_a_label(documents) == 1 and entities_a_label(documents * 4) == 6
    assert entities_a_label(documents[1:]) == 0


def test_spans_are_read_from_so_many_entities_on_unless_the_recipe_is_one_for_writing() -> None:
    assert with_answer(least(), READ_FROM - 1).task.answer == "jsonl"
    assert with_answer(least(), READ_FROM).task.answer == "spans"
    for sections in (
        {"train": {"loss_on": "choices"}}, {"train": {"pack": "none"}}, {"train": {"cut_tokens": 99}},
        {"extract": {"grounded": False}}, {"task": {"labels": ["a"], "empty_answer": "none"}},
        {"task": {"labels": ["a"], "template": "tutorial"}},
    ):  # fmt: skip
        assert with_answer(least(**sections), READ_FROM).task.answer == "jsonl", sections


def test_that_spans_are_read_is_said_where_the_recipe_leaves_it_open(
    tree: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(recommendation, "READ_FROM", 2)
    prepared = prepare(parse_config(tree(tmp_path, train={"loss_on": None})))
    assert (prepared.recipe.task.answer, prepared.task.answer, prepared.written) == ("spans", "spans", ())
    assert "set task.answer=jsonl to have them written" in capsys.readouterr().err.replace("\n", " ")
    prepare(prepared.recipe)  # as in a resumed run
    assert "task.answer=jsonl" not in capsys.readouterr().err


def test_preparing_fills_the_recipe_and_its_saved_form_is_whole(
    tree: Callable[..., dict[str, Any]], corpus: Path, tmp_path: Path
) -> None:
    sections = tree(tmp_path)
    del sections["lora"], sections["train"]
    prepared = prepare(parse_config(sections))
    recipe, count = prepared.recipe, len(formats.read(corpus / "train.jsonl").documents)
    row = recommend(count, 1)
    assert (recipe.train.batch_examples, recipe.train.epochs, recipe.lora.rank) == (
        row.batch_examples, row.epochs, row.rank
    )  # fmt: skip
    assert recipe.train.loss_on == "choices" and all(example.choices for example in prepared.examples)
    recipe.save(tmp_path)
    assert prepare(load_config(tmp_path / "config.yaml")).recipe == load_config(tmp_path / "config.yaml") == recipe
