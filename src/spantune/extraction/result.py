"""An engine's answer becomes an Extraction: parsing, scores, calibration, and the rates of answers with problems."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from spantune.core import Document, Entity, Extraction, Problem, ProblemKind, Status, first_line, masked
from spantune.encoding import Encoder
from spantune.extraction.vocabulary import spelling_of
from spantune.metrics import Calibration


@dataclass(frozen=True)
class Written:
    """An answer as an engine wrote it: its text, its status, and its tokens where the engine reports them.

    `ids` are the token ids of `text`. `logprobs` has the natural logarithm of the probability of each token, or None
    for a token that the grammar forced. Both are empty where the engine does not report tokens.
    """

    text: str
    status: Status
    ids: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()


@dataclass(frozen=True)
class Ended:
    """The result of the text that was submitted under `number`; `error` is the exception if its forward pass failed."""

    number: int
    extraction: Extraction
    error: Exception | None = None


def calibrated(extraction: Extraction, calibration: Calibration | None) -> Extraction:
    """Return `extraction` with calibrated scores; entities below their threshold move to its `below_threshold`."""
    if calibration is None:
        return extraction
    document, below_threshold = calibration.apply(extraction.document)
    return replace(extraction, document=document, below_threshold=below_threshold)


def read_answer(document: Document, written: Written, encoder: Encoder) -> Extraction:
    """Parse the answer for `document` into an Extraction.

    The score of an entity is the product of the probabilities of the tokens that state its mention and its label;
    tokens that the grammar forced are left out. Entities have no score if `written` has no token ids. Where the task is
    not nested, entities that overlap a better one are dropped and reported as problems. If the answer was cut at its
    limit or because it repeated itself, an `invalid` problem at its end is reported as `truncated`.
    """
    parsed = encoder.format.parse(written.text, document.text, encoder.task)
    tokens_of = _token_finder(written, encoder) if parsed.resolved else None
    entities = []
    for resolved in parsed.resolved:
        entity = resolved.entity
        if written.ids and tokens_of:
            entity_tokens = tokens_of(resolved.span) | tokens_of(resolved.label_span)
            score = math.exp(sum(written.logprobs[index] or 0.0 for index in entity_tokens))
            entity = replace(entity, score=score)
        entities.append(entity)
    problems = parsed.problems
    if not encoder.task.nested:
        entities, dropped = without_overlaps(entities)
        surfaces = [document.surface(entity) for entity in dropped]
        problems = (*(Problem(ProblemKind.OVERLAPPING, surface) for surface in surfaces), *problems)
    was_cut = written.status in (Status.LENGTH, Status.REPEATED)
    if was_cut and problems and problems[-1].kind is ProblemKind.INVALID:
        problems = (*problems[:-1], Problem(ProblemKind.TRUNCATED, problems[-1].found))
    annotated = document.with_entities(entities)
    return Extraction(annotated, written.text, written.status, problems)


def _token_finder(written: Written, encoder: Encoder) -> Callable[[tuple[int, int]], set[int]]:
    """Return a function that gives the indices of the tokens that begin inside a span of the answer.

    The spans that are asked for begin and end at an ASCII character. Such a character is never divided between tokens.
    """
    offsets = spelling_of(encoder.tokenizer).offsets(written.ids, written.text)
    if offsets is not None:
        return lambda span: set(range(*(bisect_left(offsets, end) for end in span)))
    token_indices = range(len(written.ids))

    @cache  # entities that are close together look up the same tokens
    def first_character(token_index: int) -> int:
        return len(encoder.decode(written.ids[:token_index]))

    return lambda span: set(range(*(bisect_left(token_indices, end, key=first_character) for end in span)))


def without_overlaps(entities: Iterable[Entity]) -> tuple[list[Entity], list[Entity]]:
    """Divide entities into those that are kept and those that are dropped, so that no two that are kept overlap.

    The entity with the higher score is kept; an entity without a score counts as 1. At equal scores the entity that
    starts earlier is kept, and of two with the same start the longer one.

    Returns:
        The kept and the dropped entities, each in this order of preference.
    """

    def rank(entity: Entity) -> tuple[float, int, int, str]:
        score = 1.0 if entity.score is None else entity.score
        return -score, entity.start, -entity.end, entity.label

    ordered = sorted(entities, key=rank)
    covered = bytearray(max((entity.end for entity in ordered), default=0))
    kept, dropped = list[Entity](), list[Entity]()
    for entity in ordered:
        if 1 in covered[entity.start : entity.end]:
            dropped.append(entity)
        else:
            covered[entity.start : entity.end] = b"\1" * (entity.end - entity.start)
            kept.append(entity)
    return kept, dropped


def failure(document: Document, status: Status, problem: Problem) -> Extraction:
    """Return the Extraction of a document that has no answer; credentials in the problem's text are masked."""
    problem = replace(problem, found=masked(problem.found))  # an error message may quote a URL or a key
    return Extraction(document.with_entities(()), "", status, (problem,))


def failed(document: Document, error: Exception) -> Extraction:
    """Return the `failed` Extraction of a document whose answer could not be computed or read because of `error`."""
    return failure(document, Status.FAILED, Problem(ProblemKind.INVALID, first_line(error)))


def rates(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Return the share of documents with each kind of trouble, from 0 to 1.

    `invalid_rate`: a part of the answer was not of the format, or had an unknown label. `repaired_rate`: a part was
    repaired. `ungrounded_rate`: a mention was not in the text. `non_stop_rate`: the status is not `stopped`.
    """
    total = max(1, len(extractions))

    def share(*kinds: ProblemKind) -> float:
        return sum(any(problem.kind in kinds for problem in extraction.problems) for extraction in extractions) / total

    return {
        "invalid_rate": share(ProblemKind.INVALID, ProblemKind.LABEL),
        "repaired_rate": share(ProblemKind.REPAIRED),
        "ungrounded_rate": share(ProblemKind.UNGROUNDED),
        "non_stop_rate": sum(extraction.status is not Status.STOPPED for extraction in extractions) / total,
    }
