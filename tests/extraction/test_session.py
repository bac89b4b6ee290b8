"""Documents submitted at any time, computed together, cancelled or failing, get the results that each gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.extractors import DOCUMENTS, count_forwards, extractor, lively_model, room_at_rest
from helpers.run_folders import READING, save_run
from spantune.core import ConfigError, DataError, Document, Entity, Extraction, ModelError, Status, config
from spantune.encoding.answers import FORMATS
from spantune.extraction import Extractor, Forward, Options, Session, load_run
from spantune.extraction import reading as reading_module
from spantune.extraction.chunked import Parts
from spantune.metrics import Calibration

MODEL = lively_model("phi3", 2).requires_grad_(False)
POISON = "Ω"  # its first byte is in no other text
TEXTS = ["肺炎患者咳嗽", "ab", "", "abcab 👩‍⚕️ it", "糖尿病 (diabetes) 患者，ab abc。肺炎 ab。" * 3]
TICKETS = st.integers(0, 7)
ACTIONS = st.lists(
    st.tuples(st.just("submit"), st.integers(0, len(TEXTS) - 1))
    | st.tuples(st.sampled_from(["step", "step", "cancel"]), TICKETS),
    max_size=20,
)
Scored = tuple[dict[tuple[int, int, str], float], str, str]


def writing(**changes: Any) -> Extractor:
    return extractor(MODEL, max_tokens=110, **{"max_new_tokens": 30, "batch_size": 2, **changes})


@pytest.fixture(scope="module")
def reading_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "reading", tiny_folder, READING)


def reading(run: Path) -> Extractor:
    return load_run(run, settings=config.Extract(batch_size=2, chunk_tokens=40, overlap=8))


@pytest.fixture(scope="module", params=["writing", "pipelined", "reading"])
def tool(request: pytest.FixtureRequest, reading_run: Path) -> Iterator[Extractor]:
    if request.param == "reading":
        yield reading(reading_run)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "pipelined", request.param == "pipelined")
        yield writing()


def scored(extraction: Extraction) -> Scored:
    entities = {
        (entity.start, entity.end, entity.label): entity.score or 0.0 for entity in extraction.document.entities
    }
    return entities, extraction.answer, str(extraction.status)


def agree(found: Extraction, wanted: Extraction) -> None:
    entities, *rest = scored(wanted)
    own_entities, *own_rest = scored(found)
    assert own_rest == rest and own_entities == pytest.approx(entities, abs=1e-5)
    assert found.document.text == wanted.document.text and found.problems == wanted.problems


def run_out(session: Session) -> dict[int, Extraction]:
    """Step until no document is pending; return the extractions by number."""
    ended: dict[int, Extraction] = {}
    for _ in range(10_000):
        if not session.pending:
            return ended
        ended |= dict(session.step())
    raise AssertionError("a document hangs")


def require_rest(tool: Extractor) -> None:
    """Check that all rows and slots are free again."""
    scheduler: Any = tool.scheduler
    worker = scheduler._worker
    assert not scheduler._running and not scheduler._queue
    if decoder := getattr(worker, "_decoder", None):
        cache = decoder._forward.cache
        assert decoder.room == 4 and cache.room == room_at_rest(decoder._forward) and len(cache._rows) == 2
    else:
        assert not worker._waiting and worker._size == 0


@pytest.fixture(scope="module")
def alone(tool: Extractor) -> list[Extraction]:
    return [next(tool.stream([text])) for text in TEXTS]


@given(actions=ACTIONS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_calls_gives_each_document_what_it_gets_alone(
    tool: Extractor, alone: list[Extraction], actions: list[tuple[str, int]]
) -> None:
    session = tool.session()
    texts: dict[int, int] = {}
    ended: dict[int, Extraction] = {}
    cancelled: set[int] = set()
    for name, value in actions:
        if name == "submit":
            texts[session.submit(Document(f"d{len(texts)}", TEXTS[value]))] = value
        elif name == "cancel":
            session.cancel(value)
            cancelled |= {value} & (texts.keys() - ended.keys())
        else:
            ended |= dict(session.step())
        assert session.pending == len(texts) - len(ended) - len(cancelled)
    ended |= run_out(session)
    assert ended.keys() == texts.keys() - cancelled
    for ticket, extraction in ended.items():
        agree(extraction, alone[texts[ticket]])
    require_rest(tool)


def test_a_cancelled_document_frees_its_rows(tool: Extractor, alone: list[Extraction]) -> None:
    session = tool.session()
    tickets = [session.submit(Document(str(number), text)) for number, text in enumerate(TEXTS * 2)]
    session.step()
    for ticket in tickets:
        session.cancel(ticket)
    assert session.pending == 0 and session.step() == []
    require_rest(tool)
    session.cancel(tickets[0])
    session.cancel(10_000)  # a number that does not exist
    agree(next(tool.stream(TEXTS[:1])), alone[0])


def test_streams_and_sessions_at_once_share_one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    tool, made = writing(), count_forwards(monkeypatch)
    wanted = list(writing().stream(DOCUMENTS))
    made.clear()
    first, second, session = tool.stream(DOCUMENTS), tool.stream(DOCUMENTS[::-1]), tool.session()
    tickets = [session.submit(document) for document in DOCUMENTS]
    found, backwards = [], []
    for _ in DOCUMENTS:
        found.append(next(first))
        backwards.append(next(second))
    ended = run_out(session)
    for others in (found, backwards[::-1], [ended[ticket] for ticket in tickets]):
        for extraction, expected in zip(others, wanted, strict=True):
            agree(extraction, expected)
    assert len(made) == 1


def test_who_stops_listening_to_a_stream_leaves_no_row_behind(tool: Extractor) -> None:
    stream = tool.stream(TEXTS * 3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    require_rest(tool)


def test_a_short_text_does_not_wait_for_the_end_of_a_long_one(tool: Extractor) -> None:
    session = tool.session()
    long, short = session.submit(Document("long", TEXTS[4] * 6)), session.submit(Document("short", "ab"))
    ended: list[int] = []
    while session.pending:
        ended += [ticket for ticket, _ in session.step()]
    assert ended == [short, long]


def test_a_long_text_is_cut_while_it_is_computed(tool: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Document] = []

    def take(parts: Parts) -> Document:
        taken.append(original(parts))
        return taken[-1]

    original = Parts.take
    monkeypatch.setattr(Parts, "take", take)
    session = tool.session()
    ticket = session.submit(Document("long", "肺炎患者咳嗽。" * 2000), Options(chunk_tokens=20))
    session.step()
    assert 0 < len(taken) < 50
    session.cancel(ticket)
    assert session.has_room and not session.pending


def test_a_character_that_fits_nowhere_refuses_its_document_when_it_is_reached(tool: Extractor) -> None:
    session = tool.session()
    tickets = [
        session.submit(Document("bad", "ab " * 20 + "\U0010fffd" + " ab" * 20), Options(chunk_tokens=2)),
        session.submit(Document("good", "ab")),
    ]
    ended: dict[int, Extraction] = {}
    while session.pending:
        ended |= dict(session.step())
    bad, good = (ended[ticket] for ticket in tickets)
    assert (bad.status, bad.document.entities, good.status.is_failure) == (Status.REFUSED, (), False)
    assert "fits beside the instruction" in bad.problems[0].found


def test_a_stream_reads_ahead_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spantune.extraction.session.AHEAD", 5)
    taken: list[int] = []

    def source() -> Iterator[Document]:
        for number in range(30):
            taken.append(number)
            yield Document(str(number), "ab" if number else TEXTS[4] * 4)  # the first one takes the longest

    for number, extraction in enumerate(writing().stream(source())):
        assert extraction.document.id == str(number) and len(taken) <= number + 6
    assert taken == list(range(30))


def poisoned(texts: list[str]) -> list[str]:
    return [*texts[:2], f"a {POISON}", *texts[2:]]


def poison_grammar(patch: pytest.MonkeyPatch) -> None:
    real = FORMATS["jsonl"]

    def grammar(text: str, *rest: Any) -> str | None:
        if POISON in text:
            raise KeyError("no such rule")
        return real.grammar(text, *rest)

    patch.setitem(FORMATS, "jsonl", replace(real, grammar=grammar))


def poison_pass(patch: pytest.MonkeyPatch) -> None:
    token = extractor(MODEL).encoder.tokenizer(POISON, add_special_tokens=False)["input_ids"][0]
    real = Forward.feed

    def feed(self: Forward, parts: Any, outputs: Any) -> Tensor:
        if any(token in part.ids for part in parts):
            raise RuntimeError("CUDA error: out of memory")
        return real(self, parts, outputs)

    patch.setattr(Forward, "feed", feed)


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("poison", [poison_grammar, poison_pass])
def test_a_poisoned_document_fails_alone(
    poison: Callable[[pytest.MonkeyPatch], None], pipelined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forward, "pipelined", pipelined)
    wanted = list(writing().stream(TEXTS))
    poison(monkeypatch)
    tool = writing()
    session = tool.session()
    tickets = [session.submit(Document(str(number), text)) for number, text in enumerate(poisoned(TEXTS))]
    ended = run_out(session)
    bad = ended.pop(tickets.pop(2))
    assert bad.status is Status.FAILED and not bad.document.entities and len(bad.problems) == 1
    assert "no such rule" in bad.problems[0].found or "CUDA error: out of memory" in bad.problems[0].found
    for ticket, extraction in zip(tickets, wanted, strict=True):
        agree(ended[ticket], extraction)
    require_rest(tool)


def test_a_stream_raises_what_a_pass_raises_for_a_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_pass(monkeypatch)
    tool = writing()
    with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
        list(tool.stream(poisoned(TEXTS)))
    require_rest(tool)
    statuses = [extraction.status for extraction in tool.stream(poisoned(TEXTS), strict=False)]
    assert [status is Status.FAILED for status in statuses] == [False, False, True, False, False, False]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_pass_that_fails_once_costs_no_document(
    at: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(writing().stream(TEXTS))
    real, left = Forward.feed, [at]

    def feed(self: Forward, parts: Any, outputs: Any) -> Tensor:
        left[0] -= 1
        if left[0] == -1:
            raise error
        return real(self, parts, outputs)

    monkeypatch.setattr(Forward, "feed", feed)
    tool = writing()
    session = tool.session()
    tickets = [session.submit(Document(str(number), text)) for number, text in enumerate(TEXTS)]
    ended: dict[int, Extraction] = {}
    try:
        ended = run_out(session)
    except KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)
        ended = run_out(session)
    for ticket, extraction in zip(tickets, wanted, strict=True):
        agree(ended[ticket], extraction)
    require_rest(tool)


@pytest.mark.parametrize("kind", ["error", "NaN"])
def test_a_text_that_the_model_cannot_read_fails_alone(
    kind: str, reading_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = reading(reading_run)
    token = tool.encoder.tokenizer(POISON, add_special_tokens=False)["input_ids"][0]
    real = reading_module.span_logits

    def span_logits(model: Any, pack: Any, dtype: Any) -> Tensor:
        logits = real(model, pack, dtype)
        if (pack.ids == token).any():
            if kind == "error":
                raise RuntimeError("CUDA out of memory")
            logits.fill_(float("nan"))
        return logits

    wanted = list(tool.stream(TEXTS))
    monkeypatch.setattr(reading_module, "span_logits", span_logits)
    ended = list(tool.stream(poisoned(TEXTS), strict=False))
    bad = ended.pop(2)
    assert bad.status is Status.FAILED and bad.problems[0].found.endswith(
        "out of memory" if kind == "error" else "NaN for the spans of this text"
    )
    for found, extraction in zip(ended, wanted, strict=True):
        agree(found, extraction)
    require_rest(tool)


def only(tool: Extractor, text: str, options: Options) -> Extraction:
    session = tool.session()
    session.submit(Document("a", text), options)
    ((_, extraction),) = run_out(session).items()
    return extraction


def test_a_request_has_its_own_threshold_labels_and_chunks(tool: Extractor) -> None:
    text = TEXTS[4]
    plain = scored(next(tool.stream([text])))[0]
    whole = only(tool, text, Options(min_score=0, whole=True))
    everything = scored(whole)[0]
    assert len(everything) >= len(plain) and not whole.below_threshold and len(everything) > 1
    middle = sorted(everything.values())[len(everything) // 2]
    some = only(tool, text, Options(min_score=middle, whole=True))
    assert scored(some)[0].keys() < everything.keys() and min(scored(some)[0].values()) >= middle
    below = {(entity.start, entity.end, entity.label) for entity in some.below_threshold}
    assert below and all(entity.score < middle for entity in some.below_threshold if entity.score is not None)
    dis = only(tool, text, Options(labels=("dis",), min_score=0))
    assert scored(dis)[0] == {span: score for span, score in everything.items() if span[2] == "dis"}
    smaller = only(tool, text, Options(chunk_tokens=20, overlap=2))
    assert smaller.document.text == text and bool(smaller.answer) != tool.task.reads
    assert scored(next(tool.stream([text])))[0] == plain  # the same as before


def test_all_candidates_are_below_the_threshold_or_above_it(reading_run: Path) -> None:
    tool = load_run(reading_run)
    tool.calibration = Calibration(temperature=2.0)
    everything = only(tool, TEXTS[0], Options(min_score=0))
    default = only(tool, TEXTS[0], Options(whole=True))
    some = only(tool, TEXTS[0], Options(min_score=0.9, whole=True))
    spans = set(everything.document.entities)
    for extraction in (default, some):
        assert {*extraction.document.entities, *extraction.below_threshold} == spans
        assert not set(extraction.document.entities) & set(extraction.below_threshold)
    assert all(isinstance(entity, Entity) and entity.score for entity in some.below_threshold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(labels=("dus",)), r"the run has no label 'dus'; .*dis"),
        (Options(labels=()), r"labels is empty; expected one or more of dis, sym"),
        (Options(labels="dis"), r"labels"),  # type: ignore[arg-type]
        (Options(min_score=1.5), r"1\.5; expected a probability"),
        (Options(min_score=float("nan")), r"nan; expected a probability"),
        (Options(min_score="high"), r"min_score"),  # type: ignore[arg-type]
        (Options(chunk_tokens=0), r"chunk_tokens is 0; expected a whole number from 1 on"),
        (Options(overlap=-1), r"overlap is -1; expected a whole number from 0 on"),
        (Options(overlap=1.5), r"overlap"),  # type: ignore[arg-type]
    ],
)
def test_options_that_make_no_sense_are_refused(options: Options, message: str) -> None:
    session = writing().session()
    with pytest.raises(ConfigError, match=message):
        session.submit(Document("a", "ab"), options)
    assert session.pending == 0


def test_a_text_that_cannot_be_extracted_from_is_refused_when_it_is_submitted() -> None:
    session = writing(max_characters=10).session()
    with pytest.raises(DataError, match=r"'a' has 11 characters, over extract\.max_characters=10"):
        session.submit(Document("a", "x" * 11))
    with pytest.raises(DataError, match="half a surrogate pair"):
        session.submit(Document("a", "x\ud800"))
    with pytest.raises(ConfigError, match="submit"):
        session.submit("ab")  # type: ignore[arg-type]
    assert session.pending == 0 and session.step() == []


def test_no_memory_for_the_cache_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise ModelError("the GPU has no memory")

    monkeypatch.setattr(Forward, "_capacity", full)
    session = writing().session()
    with pytest.raises(ModelError, match="the GPU has no memory"):
        session.submit(Document("a", "ab"))
    assert session.pending == 0
