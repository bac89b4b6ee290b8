"""Extraction by a server: vLLM, llama.cpp's server, or another one that completes token ids by OpenAI's protocol.

The task, the tokenizer, the settings and the calibration come from a run; no weights are loaded. Requests are sent
concurrently, and results keep the order of the documents.

Grammars: the server is sent the grammar of the whole answer. It does not stop an answer that repeats itself, so an
entity may be written twice, which is reported as a problem. For a run that was trained on choices, llama.cpp's server
is not sent the grammar but asked token by token (see `Guided`). If the server refuses the grammar of a text, the text
is sent without it, which is a problem of that text. A server that takes no grammars is asked without, and its answers
are parsed and checked.

Scores need token ids and log-probabilities, which vLLM and llama.cpp return. The log-probabilities must also be of the
kind that the run's scores are made of (see `Served.gives_scores`). If they are of another kind, entities have no
scores, since scores of another kind would not fit the run's thresholds.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from spantune.core import (
    ConfigError,
    Document,
    Extraction,
    ModelError,
    Prediction,
    Problem,
    ProblemKind,
    Status,
    config,
)
from spantune.encoding import Encoder
from spantune.extraction.chunked import as_documents, by_chunks, cutter
from spantune.extraction.grammar import constraint_of, require_grammar
from spantune.extraction.remote.client import Client, Overrun, Refused, Server
from spantune.extraction.remote.guided import Guided
from spantune.extraction.remote.protocol import GRAMMARS, Answer, Question, Served, choose, identify
from spantune.extraction.result import Written, calibrated, failure, read_answer
from spantune.metrics import Calibration
from spantune.models import check_head_files, load_tokenizer
from spantune.runs import RunFolder

AHEAD = 4
"""How many finished requests may wait for an earlier one, for each request that may be sent at a time."""
TRIAL = 16
"""The number of texts after which a server that has refused all their grammars is asked without grammars.

