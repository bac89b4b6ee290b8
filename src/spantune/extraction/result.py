"""What a model said of documents, whichever engine asked it: long ones taken in chunks, in order, with what went wrong.

An engine decodes texts that fit; here documents become such texts and its answers become documents again. Nothing is
held but what the engine reads ahead. A document that cannot be taken is an error, or, where the engine is told to go
on, an Extraction that says so.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spantune.core import Document, Entity
from spantune.encoding import Encoder, Problem
from spantune.metrics import Calibration

FAILED = ("unreadable", "refused", "failed")
"""The status of documents of which nothing is known: their entities are not none, they are unknown."""
_STATUSES = ("stopped", "length", "repeated", *FAILED)


@dataclass(frozen=True)
class Extraction:
    """What the model said of one document.

    `status` is `stopped`, `length` (the answer reached `extract.max_new_tokens`), `repeated` (it went on saying what it
    had said), `failed` (the grammar of this text could not be followed to the end, or a server would not answer),
    `refused` (the text is too long) or `unreadable` (there is no text). Entities carry as score the probability of
    their unforced tokens, calibrated where the extractor has a calibration; `left_out` are those that came under its
    threshold, `overruled` those that another chunk of the text contradicts. `label_scores` are the bare probabilities
    of the labels alone, given the mentions. The answer is as the model wrote it.
    """

    document: Document
    answer: str
    status: str
    problems: tuple[Problem, ...]
    left_out: tuple[Entity, ...] = ()
    overruled: tuple[Entity, ...] = ()
    label_scores: Mapping[Entity, float] = field(default_factory=dict)

    @property
    def wanting(self) -> bool:
        """Whether anything was wrong with the answer, or there is none."""
        return self.status != "stopped" or bool(self.problems)


@dataclass(frozen=True)
class Written:
    """An answer as an engine wrote it, and why it ended.

    `ids` are its tokens and `logprobs` what each was worth, None for one that the grammar forced; an engine that does
    not know them gives none.
    """

    text: str
    status: str
    ids: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()


def calibrated(extraction: Extraction, calibration: Calibration | None) -> Extraction:
    """With its scores calibrated, and without the entities that come under a threshold."""
    if calibration is None:
        return extraction
    kept, left_out = calibration.apply(extraction.document)
    return replace(extraction, document=kept, left_out=left_out)


def read_answer(document: Document, written: Written, encoder: Encoder) -> Extraction:
    """What an answer says of `document`; an entity's score is the probability of its tokens that were not forced."""
    parsed = encoder.format.parse(written.text, document.text, encoder.task)
    tokens = range(len(written.ids))

    def begin(index: int) -> int:
        return len(encoder.decode(written.ids[:index]))

    def places(span: tuple[int, int]) -> set[int]:  # it begins and ends in ASCII, where `begin` rises
        return set(range(*(bisect_left(tokens, place, key=begin) for place in span)))

    def probability(indices: Iterable[int]) -> float:
        return math.exp(sum(written.logprobs[index] or 0.0 for index in indices))

    entities, label_scores = [], {}
    for item in parsed.resolved:
        entity = item.entity
        if tokens:
            label = places(item.label_span)
            entity = replace(entity, score=probability(places(item.span) | label))
            label_scores[entity] = probability(label)
        entities.append(entity)
    problems = parsed.problems
    if written.status in ("length", "repeated") and problems and problems[-1].kind == "invalid":
        problems = (*problems[:-1], Problem("truncated", problems[-1].found))
    found = document.with_entities(entities)
    return Extraction(found, written.text, written.status, problems, label_scores=label_scores)


def failure(document: Document, status: str, problem: Problem) -> Extraction:
    """The Extraction of a document of which nothing is known."""
    return Extraction(document.with_entities(()), "", status, (problem,))


def annotated(extraction: Extraction) -> Document:
    """The document with what was wrong with its answer in `meta`, where anything was.

    What an earlier extraction of the same text has left there gives way; a `status` or `problems` of the document's own
    is then called `own_status` or `own_problems`.
    """
    document = extraction.document
    meta = dict(document.meta)
    if is_wanting(meta) and (document.text or extraction.wanting):
        del meta["status"], meta["problems"]
    if extraction.wanting:
        problems = [{"kind": problem.kind, "found": problem.found} for problem in extraction.problems]
        for name in ("status", "problems"):
            free = name
            while free in meta:
                free = f"own_{free}"
            if free != name:
                meta[free] = meta.pop(name)
        meta |= {"status": extraction.status, "problems": problems}
    return document if meta == document.meta else replace(document, meta=meta)


def is_wanting(meta: Mapping[str, Any]) -> bool:
    """Whether `annotated` has said in `meta` that an answer was wanting; no other `status` and `problems` look so."""
    problems = meta.get("problems")
    return bool(
        meta.get("status") in _STATUSES
        and isinstance(problems, list)
        and (problems or meta["status"] != "stopped")
        and all(isinstance(problem, dict) and problem.keys() == {"kind", "found"} for problem in problems)
    )


def rates(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Shares of documents whose answer was invalid, mended, named something not in the text, or did not stop."""
    total = max(1, len(extractions))

    def share(*kinds: str) -> float:
        return sum(any(problem.kind in kinds for problem in item.problems) for item in extractions) / total

    return {
        "invalid_rate": share("invalid", "label"),
        "repaired_rate": share("repaired"),
        "ungrounded_rate": share("ungrounded"),
        "non_stop_rate": sum(item.status != "stopped" for item in extractions) / total,
    }
