"""A server with the same model gives the same Documents in the same order, despite failures, pauses and refusals."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from helpers.completions_server import CompletionsServer, Response, Trouble, serving
from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from spantune.core import (
    ConfigError,
    Document,
    Entity,
    Extraction,
    Label,
    ModelError,
    Problem,
    ProblemKind,
    TaskSpec,
    config,
)
from spantune.encoding import Encoder
from spantune.extraction import Extractor, Server, Tally
from spantune.extraction.remote.breaker import Patience
from spantune.extraction.remote.client import Client
from spantune.extraction.remote.extractor import TRIAL, WITHOUT, RemoteExtractor
from spantune.extraction.remote.protocol import Served, choose, identify

TASK = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="Find entities.")
GOLD = [
    Document("one", "肺炎患者咳嗽", (Entity(0, 2, "dis"), Entity(4, 6, "sym"))),
    Document("two", 'a "quote" \\ ab', (Entity(3, 8, "dis"),)),
    Document("three", "nothing"),
    Document("four", "ab abc", (Entity(0, 2, "dis"), Entity(3, 6, "sym"))),
]
QUICK = Patience(first=0.02, longest=0.05, seconds=20)
SETTINGS = config.Extract(max_new_tokens=150, batch_size=2)


def encoder() -> Encoder:
    return Encoder(byte_tokenizer(MERGES), TASK)


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny model that has been trained until it nearly knows the answers to GOLD."""
    coder = encoder()
    examples = [coder.example(document) for document in GOLD]
    model = tiny_model("phi3", vocabulary=280)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        total = 0.0
        for example in examples:
            labels = torch.tensor([[*[-100] * example.answer_start, *example.ids[example.answer_start :]]])
            loss = model(input_ids=torch.tensor([example.ids]), labels=labels, use_cache=False).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if total < 0.1:
            break
    return model.eval()


@pytest.fixture(scope="module")
def local(model: Any) -> list[Extraction]:
    found = list(Extractor(model, encoder(), SETTINGS).stream(GOLD))
    assert [item.document.entities for item in found] == [document.entities for document in GOLD]
    return found


def remote(server: CompletionsServer, **options: Any) -> RemoteExtractor:
    asked = Server(server.url, **{"patience": QUICK, "timeout": 20.0, "concurrency": 4, **options})
    with Client(asked) as client:
        return RemoteExtractor(asked, choose(client.models(), asked), encoder(), SETTINGS)


def same(found: list[Extraction], wanted: list[Extraction], scores: bool = False) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.document, one.answer, one.status) == (other.document, other.answer, other.status)
        mine, theirs = ([e.score for e in item.document.entities] for item in (one, other))
        assert mine == (pytest.approx(theirs, rel=1e-4) if scores else [None] * len(theirs))


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_a_server_says_what_the_model_says_here(model: Any, local: list[Extraction], kind: str) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), kind)) as server:
        same(list(remote(server).stream(GOLD)), local, scores=kind == "llamacpp")
        sent = sorted((tuple(request["prompt"]) for request in server.requests), key=str)
    assert sent == sorted((tuple(encoder().prompt_ids(document.text)) for document in GOLD), key=str)
    assert all(request["temperature"] == 0 and request["max_tokens"] == 150 for request in server.requests)
    assert all(("structured_outputs" in request) == (kind == "vllm") for request in server.requests)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_under_the_grammar_a_model_that_knows_nothing_stays_in_the_text(kind: str) -> None:
    found: list[Extraction] = []
    for seed in (2, 5):
        noise = tiny_model("phi3", vocabulary=280)
        torch.manual_seed(seed)
        for parameter in noise.parameters():
            torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
        with serving(CompletionsServer(noise.tie_weights() or noise, byte_tokenizer(MERGES), kind)) as server:
            found += remote(server).stream(GOLD)
    assert {problem.kind for item in found for problem in item.problems} <= {"repeated", "truncated"}
    assert sum(len(item.document.entities) for item in found) > 2


