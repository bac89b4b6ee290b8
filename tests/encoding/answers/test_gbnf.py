"""The GBNF grammar for llama.cpp allows exactly what the grammar for llguidance allows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.fakes import byte_tokenizer
from spantune.core import Document, Entity, Label, TaskSpec
from spantune.encoding import FORMATS, gbnf
from spantune.encoding.answers.gbnf import _suffix_automaton

TASK = TaskSpec(labels=(Label(code="dis"), Label(code='s"\\m')), instruction="Find entities.")
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def known() -> Any:
    import llguidance.hf

    return llguidance.hf.from_tokenizer(TOKENIZER, n_vocab=len(TOKENIZER), eos_token=TOKENIZER.eos_token_id)


def accepts(known: Any, grammar: str, answer: str) -> bool:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    matcher = LLMatcher(known, LLMatcher.grammar_from_lark(any_to_lark(grammar)))
    assert not matcher.get_error(), matcher.get_error()
    ids = TOKENIZER(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not ids:
        return bool(matcher.is_accepting())
    return bool(matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting())


@settings(deadline=None, max_examples=200)
@given(st.text("ab肺", min_size=1, max_size=14), st.text("ab肺", max_size=5))
def test_the_automaton_has_exactly_the_substrings(text: str, word: str) -> None:
    ways = _suffix_automaton(text)
    state: int | None = 0
    for symbol in word:
        state = ways[state].get(symbol) if state is not None else None
    assert (state is not None) == (word in text)
    assert len(ways) <= max(2, 2 * len(text) - 1)


def test_a_long_text_takes_two_rules_a_character_at_most() -> None:
    grammar = gbnf("患者因急性阑尾炎行腹腔镜手术。" * 100, TASK)
    assert len(grammar.splitlines()) < 2 * 1500 + 3 and len(grammar) < 200_000


texts = st.text(st.sampled_from('ab肺"\\\n\t{}\x00\x7f😀\u0301\u2028'), max_size=8)


@pytest.mark.no_cover
@settings(deadline=None, max_examples=60)
@example("ab", "ab", "none")
@example("", "", "")
@example("", "", "none")
@given(texts, st.text("ab肺", max_size=3), st.sampled_from(["", "none"]))
def test_answers_are_those_of_the_format(known: Any, text: str, other: str, empty: str) -> None:
    task = TASK.model_copy(update={"empty_answer": empty})
    grammar, render = gbnf(text, task), FORMATS["jsonl"].render
    every = [(start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    spans = [(start, end) for start, end in every if text[start:end] == text[start:end].strip()]
    for start, end in every[:8]:
        alone = render(Document("d", text, (Entity(start, end, "dis"),)), task)
        assert accepts(known, grammar, alone) == ((start, end) in spans)
    entities = tuple(Entity(*span, task.codes[number % 2]) for number, span in enumerate(spans[:6]))
    assert accepts(known, grammar, render(Document("d", text, entities), task))
    assert accepts(known, grammar, render(Document("d", text), task))
    foreign = render(Document("d", other, (Entity(0, len(other), "dis"),)) if other else Document("d", ""), task)
    assert accepts(known, grammar, foreign) == (other in text)
    line = render(Document("d", "ab", (Entity(0, 1, "dis"),)), task)
    for wrong in (line.replace("dis", "sym"), line.replace('"a"', '""'), line.rstrip("\n"), line + "x", "x"):
        assert not accepts(known, grammar, wrong)


def test_the_tutorials_answers_too(known: Any) -> None:
    task = TASK.model_copy(update={"answer": "jsonl_seed"})
    document = Document("d", "肺炎 ab", (Entity(0, 2, "dis"), Entity(3, 5, "dis")))
    answer = FORMATS["jsonl_seed"].render(document, task)
    assert accepts(known, gbnf(document.text, task), answer)
    assert not accepts(known, gbnf(document.text, task), answer + "\n")


def test_forced_text_is_spelled_in_the_tokens_that_are_given() -> None:
    def spell(text: str) -> list[tuple[int, str]]:
        return [(ord(word[0]), word) for word in re.findall(r"\W*\w+|\W+", text)]

    root, entity, label = gbnf("ab", TASK.model_copy(update={"empty_answer": None}), spell).splitlines()[:3]
    assert root == "root ::= entity*"
    assert re.fullmatch(r'entity ::= <\[\d+\]>.* "\\": \\"" s0 label', entity)  # the mention may share its last token
    alternatives = label.removeprefix("label ::= ").split(" | ")
    assert len(alternatives) == len(TASK.codes)
    assert all(re.fullmatch(r'"\\", \\"entity_label"( <\[\d+\]>)+', text) for text in alternatives)
    half = gbnf("ab", TASK, lambda text: [(1, "\ufffd")])  # the token is a part of a character
    assert "<[" not in half and half.splitlines()[1] == 'entity ::= "{\\"entity_text\\": \\"" s0 label'
