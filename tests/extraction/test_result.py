"""Documents are cut into texts for an engine and its answers are joined again: in order, streamed, without loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from helpers.fakes import MERGES, byte_tokenizer
from spantune.core import (
    DataError,
    Document,
    Entity,
    Extraction,
    Label,
    Problem,
    ProblemKind,
    Status,
    TaskSpec,
    config,
    to_document,
)
from spantune.data import Cutter
from spantune.encoding import Encoder, SpanEncoder, TextEncoder
from spantune.extraction import Evaluation
from spantune.extraction.chunked import by_chunks, cutter
from spantune.extraction.result import Written, failure, read_answer, without_overlaps
from spantune.metrics import score

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find entities.")


def letters(texts: Iterator[Document]) -> Iterator[Extraction]:
    """An engine that marks every "a" as an entity, and whose answer is truncated for a text with "z"."""
    for text in texts:
        found = [Entity(n, n + 1, "dis", 0.5) for n, character in enumerate(text.text) if character == "a"]
        bad = "z" in text.text
        problems = (Problem(ProblemKind.TRUNCATED, "z"),) if bad else ()
        yield Extraction(text.with_entities(found), text.text, Status.LENGTH if bad else Status.STOPPED, problems)


def test_the_bounds_of_an_evaluation_are_none_where_documents_are_few() -> None:
    gold = [Document(str(index), "ab", (Entity(0, 1, "dis"),)) for index in range(10)]
    for count, bounds in ((10, (1.0, 1.0)), (9, (None, None)), (1, (None, None))):
        extractions = tuple(map(Extraction, gold[:count]))
        scores = score(gold[:count], gold[:count], ("dis", "sym"))
        values = Evaluation(tuple(gold[:count]), extractions, scores, 1.0).values()
        assert (values["f1_low"], values["f1_high"]) == bounds and values["f1"] == 1.0
        assert ("f1_low/dis" in values, "f1_low/sym" in values) == (bounds[0] is not None, False)


def run(*documents: Document | Extraction, size: int = 6, limit: int = 40, strict: bool = True) -> list[Extraction]:
    plain = Cutter(lambda text: len(text) <= size, overlap=1, limit=limit)
    return list(by_chunks(documents, plain, letters, strict=strict))


def test_long_and_short_documents_come_back_whole_and_in_order() -> None:
    long = Document("long", "a b a. a b a. a b z. a b a. ", (Entity(0, 1, "gold"),), {"k": 1})
    found = run(Document("one", "ba"), long, Document("two", ""))
    assert [item.document.id for item in found] == ["one", "long", "two"]
    assert found[0] == Extraction(Document("one", "ba", (Entity(1, 2, "dis"),)), "ba", Status.STOPPED, ())
    assert found[1].document.text == long.text and found[1].document.meta == {"k": 1}
    places = [n for n, character in enumerate(long.text) if character == "a"]
    assert [(e.start, e.end, e.label) for e in found[1].document.entities] == [(n, n + 1, "dis") for n in places]
    assert found[1].status == "length" and found[1].problems == (Problem(ProblemKind.TRUNCATED, "z"),)
    assert found[2].document == Document("two", "")


def test_what_cannot_be_taken_keeps_its_place_or_stops_all() -> None:
    lost = failure(Document("lost", "gone"), Status.UNREADABLE, Problem(ProblemKind.UNREADABLE, "why"))
    items = [lost, Document("a", "a"), Document("long", "x" * 41), lost, lost, Document("b", "a b a. a b a."), lost]
    found = run(*items, strict=False)
    assert [item.document.id for item in found] == ["lost", "a", "long", "lost", "lost", "b", "lost"]
    assert found[2].status == "refused" and "41 characters" in found[2].problems[0].found and found[2].has_problem
    assert not found[1].has_problem and found[0] is lost
    with pytest.raises(DataError, match="'long' has 41 characters"):
        run(*items)
    assert run() == [] and run(lost) == [lost]


def test_nothing_is_held_beyond_what_the_engine_reads_ahead() -> None:
    taken = []

    def source() -> Iterator[Document]:
        for number in range(1000):
            taken.append(number)
            yield Document(str(number), "a b a. a b a.")

    stream = by_chunks(source(), Cutter(lambda text: len(text) <= 6, overlap=0), letters, strict=True)
    for number, _ in zip(range(10), stream, strict=False):
        assert len(taken) == number + 1


def test_what_went_wrong_is_written_into_meta() -> None:
    (good,) = run(Document("a", "a", meta={"k": 1}))
    (bad,) = run(Document("z", "z", meta={"k": 1}))
    assert to_document(good).meta == {"k": 1}
    problems = [{"kind": "truncated", "found": "z"}]
    assert to_document(bad).meta == {"k": 1, "status": "length", "problems": problems}
    again = to_document(bad)
    assert to_document(run(again)[0]).meta == again.meta
    corrected = Document("z", "a", meta=again.meta)
    assert to_document(run(corrected)[0]).meta == {"k": 1}
    for own in (
        {"status": "published"},
        {"status": "stopped", "problems": "none"},
        {"status": "length", "problems": [1]},
        {"status": "stopped", "problems": []},
    ):
        assert to_document(run(Document("a", "a", meta=own))[0]).meta == own
        written = to_document(run(Document("z", "z", meta=own))[0]).meta
        assert written == {f"own_{name}": value for name, value in own.items()} | {
            "status": "length",
            "problems": problems,
        }


def test_an_entity_in_two_chunks_has_the_score_of_the_surer_one() -> None:
    def engine(texts: Iterator[Document]) -> Iterator[Extraction]:
        for number, text in enumerate(texts):  # "b" is in both chunks; the second has a lower score
            place = text.text.index("b")
            yield Extraction(text.with_entities([Entity(place, place + 1, "x", (0.9, 0.1)[number])]))

    (joined,) = by_chunks([Document("d", "a b c")], Cutter(lambda text: len(text) <= 4, overlap=2), engine, strict=True)
    assert [(e.start, e.score) for e in joined.document.entities] == [(2, 0.9)]


def test_what_a_threshold_dropped_in_a_chunk_is_kept_with_the_whole_text() -> None:
    def engine(texts: Iterator[Document]) -> Iterator[Extraction]:
        for text in texts:
            place = text.text.index("b")
            yield Extraction(text, below_threshold=(Entity(place, place + 1, "x", 0.1),))

    (joined,) = by_chunks([Document("d", "a b c")], Cutter(lambda text: len(text) <= 4, overlap=2), engine, strict=True)
    assert joined.below_threshold == (Entity(2, 3, "x", 0.1),)


def sizes(
    settings: config.Extract, max_tokens: int | None, window: int | None, view: Literal["whole", "twice"] | None = None
) -> list[int]:
    """Return the tokens that each chunk of a long text adds to the prompt; with a `view`, for reading spans."""
    encoder: TextEncoder = Encoder(byte_tokenizer(MERGES), TASK, max_tokens)
    if view is not None:
        encoder = SpanEncoder(byte_tokenizer(MERGES), TASK, config.Spans(longest=32, view=view), max_tokens)
    instruction = len(encoder.prompt_ids(""))
    chunks = cutter(encoder, settings, window).cut(Document("d", "肺炎ab。" * 100))
    return [len(encoder.prompt_ids(chunk.document.text)) - instruction for chunk in chunks]


def test_as_much_is_taken_at_once_as_settings_training_and_window_allow() -> None:
    plain = config.Extract(max_new_tokens=100, overlap=0)
    assert len(sizes(plain, None, None)) == 1
    instruction = len(Encoder(byte_tokenizer(MERGES), TASK).prompt_ids(""))
    for settings, max_tokens, window in (
        (plain, instruction + 90, None),
        (plain, instruction + 500, instruction + 190),
        (plain.model_copy(update={"chunk_tokens": 90}), instruction + 500, instruction + 500),
    ):
        found = sizes(settings, max_tokens, window)
        assert len(found) > 10 and 80 < max(found) <= 90


def test_a_chunk_has_as_many_tokens_of_a_text_that_is_read_twice() -> None:
    settings = config.Extract(overlap=0, chunk_tokens=90)
    assert [size // 2 for size in sizes(settings, None, None, "twice")] == sizes(settings, None, None, "whole")


def test_a_window_without_room_is_an_error_with_the_figures() -> None:
    with pytest.raises(
        DataError, match=r"no room .* the \d+ tokens before it and extract\.max_new_tokens=500: .* 520;"
    ):
        sizes(config.Extract(max_new_tokens=500), None, 520)


def test_of_overlapping_entities_the_higher_score_is_kept_and_the_other_reported() -> None:
    low, high, apart = Entity(0, 3, "dis", 0.2), Entity(2, 4, "sym", 0.9), Entity(4, 5, "dis", 0.1)
    assert without_overlaps([low, high, apart]) == ([high, apart], [low])
    same, other = Entity(0, 2, "sym", 0.5), Entity(0, 2, "dis", 0.5)
    assert without_overlaps([same, other]) == ([other], [same])
    sure = Entity(1, 2, "dis")  # without a score, which counts as certain
    assert without_overlaps([high, low, sure]) == ([sure, high], [low])
    assert without_overlaps([]) == ([], [])


def test_an_answer_for_a_flat_task_is_read_without_overlaps() -> None:
    lines = ['{"entity_text": "肺炎", "entity_label": "dis"}\n', '{"entity_text": "肺", "entity_label": "sym"}\n']
    for nested, entities in ((True, [Entity(0, 1, "sym"), Entity(0, 2, "dis")]), (False, [Entity(0, 1, "sym")])):
        coder = Encoder(byte_tokenizer(MERGES), TASK.model_copy(update={"nested": nested}))
        ids = [coder.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        logprobs = [*[-0.5] * len(ids[0]), *[-0.01] * len(ids[1])]  # the second one is more certain
        written = Written("".join(lines), Status.STOPPED, [*ids[0], *ids[1]], logprobs)
        extraction = read_answer(Document("d", "肺炎"), written, coder)
        assert list(extraction.document.entities) == entities
        assert [problem.found for problem in extraction.problems] == ([] if nested else ["肺炎"])
        assert all(problem.kind is ProblemKind.OVERLAPPING for problem in extraction.problems)