def test_a_server_without_grammar_is_read_and_checked(
    model: Any, local: list[Extraction], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), "openai")) as server:
        same(list(remote(server).stream(GOLD)), local)
        assert all(request.keys() == {"model", "prompt", "max_tokens", "temperature"} for request in server.requests)
    said = [record.getMessage() for record in caplog.records]
    assert (
        len(said) == 2
        and "format jsonl have no grammar that a server of the kind openai takes" in said[0]
        and "no scores" in said[1]
    )


def test_without_grammar_scores_are_those_of_free_decoding(model: Any) -> None:
    free = list(Extractor(model, encoder(), SETTINGS.model_copy(update={"grounded": False})).stream(GOLD))
    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        same(list(remote(server, grammar="none").stream(GOLD)), free, scores=True)
        assert not any("structured_outputs" in request for request in server.requests)


def no_grammar(number: int, request: dict[str, Any]) -> Response | None:
    refuses = "structured_outputs" in request
    return Response(400, {"error": {"message": "Invalid grammar specification."}}) if refuses else None


def test_a_server_that_refuses_grammars_is_asked_without(
    model: Any, local: list[Extraction], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=no_grammar)) as server:
        documents = GOLD * 6
        for concurrency in (1, 24):
            server.requests.clear()
            found = list(remote(server, concurrency=concurrency).stream(documents))
            assert [item.document for item in found] == [item.document for item in local * 6]
            assert [item.problems for item in found] == [(Problem(ProblemKind.UNCONSTRAINED, WITHOUT),)] * 24
            assert len(server.requests) == 24 + TRIAL == 40
        assert (
            caplog.text.count("takes no grammar: it refused those of the first 16 texts (the server refuses: 400") == 2
        )
        with pytest.raises(ModelError, match=r"Invalid grammar.*answers without the grammar.*--grammar none"):
            list(remote(server, grammar="vllm").stream(GOLD))


@pytest.mark.no_cover
def test_one_refused_grammar_costs_one_text_its_grammar(
    model: Any, local: list[Extraction], caplog: pytest.LogCaptureFixture
) -> None:
    """For every concurrency, only this text is asked without its grammar; the other 49 are asked with theirs."""
    bad = encoder().prompt_ids(GOLD[1].text)

    def trouble(number: int, request: dict[str, Any]) -> Response | None:
        time.sleep(0.001 * (number % 5))
        return no_grammar(number, request) if request["prompt"] == bad else None

    documents, wanted = [GOLD[1], *[GOLD[2]] * 49], [local[1], *[local[2]] * 49]
    for concurrency, grammar in ((1, "auto"), (16, "auto"), (16, "vllm")):
        with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=trouble)) as server:
            found = list(remote(server, concurrency=concurrency, grammar=grammar).stream(documents))
            assert len(server.requests) == 51
            assert sum("structured_outputs" in request for request in server.requests) == 50
        same(found[1:], wanted[1:])
        assert found[0].document == local[1].document and found[0].has_problem
        assert found[0].problems == (Problem(ProblemKind.UNCONSTRAINED, WITHOUT),)
        assert not any(item.problems for item in found[1:])
    tally = Tally()
    list(tally.counted(found))
    assert tally.notes == {"document that the server answered without its grammar, which it refused": 1}
    assert "takes no grammar" not in caplog.text


def test_a_server_that_ignores_grammars_is_noticed(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The server is named as vLLM, but it ignores vLLM's field for the grammar."""
    noise = tiny_model("phi3", vocabulary=280)
    with serving(CompletionsServer(noise, byte_tokenizer(MERGES), "llamacpp")) as server:
        asked = Server(server.url, patience=QUICK)
        found = list(RemoteExtractor(asked, Served("tiny", "vllm"), encoder(), SETTINGS).stream(GOLD))
    assert "does not follow the grammar that was sent" in caplog.text
    assert all(item.has_problem for item in found)


def at_times(number: int, request: dict[str, Any]) -> Response | str | None:
    """Fail some of the first requests, each in another way."""
    return {
        0: Response(500, {"error": {"message": "out of memory"}}),
        1: Response(429, {"error": "busy"}, {"Retry-After": "0.05"}),
        2: "drop",
        3: Response(200, b"not json"),
        4: Response(200, {"choices": []}),
        6: Response(503, b"loading", {"Retry-After": "soon"}),
        7: Response(502, b"<html>bad gateway</html>"),
    }.get(number)


def test_failures_are_waited_out(model: Any, local: list[Extraction]) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=at_times)) as server:
        same(list(remote(server).stream(GOLD)), local)
        assert len(server.requests) == len(GOLD) + 7


