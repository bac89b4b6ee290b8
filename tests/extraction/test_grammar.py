"""A grammar allows only answers of the format, and forced tokens are fed at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import Document, Entity, Label, ModelError, TaskSpec
from spantune.encoding import FORMATS, Encoder, PartialAnswer
from spantune.encoding.answers import jsonl, jsonl_seed
from spantune.encoding.answers.anchoring import Parsed, Resolved
from spantune.encoding.encoder import special_ids
from spantune.extraction import Guide
from spantune.extraction.grammar import Constraint
from spantune.models import vocabulary_size

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find.")
TEXT = "肺炎 a"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(MERGES)


@pytest.fixture(scope="module")
def constraint(tokenizer: Any) -> Constraint:
    return Constraint(tokenizer, len(tokenizer) + 7, tokenizer.eos_token_id)  # logits are wider than the vocabulary


def said(last: Entity) -> PartialAnswer:
    """Return an answer whose last stated entity is `last`."""
    return PartialAnswer("}", Parsed((Resolved(last, (0, 1), (0, 1)),), ()))


def allowed(constraint: Constraint, matcher: Any) -> set[int]:
    ids, inside = constraint.allowed([matcher])
    assert inside.all() and (ids[0, 1:] > ids[0, :-1]).all()
    return set(ids[0].tolist())


def write(constraint: Constraint, matcher: Any, tokenizer: Any, text: str) -> bool:
    """Whether the grammar allows `text`, token by token, from the matcher's state."""
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token not in allowed(constraint, matcher) or not matcher.consume_token(token):
            return False
    return True


def test_a_fresh_answer_begins_an_object_or_stops(constraint: Constraint, tokenizer: Any) -> None:
    matcher = constraint.matcher(jsonl.grammar(TEXT, TASK))
    found = allowed(constraint, matcher)
    assert found == {tokenizer.convert_tokens_to_ids("{"), tokenizer.eos_token_id}
    assert not matcher.is_stopped()


def test_forced_tokens_follow_a_choice_and_are_consumed(constraint: Constraint, tokenizer: Any) -> None:
    matcher = constraint.matcher(jsonl.grammar(TEXT, TASK))
    (brace,) = tokenizer("{", add_special_tokens=False)["input_ids"]
    forced = constraint.advance(matcher, brace)
    assert tokenizer.decode([brace, *forced]) == '{"entity_text": "'
    first_bytes = {tokenizer(sign)["input_ids"][0] for sign in TEXT if sign.strip()}
    assert allowed(constraint, matcher) == first_bytes


@pytest.mark.parametrize("mention", ["肺", "肺炎", "炎 a", "肺炎 a", "炎", "a"])
@pytest.mark.parametrize("label", ["dis", "sym"])
def test_substrings_with_a_label_can_be_written(
    constraint: Constraint, tokenizer: Any, mention: str, label: str
) -> None:
    matcher = constraint.matcher(jsonl.grammar(TEXT, TASK))
    assert write(constraint, matcher, tokenizer, f'{{"entity_text": "{mention}", "entity_label": "{label}"}}\n')
    assert tokenizer.eos_token_id in allowed(constraint, matcher)


@pytest.mark.parametrize(
    "answer",
    [
        '{"entity_text": "", "entity_label": "dis"}\n',  # empty mention
        '{"entity_text": "炎 ", "entity_label": "dis"}\n',  # white space at the end
        '{"entity_text": " a", "entity_label": "dis"}\n',
        '{"entity_text": " ", "entity_label": "dis"}\n',
        '{"entity_text": "肺a", "entity_label": "dis"}\n',  # not in the text
        '{"entity_text": "炎肺", "entity_label": "dis"}\n',
        '{"entity_text": "肺", "entity_label": "pro"}\n',  # unknown label
        '{"entity_text": "肺", "entity_label": "dis"} \n',
        '{"entity_label": "dis"}\n',
        " ",
        "<|im_end|>x",
    ],
)
def test_nothing_else_can_be_written(constraint: Constraint, tokenizer: Any, answer: str) -> None:
    assert not write(constraint, constraint.matcher(jsonl.grammar(TEXT, TASK)), tokenizer, answer)


def test_an_empty_text_has_nothing_to_write(constraint: Constraint, tokenizer: Any) -> None:
    matcher = constraint.matcher(jsonl.grammar("", TASK))
    assert allowed(constraint, matcher) == {tokenizer.eos_token_id}