This is also the number of answers that are checked against their grammar if scores do not need every answer checked.
"""
WITHOUT = "asked without its grammar, which the server does not take: what the answer holds was only checked"
"""The problem of a text that was sent without its grammar; it is the same whether the grammar was tried or not."""
log = logging.getLogger(__name__)


class RemoteExtractor:
    """A model on a server that extracts the entities of a task from texts.

    Args:
        server: the address, and how requests are sent.
        served: the model that is asked.
        encoder: the model's tokenizer and the task.
        settings: the section `extract`: the limit of an answer, chunks, and whether to decode under the grammar.
        on_choices: whether the model was trained with `train.loss_on=choices`; it then needs the grammar.

    Raises:
        ConfigError: the model needs a grammar and none can be sent, or `server.grammar` names a kind that takes no
            grammar of the answer format.
    """

    def __init__(
        self,
        server: Server,
        served: Served,
        encoder: Encoder,
        settings: config.Extract | None = None,
        *,
        on_choices: bool = False,
    ):
        self.server = replace(server, concurrency=server.concurrency or served.concurrency)
        self.served, self.encoder = served, encoder
        self.settings = settings or config.Extract()
        require_grammar(self.settings, on_choices=on_choices)
        self.calibration: Calibration | None = None
        self.on_choices = on_choices
        self._has_grammar = self.settings.grounded and server.grammar != "none"
        is_known = served.is_guided(on_choices) or encoder.task.answer in GRAMMARS[served.kind]
        self._trial, self._texts = _Trial(), 0
        self._refusal: str | None = None  # the first refusal of a grammar
        self._warnings: set[str] = set()
        self._checked = 0  # answers that were checked against their grammar
        self._vocabulary = len(encoder.tokenizer)  # stored, since `len` counts anew at each call, in half a millisecond
        self._constraint = constraint_of(encoder.tokenizer, self._vocabulary, encoder.stop_id)
        if self._has_grammar and not is_known:
            problem = f"answers of the format {encoder.task.answer} have no grammar that a server of the kind "
            problem += f"{served.kind} takes"
            if server.grammar != "auto":
                raise ConfigError(f"--grammar {server.grammar}: {problem}; give --grammar none, or decode here")
            self._has_grammar = False
            self._warn(f"{problem}: they are read and checked as they come")
        if on_choices and not self._has_grammar:
            raise ConfigError(
                "the run was trained on choices (train.loss_on) and cannot answer without the grammar; give --grammar "
                "vllm or llamacpp, for a server that takes it, or decode here"
            )
        self.gives_scores = served.gives_scores(on_choices=on_choices, has_grammar=self._has_grammar)
        """Whether entities have scores; if not, the run's thresholds cannot be applied."""
        self._guided: Guided | None = None
        if served.is_guided(on_choices):
            self._guided = Guided(served, encoder, self._constraint, self.settings.max_new_tokens)

    @property
    def why_no_scores(self) -> str:
        """Why the run's scores cannot be computed from the server's log-probabilities."""
        return (
            f"under a grammar {self.served.engine} gives log-probabilities among the allowed tokens only, and the "
            "scores of this run, trained on whole answers (train.loss_on), are over the whole vocabulary"
        )

    def stream(self, documents: Iterable[str | Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; see `Extractor.stream`.

        Raises:
            ConfigError: `documents` is a single text, or has a member that is neither a text nor a Document.
            DataError: a text is too long, with `strict`.
            ModelError: the server is down or is not what was expected; with `strict` also if it refuses a text.
        """
        return self._stream(as_documents(documents), strict)

    def _stream(self, documents: Iterator[Prediction], strict: bool) -> Iterator[Extraction]:
        cuts = cutter(self.encoder, self.settings, self.served.window)
        for extraction in by_chunks(documents, cuts, partial(self._ask_all, strict), strict=strict):
            yield calibrated(extraction, self.calibration)

    def _ask_all(self, strict: bool, texts: Iterator[Document]) -> Iterator[Extraction]:
        """Send requests for all `texts`, several at a time; yield their Extractions in order."""
        concurrency = self.server.concurrency or self.served.concurrency
        most = concurrency * AHEAD
        free = threading.Semaphore(concurrency)
        waiting: deque[Future[Extraction]] = deque()
        with Client(self.server) as client:
            for text in texts:
                free.acquire()
                future: Future[Extraction] = Future()
                job = partial(self._ask, client, self._texts, text, strict)
                self._texts += 1
                # Daemon threads are used, not a pool, so that running requests do not delay the end of the process.
                threading.Thread(target=_fulfil, args=(future, job, free), daemon=True).start()
                waiting.append(future)
                while waiting and (len(waiting) >= most or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        if self._trial.only_refusals and self.server.grammar != "auto":
            raise self._takes_none()

    def _ask(self, client: Client, number: int, document: Document, strict: bool) -> Extraction:
        """Ask for the text with this number, under its grammar if one is sent."""
        try:
            if not self._has_grammar:
                return self._answer(client, document, with_grammar=False)
            if self.on_choices:
                return self._answer(client, document, with_grammar=True)
            return self._answer_or_without(client, number, document)
        except Refused as refused:
            if strict:
                raise ModelError(f"{self.server.url}: document {document.id!r}: {refused}") from None
            return failure(document, Status.FAILED, Problem(ProblemKind.SERVER, str(refused)))

    def _answer_or_without(self, client: Client, number: int, document: Document) -> Extraction:
        """Ask under the grammar, or without it if the server refuses it, which is then a problem of the text.

        Raises:
            Refused: the server refuses the text without a grammar too.
            ModelError: the server takes no grammar, but `server.grammar` names its kind explicitly.
        """
        is_accepted: bool | None = None
        refused: Refused | None = None
        tries = self._trial.takes_grammars(number)
        try:
            if tries:
                try:
                    extraction = self._answer(client, document, with_grammar=True)
                    is_accepted = True
                    return extraction
                except Overrun:
                    raise
                except Refused as error:
                    refused = error
            elif self.server.grammar != "auto":
                raise self._takes_none()
            try:
                extraction = self._answer(client, document, with_grammar=False)
            except Refused as error:
                raise refused or error from None
            is_accepted = False if tries else None
            if refused:
                self._refusal = self._refusal or str(refused)
            return replace(extraction, problems=(*extraction.problems, Problem(ProblemKind.UNCONSTRAINED, WITHOUT)))
        finally:
            if self._trial.end(number, is_accepted):
                log.warning(
                    "%s: the server takes no grammar: it refused those of the first %d texts (%s); it is asked without "
                    "from here on", self.server.url, TRIAL, self._refusal,
                )  # fmt: skip

    def _takes_none(self) -> ModelError:
        return ModelError(
            f"{self.server.url}: {self._refusal}; it answers without the grammar: serve with one (vLLM: "
            "--structured-outputs-config.backend guidance), or give --grammar none"
        )

    def _answer(self, client: Client, document: Document, *, with_grammar: bool) -> Extraction:
        if self._guided is not None:
            return read_answer(document, self._guided.answer(client, document), self.encoder)
        task = self.encoder.task
        grammar = self.encoder.format.grammar(document.text, task, None) if with_grammar else None
        question = Question(document.text, self.encoder, self.settings.max_new_tokens, grammar, self.on_choices)
        answer = client.complete(question.request(self.served), question.read)
        return read_answer(document, self._written(answer, grammar), self.encoder)

    def _written(self, answer: Answer, grammar: str | None) -> Written:
        """Return the answer, with its tokens if scores can be computed from their log-probabilities."""
        status = Status.LENGTH if answer.finish == "length" else Status.STOPPED
        ids, logprobs = list(answer.ids), list[float | None](answer.logprobs)
        if ids and ids[-1] == self.encoder.stop_id:
            ids.pop()
        if not ids:
            if answer.text and self.gives_scores:
                self._warn("the server gives no token ids with log-probabilities: entities have no scores")
            return Written(answer.text, status)
        if not all(0 <= index < self._vocabulary for index in ids):  # the server has another tokenizer
            what = "follow the grammar that was sent" if grammar is not None else "consist of the run's tokens"
            self._warn(f"an answer does not {what}: it is read as the server spells it, without scores")
            return Written(answer.text, status)
        # The ids are decoded here, since a server may drop special tokens from its text.
        text = self.encoder.decode(ids)
        if grammar is not None and (self.gives_scores or self._checked < TRIAL):
            self._checked += 1  # not locked: it does no harm if threads check a few answers more or less
            for index in self._forced(ids, grammar):
                logprobs[index] = None
        return Written(text, status, ids, logprobs) if self.gives_scores else Written(text, status)

    def _forced(self, ids: list[int], grammar: str) -> Iterator[int]:
        """Yield the indices of the tokens that the grammar forced."""
        matcher = self._constraint.matcher(grammar)
        forced: list[int] = []
        for index, token in enumerate(ids):
            if not matcher.consume_token(token):
                self._warn("an answer does not follow the grammar that was sent: the server ignores it")
                return
            if forced and forced[0] == token:
                yield index
                del forced[0]
            else:
                forced = matcher.compute_ff_tokens()

    def _warn(self, message: str) -> None:
        """Log a warning about the server once."""
        if message not in self._warnings:
            self._warnings.add(message)
            log.warning("%s: %s", self.server.url, message)


class _Trial:
    """Finds out whether a server takes grammars at all; the first TRIAL texts decide it.

    They may be answered in any order. A later text waits for the decision, so that its result does not depend on how
    long requests take. One answer under a grammar decides for grammars. A text that is refused without a grammar too
    decides nothing.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = self._accepted = self._refused = 0

    @property
    def only_refusals(self) -> bool:
        """Whether grammars were refused, and none was accepted."""
        return bool(self._refused) and not self._accepted

    def takes_grammars(self, number: int) -> bool:
        """Return whether the text with this number is to be sent with its grammar; wait until that is decided."""
        with self._changed:
            while number >= TRIAL and not self._accepted and self._ended < TRIAL:
                self._changed.wait()
            return number < TRIAL or not self.only_refusals

    def end(self, number: int, is_accepted: bool | None) -> bool:
        """Record whether the server accepted the grammar of a text; return whether this decides against grammars.

        `is_accepted` is None if the text says nothing about grammars.
        """
        if number >= TRIAL:
            return False
        with self._changed:
            self._ended += 1
            self._accepted += is_accepted is True
            self._refused += is_accepted is False
            self._changed.notify_all()
            return self._ended == TRIAL and self.only_refusals


def _fulfil(future: Future[Extraction], job: Callable[[], Extraction], free: threading.Semaphore) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
    finally:
        free.release()


def load_remote(
    run: str | Path,
    server: Server,
    settings: config.Extract | None = None,
    min_score: float | None = None,
    *,
    accept_changes: bool = False,
) -> RemoteExtractor:
    """Load the RemoteExtractor of a finished run whose model `server` serves; other arguments are those of `load_run`.

    Raises:
        ConfigError: the run reads spans; the server does not have the model; or `min_score` is not a probability, or is
            above 0 although the run's scores cannot be computed from the server's log-probabilities (see
            `Served.gives_scores`).
        RunError: the folder is not a run, has no adapter yet, its adapter was changed, or its calibration is damaged.
        ModelError: the server cannot be reached.
    """
    folder = RunFolder(Path(run))
    recipe, task = folder.config(), folder.adapter_task(accept_changes=accept_changes)
    if task.reads:
        raise ConfigError(
            f"{run}: the run reads spans (task.answer=spans): it writes no answer that a server could give, and no "
            "server has its head; extract here, with --engine local"
        )
    check_head_files(folder.adapter, task)
    calibration = Calibration.load(folder.path)
    if min_score is not None:
        calibration = (calibration or Calibration()).with_min_score(min_score)
    encoder = Encoder(load_tokenizer(folder.adapter, folder.model().source), task, recipe.train.max_tokens)
    with Client(server) as client:
        served = identify(choose(client.models(), server), client)
    extractor = RemoteExtractor(server, served, encoder, settings or recipe.extract, on_choices=recipe.train.on_choices)
    log.info(
        "%s: %s, model %s, %s tokens at most, %d requests at a time",
        server.url, served.engine, served.model, served.window or "unknown", extractor.server.concurrency,
    )  # fmt: skip
    if extractor.gives_scores:
        extractor.calibration = calibration
        return extractor
    if min_score:
        raise ConfigError(
            f"--min-score: {extractor.why_no_scores}; give --min-score 0 for all entities without scores, "
            "or decode here"
        )
    if min_score is None:
        what = "entities have no scores"
        what += ", and the run's thresholds are not applied" if calibration and calibration.has_thresholds else ""
        log.warning(
            "%s: %s: %s; --min-score 0 accepts that; for scores decode here, or send no grammar (--grammar none)",
            server.url, extractor.why_no_scores, what,
        )  # fmt: skip
    return extractor