def test_a_server_that_hangs_is_asked_again(model: Any, local: list[Extraction]) -> None:
    trouble: Trouble = lambda number, request: "hang" if number == 1 else None  # noqa: E731
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=trouble)) as server:
        same(list(remote(server, timeout=1.0, concurrency=1).stream(GOLD)), local)
        assert len(server.requests) == len(GOLD) + 1


def poisoned(status: int) -> Trouble:
    bad = encoder().prompt_ids(GOLD[1].text)
    body = {"error": {"message": "cannot take this"}}
    return lambda number, request: Response(status, body) if request["prompt"] == bad else None


@pytest.mark.parametrize(("status", "words"), [(400, "refuses: 400"), (500, "failed 4 times, lastly: 500")])
def test_a_poisoned_document_is_said_and_the_others_go_on(
    model: Any, local: list[Extraction], status: int, words: str
) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=poisoned(status))) as server:
        found = list(remote(server).stream(GOLD, strict=False))
        same([found[0], *found[2:]], [local[0], *local[2:]])
        assert found[1].status == "failed" and found[1].document == GOLD[1].with_entities(())
        assert found[1].problems[0].kind == "server" and words in found[1].problems[0].found
        assert "cannot take this" in found[1].problems[0].found
        with pytest.raises(ModelError, match=r"'two'.*cannot take this"):
            list(remote(server).stream(GOLD))


DEEP = b"[" * 200_000
ODD_ANSWERS = [
    Response(200, DEEP),
    Response(400, DEEP),
    Response(400, {"error": {"message": "half: \udfff"}}),
    Response(200, {"choices": [{"text": "\ud800", "finish_reason": "stop"}]}),
]


@pytest.mark.parametrize("odd", ODD_ANSWERS)
def test_what_no_server_should_say_fails_one_document_and_can_be_written(
    model: Any, local: list[Extraction], odd: Response
) -> None:
    bad = encoder().prompt_ids(GOLD[1].text)
    trouble: Trouble = lambda number, request: odd if request["prompt"] == bad else None  # noqa: E731
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=trouble)) as server:
        found = list(remote(server).stream(GOLD, strict=False))
    same([found[0], *found[2:]], [local[0], *local[2:]])
    assert found[1].status == "failed" and found[1].problems[0].found.encode()


ODD_TOKENS = [([999_999], -0.5), ([-1], -0.5), ([10**15], -0.5), ([float("inf")], -0.5), (["x"], -0.5)]
ODD_TOKENS += [([7], value) for value in (0.01, 800.0, 10**400, True, float("nan"))]


@pytest.mark.no_cover
@pytest.mark.parametrize(("ids", "logprob"), ODD_TOKENS)
@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_ids_that_are_none_of_the_tokenizers_are_not_read(
    model: Any, caplog: pytest.LogCaptureFixture, ids: list[Any], logprob: Any, kind: str
) -> None:
    text = encoder().decode(encoder().example(GOLD[0]).ids[encoder().example(GOLD[0]).answer_start : -1])
    choice = {"text": text, "finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": [logprob]}}
    answer: Trouble = lambda number, request: Response(200, {"choices": [choice]})  # noqa: E731
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), kind, trouble=answer)) as server:
        (found,) = remote(server, grammar="none").stream(GOLD[:1])
    assert found.document == GOLD[0] and not found.problems
    assert [entity.score for entity in found.document.entities] == [None, None]
    assert "without scores" in caplog.text or "have no scores" in caplog.text


