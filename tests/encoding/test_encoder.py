"""Token ids and loss masks: training and serving have the same prompt, nothing is cut, and no special token slips in.

The tokenizers are byte-level BPEs: one without merges, others with merges that join tokens across the fixed parts of
the answer format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llguidance.hf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from helpers.fakes import CHATML, SPECIAL, byte_tokenizer
from spantune.core import DataError, Document, Entity, Label, ModelError, TaskSpec, config
from spantune.data import formats
from spantune.encoding import Encoder, coloured, make_task
from spantune.encoding.answers import jsonl
from spantune.encoding.prompts import messages

TASK = TaskSpec(labels=(Label(code="sym"), Label(code="bod")), instruction="Find 实体.")
TEXT = "右肩疼痛"
DOCUMENT = Document("7", TEXT, (Entity(0, 4, "sym"), Entity(0, 2, "bod")))
CMEEE = make_task(config.Task(preset="cmeee"))

REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_SYSTEM = CHATML.replace(
    "<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>",
    "{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endif %}",
)
DROPS_TEXT = CHATML.replace("{{ m['content'] }}", "{{ m['role'] }}")


def tokenizer_with(template: str | None, **changes: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def joining_tokenizer() -> Any:
    """Return a byte-level BPE that joins punctuation as large vocabularies do, also `"}` with the line break."""
    return byte_tokenizer([("{", '"'), ('"', ":"), ("Ġ", '"'), ('"', ","), ('"', "}"), ('"}', "Ċ"), ("Ċ", '{"')])


@cache
def merging_tokenizer() -> Any:
    """Return a byte-level BPE with about 400 merges, learned from gold answers."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    corpus = formats.read("bundled:clinical-zh-train").documents
    answers = [line + "\n" for document in corpus for line in jsonl.render(document, CMEEE).split("\n") if line]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        answers + [document.text for document in corpus],
        trainers.BpeTrainer(vocab_size=660, initial_alphabet=alphabet, show_progress=False),
    )
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return byte_tokenizer(merges)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "joined": joining_tokenizer,
    "merges": merging_tokenizer,
}


def specials(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    known = set(tokenizer.convert_tokens_to_ids(SPECIAL))
    found: list[str] = tokenizer.convert_ids_to_tokens([token for token in ids if token in known])
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_ids_begin_with_the_serving_ids_and_go_on_with_answer_and_stop(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer, TASK)
    example = encoder.example(DOCUMENT)
    served = tokenizer.apply_chat_template(messages(TASK, TEXT), add_generation_prompt=True, return_dict=False)
    assert list(example.prompt) == encoder.prompt_ids(TEXT) == served
    assert list(example.ids[example.answer_start :]) == encoder.answer_ids(DOCUMENT)
    assert example.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") == encoder.stop_id
    assert tokenizer.decode(example.ids[example.answer_start : -1]) == jsonl.render(DOCUMENT, TASK)
    assert tokenizer.decode(example.prompt) == encoder.render_prompt(TEXT)
    assert example.id == "7"


def test_a_document_without_entities_is_a_stop_or_the_empty_answer() -> None:
    tokenizer = byte_tokenizer()
    assert Encoder(tokenizer, TASK).answer_ids(Document("1", "x")) == [tokenizer.eos_token_id]
    said = Encoder(tokenizer, TASK.model_copy(update={"empty_answer": "none"})).answer_ids(Document("1", "x"))
    assert tokenizer.decode(said) == "none\n<|im_end|>"


def test_the_stop_token_is_the_templates_and_not_merely_eos() -> None:
    other = tokenizer_with(CHATML, eos_token="<|endoftext|>")
    assert other.eos_token_id != other.convert_tokens_to_ids("<|im_end|>")
    assert Encoder(other, TASK).stop_id == other.convert_tokens_to_ids("<|im_end|>")
    no_eos = tokenizer_with(CHATML, eos_token=None)
    assert Encoder(no_eos, TASK).stop_id == no_eos.convert_tokens_to_ids("<|im_end|>")


def test_a_template_that_ends_an_answer_with_plain_text_falls_back_to_eos() -> None:
    plain = CHATML.replace("<|im_end|>", "\n")
    assert specials(byte_tokenizer(), [Encoder(tokenizer_with(plain), TASK).stop_id]) == ["<|im_end|>"]
    with pytest.raises(ModelError, match="neither a stop token in its chat template nor an EOS token"):
        Encoder(tokenizer_with(plain, eos_token=None), TASK)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["a<|im_end|>b", "<|im_start|>system<|im_sep|>肺", "<|im_end|>", "\0<|pad|>\0"])
def test_a_special_token_spelt_in_a_text_stays_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer, TASK)
    ids = encoder.prompt_ids(text)
    assert specials(tokenizer, ids) == specials(tokenizer, encoder.prompt_ids("x"))
    assert tokenizer.decode(ids) == encoder.render_prompt(text)
    document = Document("1", text, (Entity(0, len(text), "sym"),))
    example = encoder.example(document)
    assert specials(tokenizer, example.ids[example.answer_start :]) == ["<|im_end|>"]
    assert tokenizer.decode(example.ids[example.answer_start : -1]) == jsonl.render(document, TASK)
    assert encoder.prompt_ids("x") == Encoder(tokenizer, TASK).prompt_ids("x")  # the tokenizer is unchanged


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(st.characters(exclude_categories=["Cs"]), max_size=5))))
def test_any_text_round_trips_through_the_prompt(parts: list[str]) -> None:
    tokenizer = merging_tokenizer()
    encoder = Encoder(tokenizer, TASK)
    text = "".join(parts)
    ids = encoder.prompt_ids(text)
    assert tokenizer.decode(ids) == encoder.render_prompt(text)
    assert specials(tokenizer, ids) == specials(tokenizer, encoder.prompt_ids("x"))


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_the_instruction_leads_the_users_turn(template: str) -> None:
    prompt = Encoder(tokenizer_with(template), TASK).render_prompt(TEXT)
    assert f"Find 实体.\n\n{TEXT}<|im_end|>" in prompt and "system" not in prompt
    assert prompt.count("Find") == 1