def test_with_an_empty_answer_stopping_at_once_is_not_one(constraint: Constraint, tokenizer: Any) -> None:
    task = TASK.model_copy(update={"empty_answer": "none", "answer": "jsonl_seed"})
    matcher = constraint.matcher(jsonl_seed.grammar(TEXT, task))
    assert tokenizer.eos_token_id not in allowed(constraint, matcher)
    assert write(constraint, matcher, tokenizer, "none")
    assert allowed(constraint, matcher) == {tokenizer.eos_token_id} and matcher.is_stopped()


def test_rows_of_a_batch_get_their_own_masks(constraint: Constraint, tokenizer: Any) -> None:
    fresh, begun = (constraint.matcher(jsonl.grammar(text, TASK)) for text in (TEXT, "b"))
    forced = constraint.advance(begun, tokenizer("{")["input_ids"][0])
    assert (
        tokenizer.decode(forced) == '"entity_text": "b", "entity_label": "'
    )  # with one letter, only the label is a choice
    assert constraint.allowed([]).ids.shape == (0, 0)
    found = constraint.allowed([fresh, begun, constraint.matcher('start: ""')])
    assert found.ids.shape == found.inside.shape == (3, 2)
    rows = [tokenizer.decode(ids[inside]) for ids, inside in zip(*found, strict=True)]
    assert rows == ["{<|im_end|>", "ds", "<|im_end|>"]