@pytest.mark.no_cover
def test_a_server_that_restarts_is_waited_for(model: Any, local: list[Extraction]) -> None:
    documents = GOLD * 10
    down = threading.Event()
    trouble: Trouble = lambda number, request: down.set() if number == 12 else None  # noqa: E731
    first, second = (CompletionsServer(model, byte_tokenizer(MERGES), trouble=t) for t in (trouble, lambda n, r: None))
    found: list[Extraction] = []
    with serving(first) as server:
        extractor = remote(server)
        reader = threading.Thread(target=lambda: found.extend(extractor.stream(documents)))
        reader.start()
        assert down.wait(20)
    time.sleep(0.3)
    with serving(second, port=first.port):
        reader.join(40)
    assert not reader.is_alive() and len(second.requests) > 10
    same(found, local * 10)


def test_a_server_that_stays_away_is_given_up_in_one_sentence(model: Any) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        extractor = remote(server, patience=Patience(first=0.02, longest=0.1, seconds=0.5), attempts=2)
    with pytest.raises(
        ModelError, match=r"given up: no answer for [01] seconds, lastly: it cannot be reached.*--resume"
    ):
        list(extractor.stream(GOLD * 50, strict=False))
    always: Trouble = lambda number, request: Response(500, {"error": "broken"})  # noqa: E731
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=always)) as server:
        extractor = remote(server, patience=Patience(first=0.02, longest=0.1, seconds=0.5), attempts=50)
        with pytest.raises(ModelError, match=r"given up.*500 Internal Server Error: broken"):
            list(extractor.stream(GOLD * 50, strict=False))
        assert len(server.requests) < 60  # no request was sent while the client waited


@pytest.mark.no_cover
def test_no_more_is_asked_at_once_than_allowed_and_order_is_kept(model: Any, local: list[Extraction]) -> None:
    def slow(number: int, request: dict[str, Any]) -> None:
        time.sleep(0.2 if number % 4 == 0 else 0.01)

    taken = []

    def source() -> Iterator[Document]:
        for number in range(40):
            taken.append(number)
            yield GOLD[number % 4]

    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=slow)) as server:
        stream = remote(server, concurrency=3).stream(source())
        next(stream)
        assert len(taken) <= 3 * 4 + 1
        rest = list(stream)
        same(rest, (local * 10)[1:])
        assert server.most_at_once == 3


def test_who_leaves_early_waits_for_nothing(model: Any) -> None:
    first = encoder().prompt_ids(GOLD[0].text)
    hangs: Trouble = lambda number, request: None if request["prompt"] == first else "hang"  # noqa: E731
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=hangs)) as server:
        stream = remote(server, concurrency=2).stream(GOLD * 10)
        next(stream)
        assert server.hanging > 0
        stream.close()
        assert server.hanging > 0, "the requests that hang were not waited for"


def test_who_leaves_while_a_request_connects_leaves_no_connection_open(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, made, connecting, left = (
        socket.create_connection,
        list[socket.socket](),
        threading.Event(),
        threading.Event(),
    )

    def slow(*args: Any, **options: Any) -> socket.socket:
        made.append(connect(*args, **options))
        connecting.set()
        left.wait(10)
        return made[-1]

    def ask(client: Client) -> None:
        with suppress(ModelError):
            client.complete({"model": "x", "prompt": [1], "max_tokens": 1}, lambda response: response)

    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        monkeypatch.setattr(socket, "create_connection", slow)
        client = Client(Server(server.url, patience=QUICK))
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        assert connecting.wait(10)
        client.close()
        left.set()
        thread.join(20)
        assert not thread.is_alive() and [one.fileno() for one in made] == [-1]


def test_a_server_that_counts_other_tokens_is_refused(model: Any) -> None:
    class Adding(CompletionsServer):
        def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
            found = super()._complete(request)
            found["usage"]["prompt_tokens"] += 1
            return found

    with serving(Adding(model, byte_tokenizer(MERGES))) as server:
        size = len(encoder().prompt_ids(GOLD[0].text))
        with pytest.raises(ModelError, match=rf"counts {size + 1} tokens in a prompt of {size}: it adds its own"):
            list(remote(server).stream(GOLD[:1], strict=False))


def test_the_model_is_the_servers_only_one_or_named(model: Any) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), names=("base", "mine"))) as server:
        with pytest.raises(ConfigError, match=r"serves base, mine; name the one of this run with --model"):
            remote(server)
        with pytest.raises(ConfigError, match=r"no model 'mina' there; did you mean 'mine'\?"):
            remote(server, model="mina")
        list(remote(server, model="mine").stream(GOLD[:1]))
        assert server.requests[-1]["model"] == "mine"
        server.names = ("base",)
        with pytest.raises(ModelError, match=r"404 Not Found: The model `mine` does not exist\..*--model"):
            list(RemoteExtractor(Server(server.url), Served("mine"), encoder(), SETTINGS).stream(GOLD, strict=False))


