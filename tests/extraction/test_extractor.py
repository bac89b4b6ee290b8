"""The batched extractor with cache and forced tokens writes what a simple loop writes, and reports problems."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.extractors import (
    DOCUMENTS,
    LIMIT,
    TASK,
    TEXTS,
    Plain,
    count_forwards,
    encoder,
    extractor,
    lively_model,
    plain_loop,
    room_at_rest,
)
from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Extraction,
    ModelError,
    Problem,
    ProblemKind,
    RunError,
    Status,
    config,
)
from spantune.data import Cutter, merge
from spantune.encoding import Encoder, PartialAnswer
from spantune.extraction import Extractor, Guide, load_run, rates
from spantune.extraction.grammar import Constraint
from spantune.extraction.result import failure

LIVELY = [("phi3", 2), ("phi3", 5), ("gemma3_text", 1), ("gemma3_text", 3), ("qwen2", 5), ("qwen2", 2)]


def line_scores(coder: Encoder, plain: Plain) -> list[float]:
    """Return the probability of each line of an answer: the product over the chosen tokens that begin in it."""
    alphabet = byte_alphabet()
    sums: list[float] = []
    line = 0
    for token, logprob in zip(plain.ids, plain.chosen, strict=True):
        sums += [0.0] * (line + 1 - len(sums))
        sums[line] += logprob or 0.0
        line += sum(alphabet[sign] == 10 for sign in coder.tokenizer.convert_ids_to_tokens(token))
    return [math.exp(value) for value in sums]


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's byte-level alphabet: printable bytes are themselves, the others are characters from U+0100 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [value for value in range(256) if value not in kept]
    return {chr(value): value for value in kept} | {chr(256 + index): value for index, value in enumerate(rest)}


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("family", "seed", "on_choices"), [(*model, place % 2 > 0) for place, model in enumerate(LIVELY)]
)
def test_output_equals_a_plain_loop_token_for_token(family: str, seed: int, on_choices: bool) -> None:
    model, coder = lively_model(family, seed), encoder()
    wanted = [plain_loop(model, coder, text, on_choices=on_choices) for text in TEXTS]
    assert sum(len(plain.ids) for plain in wanted) > 200 and wanted[3] == Plain([], [], "stopped")
    for batch_size in (1, 3, 8):
        tool = extractor(model, on_choices=on_choices, batch_size=batch_size)
        for document, plain, got in zip(DOCUMENTS, wanted, tool.stream(DOCUMENTS), strict=True):
            assert (got.document.id, got.status) == (document.id, plain.status)
            assert got.answer == coder.tokenizer.decode(plain.ids)
            check_scores(coder, plain, got)
        assert tool.effort.tokens == sum(len(plain.ids) for plain in wanted)
        assert tool.effort.forced == sum(plain.chosen.count(None) for plain in wanted)
        longest = max(len(plain.chosen) - plain.chosen.count(None) for plain in wanted)
        assert longest <= tool.effort.passes < tool.effort.tokens
    assert tool.effort.passes <= longest + 2  # one batch: the passes of the longest answer, and one for the prefix


@pytest.mark.no_cover
@pytest.mark.parametrize("on_choices", [False, True])
@pytest.mark.parametrize("answer", ["jsonl", "grouped", "inline", "jsonl_seed"])
def test_a_flat_task_has_no_overlaps_and_no_mention_has_white_space_at_its_ends(answer: str, on_choices: bool) -> None:
    found = 0
    for nested in (True, False):
        task = TASK.model_copy(update={"answer": answer, "nested": nested})
        tool = extractor(lively_model("phi3", 2), task, on_choices=on_choices, batch_size=4, max_new_tokens=90)
        for extraction in tool.stream(DOCUMENTS):
            document = extraction.document
            surfaces = [document.surface(entity) for entity in document.entities]
            assert surfaces == [surface.strip() for surface in surfaces]
            assert nested or all(first.end <= second.start for first, second in pairwise(document.entities))
            found += len(surfaces)
    assert found > 3


@pytest.mark.parametrize(
    ("family", "seed", "answer", "on_choices"),
    [  # every format in both ways, and every family with every format
        (family, seed, answer, (row + column) % 2 > 0)
        for row, (family, seed) in enumerate([("phi3", 2), ("gemma3_text", 3), ("qwen2", 5)])
        for column, answer in enumerate(["grouped", "inline", "jsonl_seed"])
    ],
)
def test_every_format_equals_a_plain_loop(family: str, seed: int, answer: str, on_choices: bool) -> None:
    task = TASK.model_copy(update={"answer": answer})
    model, coder = lively_model(family, seed), encoder(task)
    wanted = [plain_loop(model, coder, text, 60, on_choices=on_choices) for text in TEXTS]
    tool = extractor(model, task, on_choices=on_choices, batch_size=3, max_new_tokens=60)
    for plain, got in zip(wanted, tool.stream(DOCUMENTS), strict=True):
        assert (got.answer, got.status) == (coder.tokenizer.decode(plain.ids), plain.status)
    assert tool.effort.tokens == sum(len(plain.ids) for plain in wanted) > 40


def test_scores_among_what_is_allowed_are_those_of_the_masked_distribution() -> None:
    model, coder = lively_model("phi3", 2), encoder()
    tool, other = (extractor(model, on_choices=on_choices, batch_size=3) for on_choices in (True, False))
    compared = 0
    for document, got, over_all in zip(DOCUMENTS, tool.stream(DOCUMENTS), other.stream(DOCUMENTS), strict=True):
        check_scores(coder, plain_loop(model, coder, document.text, on_choices=True), got)
        if got.answer == over_all.answer:  # both are in order by chance
            pairs = list(zip(got.document.entities, over_all.document.entities, strict=True))
            assert all(one == two and (one.score or 0.0) > (two.score or 0.0) for one, two in pairs)
            compared += len(pairs)
    assert compared > 3


def check_scores(coder: Encoder, plain: Plain, got: Extraction) -> None:
    answer = coder.tokenizer.decode(plain.ids)
    parsed, scores = coder.format.parse(answer, got.document.text, coder.task), line_scores(coder, plain)
    expected = {item.entity: scores[answer.count("\n", 0, item.span[0])] for item in parsed.resolved}
    assert set(got.document.entities) == set(expected)
    for entity in got.document.entities:
        assert entity.score is not None and 0 <= entity.score <= 1
        assert entity.score == pytest.approx(expected[entity], rel=1e-3)


@pytest.mark.parametrize("on_choices", [False, True])
def test_the_random_models_end_in_every_way(on_choices: bool) -> None:
    """A check of the tests above: some answers have several lines, some are too long, and some repeat themselves."""
    models = [lively_model("phi3", seed) for seed in (2, 5)]
    found = [item for model in models for item in extractor(model, on_choices=on_choices).stream(DOCUMENTS)]
    assert {item.status for item in found} == {"stopped", "length"} | (set() if on_choices else {"repeated"})
    assert any(item.status == "stopped" and len(item.document.entities) > 1 for item in found)


@pytest.mark.no_cover
def test_forcing_says_what_masking_alone_would_say() -> None:
    """With one token per byte, a forced token is the only allowed one, so a loop without forcing writes the same."""
    model = lively_model("phi3", 2)
    coder = Encoder(byte_tokenizer(), TASK)
    tool = Extractor(model, coder, config.Extract(max_new_tokens=LIMIT, batch_size=3), on_choices=True)
    constraint = Constraint(coder.tokenizer, 280, coder.stop_id)
    lengths = []
    for got, text in zip(tool.stream(DOCUMENTS), TEXTS, strict=True):
        ids = coder.prompt_ids(text)
        start = len(ids)
        answer = coder.tokenizer(got.answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        matcher = constraint.matcher(coder.format.grammar(text, TASK, None))
        while len(ids) - start < len(answer):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
            (allowed,) = constraint.allowed([matcher]).ids
            ids.append(int(allowed[logits[0, allowed].argmax()]))
            matcher.consume_token(ids[-1])
            if coder.tokenizer.decode(ids[-1:]) == "\n":
                written = coder.tokenizer.decode(ids[start:])
                said = PartialAnswer(written, coder.format.parse(written, text, TASK))
                matcher = constraint.matcher(coder.format.grammar(text, TASK, said) or "")
        assert ids[start:] == answer
        lengths.append(len(answer))
    assert max(lengths) > 60


messy = st.text(
    st.sampled_from('ab肺"\\\n\t{}:, é👩‍⚕️\u2028\u2029\x85\x1c\r\x7f\u0301') | st.characters(exclude_categories=("Cs",)),
    max_size=12,
)
texts = st.builds(
    lambda left, middle, right: left + middle + right, messy, st.sampled_from(["", "<|im_end|>", '"}\n']), messy
)


@pytest.fixture(scope="module")
def tools() -> list[Extractor]:
    task = TASK.model_copy(update={"answer": "jsonl_seed", "empty_answer": "none"})
    model = lively_model("phi3", 2)
    settings = {"max_new_tokens": 80, "batch_size": 2}
    return [extractor(model, on_choices=True, **settings), extractor(model, task, **settings)]


@pytest.mark.no_cover
@given(batch=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_a_substring_at_its_offsets_with_a_label_of_the_task(
    tools: list[Extractor], batch: list[str]
) -> None:
    documents = [Document(str(number), text) for number, text in enumerate(batch)]
    for got, document in zip(tools[0].stream(documents), documents, strict=True):
        assert got.document.text == document.text and got.document.id == document.id
        assert {problem.kind for problem in got.problems} <= {"truncated"}
        written = [json.loads(line) for line in got.answer.split("\n")[:-1]]
        said = [(line["entity_text"], line["entity_label"]) for line in written]
        # the entities of a document are sorted, so the answer is in the order of the text, without repetitions
        assert said == [(got.document.surface(entity), entity.label) for entity in got.document.entities]
        assert len(set(got.document.entities)) == len(said)
        assert all(surface and surface in document.text and label in TASK.codes for surface, label in said)
    for got, document in zip(tools[1].stream(documents), documents, strict=True):
        for entity in got.document.entities:
            assert got.document.surface(entity) in document.text and entity.label in TASK.codes
        assert all(problem.kind != "ungrounded" for problem in got.problems) or '"' in document.text


def test_answers_that_run_out_are_reported() -> None:
    models = [lively_model("phi3", seed) for seed in (2, 5)]
    found = [item for model in models for item in extractor(model, on_choices=True).stream(DOCUMENTS)]
    cut = [item for item in found if item.status == "length"]
    begun = [item for item in cut if not item.answer.endswith("\n")]
    assert begun and all(item.problems[-1].kind == "truncated" for item in begun)
    assert all(item.answer.endswith(item.problems[-1].found) for item in begun)
    shares = rates(found)
    assert shares["non_stop_rate"] == len(cut) / len(found)
    assert shares["invalid_rate"] == shares["ungrounded_rate"] == 0


def parrot(coder: Encoder, text: str, answer: str, *, stops: bool = False) -> Any:
    """Return a model that always writes `answer`; `stops` tells whether it then stops."""
    model = lively_model("phi3", 2)
    prompt = coder.prompt_ids(text)
    written = coder.tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + written + [coder.stop_id] * stops])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.no_cover
@pytest.mark.parametrize("grounded", [False, True])
def test_an_answer_that_goes_round_in_circles_is_stopped_and_reported(grounded: bool) -> None:
    """A model trained on choices is held to the order, so it continues with later entities and is not stopped."""
    first, again = (f'{{"entity_text": "{mention}", "entity_label": "dis"}}\n' for mention in ("c", "ab"))
    model = parrot(encoder(), "abc", first + again * 4)
    (found,) = extractor(model, grounded=grounded).stream([Document("a", "abc")])
    assert found.answer == first + again * 3 and found.status == "repeated"
    assert [(problem.kind, problem.found) for problem in found.problems] == [("repeated", "ab")] * 2
    assert found.document.entities == (Entity(0, 2, "dis"), Entity(2, 3, "dis"))
    assert rates([found])["non_stop_rate"] == 1
    assert all((entity.score or 0.0) > 0.5 for entity in found.document.entities)
    (ordered,) = extractor(model, on_choices=True).stream([Document("a", "abc")])
    assert ordered.answer.startswith(first) and '"ab"' not in ordered.answer and ordered.status == "stopped"


@pytest.mark.parametrize("grounded", [False, True])
def test_a_slip_is_reported_and_what_comes_after_it_is_found(grounded: bool) -> None:
    lines = [f'{{"entity_text": "{mention}", "entity_label": "dis"}}\n' for mention in ("ab", "ab", "c")]
    model = parrot(encoder(), "abc", "".join(lines), stops=True)
    (found,) = extractor(model, grounded=grounded).stream([Document("a", "abc")])
    assert (found.answer, found.status) == ("".join(lines), "stopped") and found.has_problem
    assert [(problem.kind, problem.found) for problem in found.problems] == [("repeated", "ab")]
    assert found.document.entities == (Entity(0, 2, "dis"), Entity(2, 3, "dis"))


def test_circles_at_the_end_of_the_answer_are_some() -> None:
    """If one token ends the last mention and its list, the end of the answer is forced after it."""
    coder = Encoder(byte_tokenizer([*MERGES, ('"', "]")]), TASK.model_copy(update={"answer": "grouped"}))
    answer = '{"dis": ["ab"], "sym": ["c", "c", "c"]}\n'
    model = parrot(coder, "abc", answer)
    (found,) = Extractor(model, coder, config.Extract(max_new_tokens=LIMIT)).stream([Document("a", "abc")])
    assert (found.answer, found.status) == (answer, "repeated")
    assert found.document.entities == (Entity(0, 2, "dis"), Entity(2, 3, "sym"))


@pytest.mark.no_cover
@pytest.mark.parametrize("on_choices", [True, False])
def test_an_answer_that_ends_at_the_limit_is_whole(on_choices: bool) -> None:
    coder = Encoder(byte_tokenizer([*MERGES, ('"', "]")]), TASK.model_copy(update={"answer": "grouped"}))
    answer = '{"dis": ["ab"], "sym": ["c"]}\n'
    limit = len(coder.tokenizer.encode(answer, add_special_tokens=False))
    settings = config.Extract(max_new_tokens=limit)
    for _ in range(5):  # a grammar that is still being made would be ready in some of these runs
        tool = Extractor(parrot(coder, "abc", answer), coder, settings, on_choices=on_choices)
        (found,) = tool.stream([Document("a", "abc")])
        assert (found.answer, found.status, found.problems) == (answer, "stopped", ())


def test_order_is_kept_and_no_more_is_read_than_is_needed() -> None:
    model = lively_model("phi3", 2)
    documents = [Document(f"n{number}", TEXTS[number % 8] + str(number)) for number in range(11)]
    whole = list(extractor(model, max_new_tokens=40).stream(documents))
    taken: list[str] = []

    def source() -> Any:
        for document in documents:
            taken.append(document.id)
            yield document

    stream = extractor(model, max_new_tokens=40, batch_size=2).stream(source())
    first = next(stream)
    assert 3 <= len(taken) < 11
    again = [first, *stream]
    assert [item.document.id for item in again] == [document.id for document in documents] == taken
    assert [item.answer for item in again] == [item.answer for item in whole]


def test_finished_rows_give_their_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = extractor(lively_model("phi3", 2), max_new_tokens=40, batch_size=2)
    tool.model.requires_grad_(False)  # so that the cache is kept
    made = count_forwards(monkeypatch)
    list(tool.stream(DOCUMENTS))
    (forward,) = made
    assert forward.cache.room == room_at_rest(forward)
    before = tool.effort.passes
    assert list(tool.stream([])) == [] and tool.effort.passes == before
    tool.extract(["ab"])
    assert made == [forward]


def test_no_cache_is_kept_of_weights_that_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    tool, made = extractor(lively_model("phi3", 2), max_new_tokens=40), count_forwards(monkeypatch)
    before = tool.extract(TEXTS)
    with torch.no_grad():
        tool.model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    after = extractor(tool.model, max_new_tokens=40).extract(TEXTS)
    assert tool.extract(TEXTS) == after != before and len(made) == 3


def test_bare_strings_are_numbered_and_gold_is_not_passed_on() -> None:
    tool = extractor(lively_model("phi3", 7))  # this model writes no entity
    gold = Document("g", "肺炎", (Entity(0, 2, "dis"),), {"group": "x"})
    assert tool.extract(["a", "b"]) == [Document("0", "a"), Document("1", "b")]
    (found,) = tool.extract([gold])
    assert found == Document("g", "肺炎", (), {"group": "x"})


def test_a_long_text_is_taken_in_chunks_with_offsets_of_the_whole() -> None:
    text = "".join(f"第{number}句说肺炎 ab。" for number in range(12))
    model, short = lively_model("phi3", 2), 100
    settings = {"max_new_tokens": 60, "overlap": 4}
    tool = extractor(model, max_tokens=short, **settings)
    (got,) = tool.stream([Document("long", text, meta={"k": 1})])
    coder = encoder()
    chunks = Cutter(lambda part: len(coder.prompt_ids(part)) <= short, overlap=4).cut(Document("long", text))
    assert len(chunks) > 3 and any(one.end > other.start for one, other in pairwise(chunks))
    alone = list(extractor(model, **settings).stream(chunk.document for chunk in chunks))
    found = [replace(chunk, document=one.document) for chunk, one in zip(chunks, alone, strict=True)]
    wanted = merge(Document("long", text, meta={"k": 1}), found)
    assert len(wanted.document.entities) > 3
    assert (got.document, got.contradicted) == (wanted.document, wanted.suppressed)
    assert got.answer == "".join(one.answer for one in alone)
    assert got.problems == tuple(problem for one in alone for problem in one.problems)
    assert got.status == next((one.status for one in alone if one.status != "stopped"), "stopped")


def test_a_limit_is_an_error_or_an_extraction_that_says_so() -> None:
    model = lively_model("phi3", 2)
    tool = extractor(model, max_characters=20, max_new_tokens=20)
    documents = [Document("a", "肺炎"), Document("b", "x" * 21), Document("c", ""), Document("d", "y" * 22)]
    with pytest.raises(DataError, match=r"'b' has 21 characters, over extract\.max_characters=20"):
        list(tool.stream(documents))
    found = list(tool.stream(documents, strict=False))
    assert [item.document.id for item in found] == list("abcd")
    assert [item.status == "refused" for item in found] == [False, True, False, True]
    assert found[1].document == documents[1] and found[1].has_problem and found[1].problems[0].kind == "refused"
    assert "'b' has 21 characters" in found[1].problems[0].found
    with pytest.raises(DataError, match=r"no room.*extract\.max_new_tokens=2048.*window 2048"):
        list(extractor(model, max_new_tokens=2048).stream([Document("a", "x")], strict=False))


def test_what_is_an_extraction_already_keeps_its_place() -> None:
    lost = [
        failure(Document(f"lost-{n}", ""), Status.UNREADABLE, Problem(ProblemKind.UNREADABLE, "no text"))
        for n in range(3)
    ]
    items = [lost[0], Document("a", "肺"), lost[1], lost[2], Document("b", "ab")]
    found = list(extractor(lively_model("phi3", 2), max_new_tokens=20).stream(items))
    assert [item.document.id for item in found] == ["lost-0", "a", "lost-1", "lost-2", "b"]
    assert found[0] is lost[0] and list(extractor(lively_model("phi3", 2)).stream(lost)) == lost


def test_free_mode_is_plain_greedy_decoding() -> None:
    model, coder = lively_model("phi3", 5), encoder()
    tool = extractor(model, grounded=False, max_new_tokens=30, batch_size=3)
    for got, text in zip(tool.stream(DOCUMENTS), TEXTS, strict=True):
        ids = coder.prompt_ids(text)
        start = len(ids)
        while len(ids) - start < 30:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == coder.stop_id:
                break
            ids.append(token)
        assert got.answer == coder.tokenizer.decode(ids[start:])
        assert got.status == ("length" if len(ids) - start == 30 else "stopped")
        if got.answer.strip():  # noise, which is reported as a problem
            assert got.problems and not got.document.entities
    assert tool.effort.forced == 0


def test_no_documents_give_no_extractions() -> None:
    assert list(extractor(lively_model("phi3", 2)).stream([])) == []


def test_spaces_before_punctuation_are_not_cleaned_away() -> None:
    """Some tokenizers remove them when they decode, and the mention would no longer be in its text."""
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert tokenizer.decode(tokenizer("a , b")["input_ids"]) == "a, b"
    tool = Extractor(lively_model("phi3", 5), Encoder(tokenizer, TASK), config.Extract(max_new_tokens=LIMIT))
    plain = extractor(lively_model("phi3", 5))
    texts = [f"{left} {sign}" for left in ("a", "肺", "", "x ") for sign in ",.!?"]
    found = plain.extract(texts)
    surfaces = {document.surface(entity) for document in found for entity in document.entities}
    assert any(surface.endswith((" ,", " .", " !", " ?")) for surface in surfaces)
    assert tool.extract(texts) == found


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, trained: Any) -> None:
    with pytest.raises(RunError, match=r"no config\.yaml here"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_bytes((trained.folder / "config.yaml").read_bytes())
    with pytest.raises(RunError, match="no adapter here yet"):
        load_run(tmp_path)


def test_a_damaged_recipe_is_a_damaged_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {source: [", encoding="utf-8")
    with pytest.raises(RunError, match=r"config\.yaml"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("model: 3", encoding="utf-8")
    with pytest.raises(RunError, match=r"config\.yaml"):
        load_run(tmp_path)


def test_a_run_extracts_as_it_did_when_it_was_measured(trained: Any) -> None:
    gold = list(trained.after.gold)
    again = list(load_run(trained.folder).stream(gold))
    assert [item.answer for item in again] == [item.answer for item in trained.after.extractions]
    assert any(item.document.entities for item in again)


def test_a_text_whose_grammar_fails_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = tiny_model("phi3"), Encoder(byte_tokenizer(), TASK)
    extractor = Extractor(model, encoder, config.Extract(batch_size=2, max_new_tokens=40))
    advance = Guide.advance

    def poisoned(guide: Guide, token: int) -> list[int]:
        if "poison" in guide._text:
            raise ModelError("too many expressions constructed")
        return advance(guide, token)

    def never_stops(constraint: Constraint, matchers: Any) -> Any:
        found = allowed(constraint, matchers)
        found.inside[(found.ids == encoder.stop_id) & (found.inside.sum(1) > 1)[:, None]] = False
        return found

    allowed = Constraint.allowed
    monkeypatch.setattr(Guide, "advance", poisoned)
    monkeypatch.setattr(Constraint, "allowed", never_stops)
    bad, good = extractor.stream([Document("bad", "poison here"), Document("good", "all is well")])
    assert bad.status == "failed" and [problem.kind for problem in bad.problems] == ["grammar"]
    assert good.status != "failed" and good.answer


def test_a_model_trained_on_choices_is_never_decoded_without_the_grammar() -> None:
    free = config.Extract(grounded=False)
    with pytest.raises(ConfigError, match=r"extract\.grounded is false \(--free\), and train\.loss_on=choices"):
        Extractor(tiny_model("phi3", vocabulary=280), encoder(), free, on_choices=True)
    Extractor(tiny_model("phi3", vocabulary=280), encoder(), free)