@pytest.mark.parametrize("text", ["肺炎 a", "abcab", 'a "b" \\ c', "肺", "肺肺"])
def test_the_choices_of_a_gold_answer_are_those_that_decoding_would_have(
    constraint: Constraint, tokenizer: Any, text: str
) -> None:
    document = Document("a", text, (Entity(0, 1, "dis"), Entity(0, len(text), "sym")))
    answer = [*tokenizer(jsonl.render(document, TASK), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    coder = Encoder(tokenizer, TASK)
    choices = Guide(constraint, coder, text).choices(answer)
    assert len(choices) < len(answer) and {0, len(answer) - 1} <= set(choices)
    guide, index, seen = Guide(constraint, coder, text), 0, []
    while index < len(answer) - 1:
        assert set(choices[index]) == allowed(constraint, guide.matcher) and answer[index] in choices[index]
        seen.append(index)
        follow = guide.advance(answer[index])
        assert answer[index + 1 : index + 1 + len(follow)] == follow
        index += 1 + len(follow)
    assert list(choices) == [*seen, index]  # forced tokens are no choices, but the stop token is one
    assert set(choices[index]) == allowed(constraint, guide.matcher) and tokenizer.eos_token_id in choices[index]


@pytest.mark.no_cover
@given(
    text=st.text(st.sampled_from('ab肺"'), min_size=1, max_size=5),
    span=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    label=st.sampled_from(TASK.codes),
    answer=st.sampled_from(["jsonl", "jsonl_seed"]),
)
@settings(max_examples=40, deadline=None)
def test_after_an_entity_exactly_the_later_ones_can_be_stated(
    text: str, span: tuple[int, int], label: str, answer: str
) -> None:
    """Later in the order (start, end, label), so that an answer never goes back or states an entity twice."""
    tokenizer = byte_tokenizer()
    if answer == "jsonl_seed":
        text = text.replace('"', "c")  # `jsonl_seed` cannot state quotes reliably
    start = span[0] % len(text)
    end = start + 1 + span[1] % (len(text) - start)
    task = TASK.model_copy(update={"answer": answer})
    constraint, format = Constraint(tokenizer, len(tokenizer), tokenizer.eos_token_id), FORMATS[answer]
    last = Entity(start, end, label)
    spans = [(i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    for mention in {text[i:j] for i, j in spans}:
        for code in task.codes:
            later = [Entity(i, j, code) > last for i, j in spans if text[i:j] == mention]
            written = format.render(Document("x", mention, (Entity(0, len(mention), code),)), task)
            matcher = constraint.matcher(format.grammar(text, task, said(last)) or "")
            assert write(constraint, matcher, tokenizer, written) == any(later), (text, last, mention, code)


def test_a_guide_renews_its_grammar_when_an_entity_is_stated(constraint: Constraint, tokenizer: Any) -> None:
    guide = Guide(constraint, Encoder(tokenizer, TASK), "ab")
    line = '{"entity_text": "b", "entity_label": "sym"}\n'
    index, ids = 0, tokenizer(line, add_special_tokens=False)["input_ids"]
    while index < len(ids):
        index += 1 + len(guide.advance(ids[index]))
    assert guide.finished or allowed(constraint, guide.matcher) == {tokenizer.eos_token_id}  # nothing is later


def follow(guide: Guide, constraint: Constraint, tokenizer: Any, *entities: tuple[str, str]) -> list[bool]:
    """Write entities as long as the guide allows; return after each whether the answer is repeating itself."""
    found, due = [], list[int]()
    for mention, label in entities:
        line = f'{{"entity_text": "{mention}", "entity_label": "{label}"}}\n'
        for token in tokenizer(line, add_special_tokens=False)["input_ids"]:
            forced = bool(due)
            if token not in ([due.pop(0)] if forced else allowed(constraint, guide.matcher)):
                return found
            if not forced:
                due = guide.advance(token)
        found.append(guide.is_circling)
    return found


@pytest.mark.parametrize(
    ("entities", "ordered", "circles"),  # entities that an ordered guide allows; whether an unordered one finds a loop
    [
        ([("b", "dis"), ("a", "dis")], 1, False),  # the later one first
        ([("b", "sym"), ("b", "dis")], 1, False),  # the greater label first
        ([("b", "dis"), ("b", "dis")], 1, False),  # one repetition is no loop
        ([("a", "dis"), ("a", "dis"), ("b", "dis"), ("b", "dis")], 1, False),
        ([("b", "dis"), ("b", "dis"), ("b", "dis")], 1, True),
        ([("a", "dis"), ("b", "dis"), ("a", "dis"), ("b", "dis")], 2, True),
    ],
)
def test_only_an_ordered_guide_forbids_what_is_earlier_or_was_said(
    constraint: Constraint, tokenizer: Any, entities: list[tuple[str, str]], ordered: int, circles: bool
) -> None:
    coder = Encoder(tokenizer, TASK)
    free, strict = (Guide(constraint, coder, "a b", ordered=one) for one in (False, True))
    assert follow(free, constraint, tokenizer, *entities) == [*[False] * (len(entities) - 1), circles]
    assert follow(strict, constraint, tokenizer, *entities) == [False] * ordered


@pytest.mark.parametrize("answer", ['{"entity_text": "c"', '{"x": 1}', "b"])
def test_an_answer_that_is_no_answer_has_no_choices(constraint: Constraint, tokenizer: Any, answer: str) -> None:
    with pytest.raises(ModelError, match=r"the gold answer of 'b'.*train\.loss_on=answer"):
        Guide(constraint, Encoder(tokenizer, TASK), "b").choices(tokenizer(answer)["input_ids"])


def test_errors_of_the_grammar_are_ours(constraint: Constraint, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="the grammar cannot be followed"):
        constraint.matcher("start: nothing_of_the_kind")
    with pytest.raises(ModelError, match="the grammar cannot be followed"):
        constraint.advance(constraint.matcher(jsonl.grammar(TEXT, TASK)), tokenizer("x")["input_ids"][0])


def test_the_vocabulary_is_as_wide_as_the_logits() -> None:
    assert vocabulary_size(tiny_model("phi3", vocabulary=301)) == 301


@pytest.mark.no_cover
def test_masks_need_no_compiler() -> None:
    """llguidance's own torch kernel would be compiled, which takes seconds and a C++ compiler."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from helpers.fakes import byte_tokenizer\n"
        "from spantune.extraction.grammar import Constraint; t = byte_tokenizer()\n"
        "c = Constraint(t, len(t), t.eos_token_id)\n"
        "assert c.allowed([c.matcher('start: \"a\"')]).inside.sum() == 1\n"
        "assert 'torch._inductor.codecache' not in sys.modules"
    )
    here = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_grammar_after_a_very_long_mention_is_no_larger_than_the_text() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(400)) + "。"
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, TASK)
    constraint = Constraint(tokenizer, len(tokenizer), encoder.stop_id)
    label = TASK.codes[0]
    grammar = encoder.format.grammar(text, TASK, said(Entity(0, 390, label))) or ""
    assert len(grammar) < 20 * len(text)
    answers = [text[0:390], text[0:5], text[0:395], text[3:9]]
    taken = []
    for mention in answers:
        matcher = constraint.matcher(grammar)
        line = f'{{"entity_text": "{mention}", "entity_label": "{label}"}}\n'
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        taken.append(matcher.try_consume_tokens(ids) == len(ids))
    assert taken == [False, False, True, True]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_special_token_spelt_out_in_the_text_is_written_as_text(
    constraint: Constraint, tokenizer: Any, name: Any
) -> None:
    """After the second mention has begun, only the token's name can follow, as text and not as the special token."""
    encoder = Encoder(tokenizer, TASK.model_copy(update={"answer": name}), 512)
    text = ":<|endoftext|>"
    document = Document("1", text, tuple(Entity(0, len(text), label) for label in ("dis", "sym")))
    answer = encoder.answer_ids(document)
    assert special_ids(tokenizer).isdisjoint(answer[:-1])
    assert Guide(constraint, encoder, text).choices(answer)