def test_long_texts_are_sent_in_chunks(model: Any) -> None:
    settings = SETTINGS.model_copy(update={"chunk_tokens": 60, "overlap": 2})
    long = Document("long", "肺炎患者咳嗽。" * 12)
    here = list(Extractor(model, encoder(), settings).stream([long]))
    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        extractor = RemoteExtractor(Server(server.url), Served("tiny", "vllm"), encoder(), settings)
        (found,) = extractor.stream([long])
        assert len(server.requests) > 5
    assert found.document.text == long.text
    spans = [{(e.start, e.end) for e in item.document.entities} for item in (found, here[0])]
    assert spans[0] and max(spans[0])[0] > 40 and len(spans[0] & spans[1]) > 0


def test_a_model_trained_on_choices_needs_the_grammar(model: Any, local: list[Extraction]) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        asked = Server(server.url)
        choices = RemoteExtractor(asked, Served("tiny", "vllm"), encoder(), SETTINGS, on_choices=True)
        same(
            list(choices.stream(GOLD)), list(Extractor(model, encoder(), SETTINGS, on_choices=True).stream(GOLD)), True
        )
        assert choices.gives_scores
    for served, options in ((Served("tiny"), {}), (Served("tiny", "vllm"), {"grammar": "none"})):
        with pytest.raises(ConfigError, match="cannot answer without the grammar"):
            RemoteExtractor(Server(asked.url, **options), served, encoder(), SETTINGS, on_choices=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["jsonl", "grouped"])
def test_llama_cpp_chooses_among_what_the_grammar_allows(model: Any, answer: Any) -> None:
    """A request is sent only where there is a choice, and the server's slots keep their caches."""
    known = encoder()
    known.task = TASK.model_copy(update={"answer": answer})
    here = list(Extractor(model, known, SETTINGS, on_choices=True).stream(GOLD))
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), "llamacpp")) as server:
        asked = Server(server.url, patience=QUICK)
        extractor = RemoteExtractor(asked, Served("tiny", "llamacpp", slots=2), known, SETTINGS, on_choices=True)
        same(list(extractor.stream(GOLD)), here, scores=True)
    assert extractor.gives_scores and extractor.server.concurrency == 2
    assert {request["id_slot"] for request in server.requests} == {0, 1} and server.most_at_once <= 2
    assert all(len(request["logit_bias"]) > 1 and "grammar" not in request for request in server.requests)
    lured = [request for request in server.requests if request["logprobs"] > 1]
    assert len(lured) > 3  # byte_tokenizer has tokens that are parts of characters
    tokens = sum(len(known.tokenizer(item.answer, add_special_tokens=False)["input_ids"]) for item in here)
    assert len(server.requests) - len(lured) < tokens / 2


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "", "logprobs": {"content": [{"top_probs": [{"id": 5, "prob": 1.0}]}]}}]},  # not allowed
        {"choices": [{"text": "", "logprobs": {"content": [{"top_logprobs": []}]}}]},
        {"choices": [{"text": "", "logprobs": None}]},
    ],
)
def test_a_server_that_does_not_choose_is_an_error_of_the_document(model: Any, body: Any) -> None:
    with serving(
        CompletionsServer(model, byte_tokenizer(MERGES), "llamacpp", trouble=lambda *_: Response(200, body))
    ) as server:
        asked = Server(server.url, patience=QUICK, attempts=2)
        extractor = RemoteExtractor(asked, Served("tiny", "llamacpp"), encoder(), SETTINGS, on_choices=True)
        (found,) = extractor.stream(GOLD[:1], strict=False)
    assert found.status == "failed" and re.search("probabilit", found.problems[0].found)


