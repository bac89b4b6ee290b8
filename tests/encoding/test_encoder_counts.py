"""Token counts of texts alone, and of the examples of a task."""

from __future__ import annotations

import pytest

from helpers.fakes import byte_tokenizer
from spantune.core import DataError, Document, Entity, ModelError, config
from spantune.encoding import Encoder, Tokens, count_tokens, make_task

TASK = make_task(config.Task.model_validate({"labels": ["dis"], "instruction": "Find entities."}))
DOCUMENTS = [Document("a", "肺炎", (Entity(0, 2, "dis"),)), Document("b", "no 😀<|im_end|>"), Document("c", "")]


def test_texts_are_counted_without_special_tokens() -> None:
    found = count_tokens(DOCUMENTS, byte_tokenizer())
    sizes = [len(document.text.encode()) for document in DOCUMENTS]  # one token per byte
    assert (found.total, found.longest) == (sum(sizes), max(sizes))
    assert sum(one.count for one in found.texts) == 3
    assert found.examples == () and found.instruction_share is None


def test_shares_are_of_all_tokens_of_the_examples() -> None:
    found = count_tokens(DOCUMENTS, byte_tokenizer(), TASK)
    examples = [Encoder(byte_tokenizer(), TASK).example(document) for document in DOCUMENTS]
    whole = sum(len(example.ids) for example in examples)
    answers = sum(len(example.ids) - example.answer_start for example in examples)
    assert found.answer_share == round(answers / whole, 4)
    assert found.text_share == round(found.total / whole, 4)
    assert found.instruction_share is not None and found.instruction_share > 0.3
    assert found.instruction_share + found.text_share + found.answer_share == pytest.approx(1, abs=2e-4)


def test_no_documents_are_no_tokens() -> None:
    assert count_tokens([], byte_tokenizer(), TASK) == Tokens(0, 0, ())


def test_a_base_models_tokenizer_counts_texts_and_makes_no_examples() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert count_tokens(DOCUMENTS, tokenizer).total > 0
    with pytest.raises(ModelError, match="no chat template"):
        count_tokens(DOCUMENTS, tokenizer, TASK)


def test_a_label_that_the_task_does_not_have() -> None:
    with pytest.raises(DataError, match=r"document 'x'.*'drug'"):
        count_tokens([Document("x", "ab", (Entity(0, 1, "drug"),))], byte_tokenizer(), TASK)