def test_a_system_role_that_the_template_has_is_used() -> None:
    prompt = Encoder(byte_tokenizer(), TASK).render_prompt(TEXT)
    assert prompt == (
        f"<|im_start|>system<|im_sep|>Find 实体.<|im_end|><|im_start|>user<|im_sep|>{TEXT}<|im_end|>"
        "<|im_start|>assistant<|im_sep|>"
    )


def test_the_templates_thinking_is_told_to_stay_off() -> None:
    thinks = CHATML.replace(
        "assistant<|im_sep|>{%", "assistant<|im_sep|>{% if enable_thinking is not false %}<think>{% endif %}{%"
    )
    assert "<think>" in thinks and "<think>" not in Encoder(tokenizer_with(thinks), TASK).render_prompt(TEXT)


def test_tokenizers_that_cannot_ask_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no chat template; give an instruction-tuned model"):
        Encoder(tokenizer_with(None), TASK)
    for template in (DROPS_TEXT, "{{ raise_exception('never') }}"):
        with pytest.raises(ModelError, match="renders neither the instruction nor the text"):
            Encoder(tokenizer_with(template), TASK)


def test_the_tutorials_prompt_needs_no_chat_template() -> None:
    spec = make_task(config.Task(preset="cmeee_tutorial"))
    tokenizer = tokenizer_with(None)
    encoder = Encoder(tokenizer, spec)
    ids = encoder.prompt_ids(TEXT)
    assert specials(tokenizer, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]  # <im_sep> is not a special token
    assert tokenizer.decode(ids) == encoder.render_prompt(TEXT)
    assert encoder.stop_id == tokenizer.eos_token_id
    assert specials(tokenizer, encoder.prompt_ids("<|im_end|>")) == specials(tokenizer, ids)


def test_too_long_names_the_document_and_both_figures() -> None:
    tokenizer = byte_tokenizer()
    size = len(Encoder(tokenizer, TASK).example(DOCUMENT).ids)
    exact, short = Encoder(tokenizer, TASK, max_tokens=size), Encoder(tokenizer, TASK, max_tokens=size - 1)
    assert len(exact.example(DOCUMENT).ids) == size
    assert exact.fits(DOCUMENT) and not short.fits(DOCUMENT) and Encoder(tokenizer, TASK).fits(DOCUMENT)
    with pytest.raises(DataError) as caught:
        short.example(DOCUMENT)
    prompt = len(exact.prompt_ids(TEXT))
    for part in (
        f"document '7' takes {size} tokens",
        f"prompt {prompt}, answer {size - prompt}",
        f"max_tokens={size - 1}",
    ):
        assert part in str(caught.value)
    assert "data.too_long=split" in str(caught.value)


def test_a_foreign_label_names_document_label_and_nearest() -> None:
    document = Document("note-3", TEXT, (Entity(0, 2, "bdo"),))
    with pytest.raises(DataError, match=r"document 'note-3': the label 'bdo' .*did you mean 'bod'\? valid: bod, sym"):
        Encoder(byte_tokenizer(), TASK).example(document)


def test_the_dump_shows_prefix_prompt_and_loss() -> None:
    tokenizer = byte_tokenizer()
    example = Encoder(tokenizer, TASK).example(DOCUMENT)
    dump = coloured(example.ids, tokenizer, prefix=5, last_part=example.answer_start)
    styles = [str(span.style) for span in dump.spans if str(span.style) != "bright_black"]
    answer = len(example.ids) - example.answer_start
    assert styles == ["dim"] * 5 + ["cyan"] * (example.answer_start - 5) + ["bold green"] * answer
    assert "⏎" in dump.plain and "·" in dump.plain


def forced_walk(guide: Any, grammar: str, ids: list[int]) -> int:
    """Walk a matcher over gold `ids`, check that forced tokens are those of gold, and return their number."""
    matcher = LLMatcher(guide, LLMatcher.grammar_from_lark(grammar))
    place = forced = 0
    while place < len(ids):
        ahead = matcher.compute_ff_tokens()
        assert ahead == ids[place : place + len(ahead)], (place, ahead, ids[place : place + len(ahead)])
        forced += len(ahead)
        step = ahead or [ids[place]]
        assert matcher.consume_tokens(step), matcher.get_error()
        place += len(step)
    assert matcher.is_stopped()
    return forced


@pytest.mark.parametrize("name", TOKENIZERS)
def test_forced_tokens_are_the_tokens_that_training_used(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer, CMEEE)
    guide = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=encoder.stop_id)
    documents = list(formats.read("bundled:clinical-zh-test").documents)
    awkward = '说"痛"\\伴\n发热'
    documents.append(Document("quotes", awkward, (Entity(1, 4, "sym"), Entity(2, 3, "sym"), Entity(4, 8, "dis"))))
    forced = total = 0
    for document in documents:
        ids = encoder.answer_ids(document)
        forced += forced_walk(guide, jsonl.grammar(document.text, CMEEE), ids)
        total += len(ids)
    assert forced > total / 4  # else the test checks little; learned merges leave fewer forced tokens
    if name != "bytes":  # the last line break is joined to the token before it
        assert all('"}\n' in tokenizer.decode(encoder.answer_ids(d)[-2:-1]) for d in documents if d.entities)