def test_a_format_without_a_grammar_for_the_server_is_said_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    inline = Encoder(byte_tokenizer(MERGES), TASK)
    inline.task = TASK.model_copy(update={"answer": "inline"})
    for kind in ("vllm", "llamacpp"):
        RemoteExtractor(Server("http://127.0.0.1:9/v1"), Served("tiny", kind), inline, SETTINGS)
        assert f"format inline have no grammar that a server of the kind {kind} takes" in caplog.text
        with pytest.raises(ConfigError, match=rf"--grammar {kind}: answers of the format inline.*--grammar none"):
            RemoteExtractor(Server("http://127.0.0.1:9/v1", grammar=kind), Served("tiny", kind), inline, SETTINGS)  # type: ignore[arg-type]


def test_the_engine_is_asked_what_it_is_and_how_much_it_takes(model: Any) -> None:
    def known(kind: str, about: dict[str, Any], **options: Any) -> RemoteExtractor:
        with serving(CompletionsServer(model, byte_tokenizer(MERGES), kind, about=about)) as server:
            asked = Server(server.url, **options)
            with Client(asked) as client:
                served = identify(choose(client.models(), asked), client)
        return RemoteExtractor(asked, served, encoder(), SETTINGS)

    found = [
        known("vllm", {"/version": {"version": "0.26.0"}}),
        known("llamacpp", {"/props": {"total_slots": 6, "build_info": "b10605"}}),
        known("llamacpp", {"/props": {"total_slots": "many"}}),
        known("vllm", {}, concurrency=3),
        known("openai", {"/version": {"version": "9"}, "/props": {"total_slots": 99}}),
    ]
    assert [(one.served.engine, one.server.concurrency) for one in found] == [
        ("vLLM 0.26.0", 192),
        ("llama.cpp b10605", 6),
        ("llama.cpp", 16),
        ("vLLM", 3),
        ("a server of OpenAI's protocol", 16),
    ]


# --- keys and addresses ------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_is_not_shown(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def wants(number: int, request: dict[str, Any]) -> Response | None:
        return None if server.keys[-1] == "Bearer s3cret" else Response(401, {"error": "no"})

    monkeypatch.delenv("SPANTUNE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "for-somebody-else")
    with serving(CompletionsServer(model, byte_tokenizer(MERGES), trouble=wants)) as server:
        with pytest.raises(ModelError, match=r"401 Unauthorized: no; set SPANTUNE_API_KEY"):
            list(remote(server).stream(GOLD[:1], strict=False))
        assert set(server.keys) == {None}
        monkeypatch.setenv("SPANTUNE_API_KEY", "s3cret")
        assert next(remote(server).stream(GOLD[:1])).document.entities
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "expected an address"),
        ("ftp://host/v1", "expected an address"),
        ("http://host:99999/v1", "expected an address"),
        ("http://me:s3cret@host/v1", "SPANTUNE_API_KEY"),
    ],
)
def test_addresses_that_cannot_be_right(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Server(url)
    assert "s3cret" not in str(caught.value)


def test_what_is_no_completions_server_is_said_at_once(model: Any) -> None:
    with serving(CompletionsServer(model, byte_tokenizer(MERGES))) as server:
        with pytest.raises(ModelError, match=r"404 Not Found: nothing here; check --url \(up to and with /v1\)"):
            ask_models(server.url.removesuffix("/v1"))
        server.models = lambda: {"data": [{"name": "x"}]}  # type: ignore[method-assign]
        with pytest.raises(ModelError, match="names no models"):
            ask_models(server.url)
    with pytest.raises(ModelError, match=r"is the server up, and --url right\?"):
        ask_models(server.url)


def ask_models(url: str) -> None:
    with Client(Server(url)) as client:
        client.models()
