"""Continuous batching: rows join, wait, are preempted and leave, and write what each would write alone."""

from __future__ import annotations

import pytest

from helpers.extractors import DOCUMENTS, LIMIT, TASK, TEXTS, lively_model, plain_loop, room_at_rest
from helpers.fakes import MERGES, byte_tokenizer
from spantune.core import Document, TaskSpec
from spantune.encoding import Encoder
from spantune.extraction import Decoder, Forward, Row, model_runner
from spantune.extraction.choosing import Effort, Rules
from spantune.extraction.fixed_passes import Shape
from spantune.extraction.grammar import Constraint

MODEL = lively_model("phi3", 2)


class Tool:
    """A decoder with its own Forward."""

    def __init__(self, shape: Shape, task: TaskSpec = TASK, grounded: bool = True, limit: int = LIMIT):
        self.encoder, self.forward, self.effort = Encoder(byte_tokenizer(MERGES), task), Forward(MODEL, shape), Effort()
        constraint = Constraint(self.encoder.tokenizer, 280, self.encoder.stop_id) if grounded else None
        self.decoder = Decoder(MODEL, self.encoder, self.forward, Rules(limit, constraint), self.effort)

    def write(self, documents: list[Document]) -> list[Row]:
        """Decode all documents and return their rows in order."""
        for document in documents:
            self.decoder.submit(document)
        ended: list[Row] = []
        while len(ended) < len(documents):
            ended += self.decoder.step()
        return sorted(ended, key=lambda row: row.index)


@pytest.fixture(scope="module")
def wanted() -> list[list[int]]:
    return [plain_loop(MODEL, Encoder(byte_tokenizer(MERGES), TASK), text).ids for text in TEXTS]


@pytest.mark.no_cover
@pytest.mark.parametrize("rows", [2, 3, 8])
def test_two_groups_that_take_turns_write_the_same(
    rows: int, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forward, "pipelined", True)
    tool = Tool(Shape(rows, 512, 64))
    found = tool.write(DOCUMENTS)
    assert [row.document.id for row in found] == [document.id for document in DOCUMENTS]
    assert [row.ids for row in found] == wanted


def test_few_rows_are_one_group(wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forward, "pipelined", True)
    united, apart = Tool(Shape(8, 512, 1024)), Tool(Shape(8, 512, 1024))
    assert [row.ids for row in united.write(DOCUMENTS)] == wanted
    monkeypatch.setattr("spantune.extraction.decoder.FEW", 0)
    assert [row.ids for row in apart.write(DOCUMENTS)] == wanted
    assert united.effort.passes < 0.75 * apart.effort.passes


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_full_cache_makes_the_youngest_begin_again(
    pipelined: bool, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forward, "pipelined", pipelined)
    monkeypatch.setattr(model_runner, "PAGE", 8)
    roomy, tight = Tool(Shape(6, 512, 64)), Tool(Shape(6, 512, 64, slots=450))
    assert [row.ids for row in roomy.write(DOCUMENTS)] == [row.ids for row in tight.write(DOCUMENTS)] == wanted
    assert tight.effort.tokens > roomy.effort.tokens == sum(map(len, wanted))  # preempted rows were written twice
    assert tight.forward.cache.room == room_at_rest(tight.forward) < 512


def test_a_prompt_longer_than_a_pass_is_fed_in_parts() -> None:
    text = "肺炎患者咳嗽" * 20
    whole, parts = Tool(Shape(2, 1024, 1024)), Tool(Shape(2, 1024, 64))
    documents = [Document("a", text), Document("b", "肺")]
    assert [row.ids for row in whole.write(documents)] == [row.ids for row in parts.write(documents)]
    assert parts.effort.passes > whole.effort.passes + 4


def test_a_text_that_joins_with_the_instruction_shortens_it() -> None:
    """The tokenizer merges the end of the instruction, a line break, with an "a" that follows."""
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}<|im_start|>"
    task = TASK.model_copy(update={"instruction": "Find entities."})
    texts = ["b", "肺 b", "a", "ab", "b"]

    def tool(texts: list[str]) -> tuple[Tool, list[list[int]]]:
        made = Tool(Shape(2, 512, 64), task)
        made.encoder.tokenizer.chat_template = template
        made.encoder.__init__(made.encoder.tokenizer, task)  # type: ignore[misc]
        return made, [row.ids for row in made.write([Document(str(i), text) for i, text in enumerate(texts)])]

    together, found = tool(texts)
    alone, _ = tool(["b"])
    assert len(together.forward.instruction) < len(alone.forward.instruction)
    assert found == [tool([text])[1][0] for text in texts]


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_cancelled_row_leaves_nothing_behind(
    pipelined: bool, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forward, "pipelined", pipelined)
    tool = Tool(Shape(3, 512, 64))
    indices = [tool.decoder.submit(document) for document in DOCUMENTS]
    for _ in range(3):
        tool.decoder.step()
    for index in indices:  # some wait, some are in the running pass, and one may have ended
        tool.decoder.cancel(index)
    assert tool.forward.cache.room == room_at_rest(tool.forward)
    assert tool.decoder.room == 5
    assert [row.ids for row in tool.write(DOCUMENTS)] == wanted


def test_the_effort_is_counted(wanted: list[list[int]]) -> None:
    tool = Tool(Shape(8, 512, 1024))
    tool.write(DOCUMENTS)
    effort = tool.effort
    assert effort.tokens == sum(map(len, wanted)) and 0 < effort.forced < effort.tokens
    assert 0 < effort.grammar_seconds < 60 and effort.passes < effort.tokens - effort.forced
    free = Tool(Shape(8, 512, 1024), grounded=False)
    free.write(DOCUMENTS)
    assert free.effort.forced == 0 < free.effort.tokens


def test_a_few_documents_are_taken_between_two_passes(wanted: list[list[int]]) -> None:
    tool = Tool(Shape(60, 512, 256))
    tool.decoder.takes_all = True
    assert tool.decoder.room == 91  # the room for all documents, by which compiling is decided
    tool.decoder.compile()
    for document in DOCUMENTS * 5:
        tool.decoder.submit(document)
        if tool.decoder.room == 0:
            break
    ended: list[Row] = []
    assert tool.decoder.waiting == 32
    while len(ended) < 32:
        ended += tool.decoder.step()
        assert tool.decoder.room == 32
    ended.sort(key=lambda row: row.index)
    assert [row.ids for row in ended[: len(DOCUMENTS)]] == wanted


def test_the_grammar_of_a_document_that_waits_is_compiled(wanted: list[list[int]]) -> None:
    tool = Tool(Shape(2, 512, 64))
    for document in DOCUMENTS[:5]:
        tool.decoder.submit(document)
    waiting = list(tool.decoder._waiting)
    assert len(waiting) == 5 and all(row.guide is not None and row.guide.matcher for row in waiting)
    tool.decoder.step()
    assert tool.decoder._in_flight == 2
