"""From an engine's answer to an Extraction: parsing, scores, calibration, and the rates of answers with problems."""

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
    """An answer as an engine wrote it, and how it ended.

    `ids` are its tokens and `logprobs` their log-probabilities, None for a token that the grammar forced. An engine
    that does not know them gives none.
    """

    text: str
    status: Status
    ids: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()


@dataclass(frozen=True)
class Ended:
    """What came of a text that was submitted under `number`; `error` is the pass that failed where one did."""

    number: int
    extraction: Extraction
    error: Exception | None = None


def calibrated(extraction: Extraction, calibration: Calibration | None) -> Extraction:
    """Return `extraction` with calibrated scores, and without the entities whose score is below a threshold."""
    if calibration is None:
        return extraction
    document, below_threshold = calibration.apply(extraction.document)
    return replace(extraction, document=document, below_threshold=below_threshold)


def read_answer(document: Document, written: Written, encoder: Encoder) -> Extraction:
    """Parse the answer for `document`; an entity's score is the probability of its tokens that were not forced."""
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
    """Return the function that gives the indices of the tokens in a span of the answer.

    A span begins and ends at an ASCII character, which no token has only a part of.
    """
    offsets = spelling_of(encoder.tokenizer).offsets(written.ids, written.text)
    if offsets is not None:
        return lambda span: set(range(*(bisect_left(offsets, end) for end in span)))
    token_indices = range(len(written.ids))

    @cache  # entities look for their tokens between the same ones
    def first_character(token_index: int) -> int:
        return len(encoder.decode(written.ids[:token_index]))

    return lambda span: set(range(*(bisect_left(token_indices, end, key=first_character) for end in span)))


def without_overlaps(entities: Iterable[Entity]) -> tuple[list[Entity], list[Entity]]:
    """Return the entities that are kept where none may overlap, and those that are dropped.

    The one with the higher score is kept (one without a score counts as 1), of equals the earlier, then the longer one.
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
    """Return the Extraction of a document without an answer."""
    problem = replace(problem, found=masked(problem.found))  # an error may quote a URL or a key
    return Extraction(document.with_entities(()), "", status, (problem,))


def failed(document: Document, error: Exception) -> Extraction:
    """Return the Extraction of a document that could not be computed or read."""
    return failure(document, Status.FAILED, Problem(ProblemKind.INVALID, first_line(error)))


def rates(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Return the shares of documents whose answer was invalid, repaired or ungrounded, or did not stop by itself."""
    total = max(1, len(extractions))

    def share(*kinds: ProblemKind) -> float:
        return sum(any(problem.kind in kinds for problem in extraction.problems) for extraction in extractions) / total

    return {
        "invalid_rate": share(ProblemKind.INVALID, ProblemKind.LABEL),
        "repaired_rate": share(ProblemKind.REPAIRED),
        "ungrounded_rate": share(ProblemKind.UNGROUNDED),
        "non_stop_rate": sum(extraction.status is not Status.STOPPED for extraction in extractions) / total,
    }
