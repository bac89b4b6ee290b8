"""Extraction: a document with the entities that a model found, how its answer ended, and the problems of the answer.

In a file, an Extraction is a document in the native JSONL format. If something went wrong, the keys `status` and
`problems` of its `meta` say what. `to_document` adds these keys and `from_document` removes them; no other module uses
them. So the `meta` of a Document in memory holds only what the user put there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from html import escape

from spantune.core.document import Document, Entity, to_record
from spantune.core.drawing import document_html, entities_html, framed_html, table_html
from spantune.core.errors import DataError, expect
from spantune.core.frames import number


class Status(StrEnum):
    """How the answer for a document ended.

    - `stopped`: the model ended the answer.
    - `length`: the answer was cut off at `extract.max_new_tokens`.
    - `repeated`: the answer was cut off because it only repeated itself.
    - `failed`: decoding under the grammar of this text failed, or a server did not answer.
    - `refused`: there is no answer, because the text is too long.
    - `unreadable`: there is no answer, because the text could not be read.
    """

    STOPPED = "stopped"
    LENGTH = "length"
    REPEATED = "repeated"
    FAILED = "failed"
    REFUSED = "refused"
    UNREADABLE = "unreadable"

    @property
    def is_failure(self) -> bool:
        """Whether there is no whole answer, so that missing entities do not mean that the text has none."""
        return self in (Status.FAILED, Status.REFUSED, Status.UNREADABLE)


class ProblemKind(StrEnum):
    """The kind of a problem of a part of an answer, or of a document.

    - `invalid`: a part of the answer does not follow the answer format.
    - `label`: an entity has a label that the task does not have.
    - `ungrounded`: a mention does not occur in the text.
    - `repeated`: a mention was written more often than it occurs in the text.
    - `truncated`: an object was incomplete when the answer was cut off.
    - `grammar`: decoding under the grammar of the text failed.
    - `repaired`: a part of the answer deviates slightly from the format and was read nevertheless.
    - `overlapping`: an entity was dropped because it overlaps one with a higher score, and the task does not allow
      overlaps.
    - `unconstrained`: the server refused the grammar of the text and answered without it.
    - `server`: the server did not answer for this document.
    - `refused`: the text is too long.
    - `unreadable`: the text could not be read.
    """

    INVALID = "invalid"
    LABEL = "label"
    UNGROUNDED = "ungrounded"
    REPEATED = "repeated"
    TRUNCATED = "truncated"
    GRAMMAR = "grammar"
    REPAIRED = "repaired"
    OVERLAPPING = "overlapping"
    UNCONSTRAINED = "unconstrained"
    SERVER = "server"
    REFUSED = "refused"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of an answer or a document.

    Args:
        kind: what kind of problem it is.
        found: the part of the answer that has the problem, or an error message.
    """

    kind: ProblemKind
    found: str


@dataclass(frozen=True)
class Extraction:
    """The result of extracting entities from one document.

    With only `document` given, it is a prediction of which nothing else is known.

    The score of an entity is the probability of its tokens that the grammar did not force, or, for a run that reads
    spans, the probability that the head gives. If the extractor has a calibration, the score is calibrated.

    Args:
        document: the text with the entities that were found.
        answer: the answer as the model wrote it; "" for a run that reads spans.
        status: how the answer ended.
        problems: the problems of the answer or the document.
        below_threshold: the entities that were dropped because their score is below the threshold.
        contradicted: the entities that were dropped because they conflict with an entity of another chunk of the text.

    Raises:
        ConfigError: `document` is not a Document.
    """

    document: Document
    answer: str = ""
    status: Status = Status.STOPPED
    problems: tuple[Problem, ...] = ()
    below_threshold: tuple[Entity, ...] = ()
    contradicted: tuple[Entity, ...] = ()

    def __post_init__(self) -> None:
        expect(self.document, Document, "Extraction", "a Document")

    def __repr__(self) -> str:
        problems = f", {number(len(self.problems), 'problem')}" if self.problems else ""
        return f"Extraction({self.document!r}, {self.status}{problems})"

    def _repr_html_(self) -> str:
        if not self.has_problem:
            return entities_html(self.document)
        rows = [(str(problem.kind), problem.found) for problem in self.problems]
        problems = table_html(("problem", "found"), rows) if rows else ""
        return framed_html(f"{document_html(self.document)}<p>status: {escape(self.status)}</p>{problems}")

    @property
    def has_problem(self) -> bool:
        """Whether the answer did not end by itself, has a problem, or is missing."""
        return self.status is not Status.STOPPED or bool(self.problems)


Prediction = Document | Extraction
"""What can be scored: a document with predicted entities, or an Extraction, which also describes the answer."""


def as_extraction(prediction: Prediction) -> Extraction:
    """Return `prediction` as an Extraction."""
    return prediction if isinstance(prediction, Extraction) else Extraction(prediction)


def to_document(extraction: Extraction) -> Document:
    """Return the document that is written into a file; if something went wrong, `meta` has `status` and `problems`.

    If `meta` already has a key `status` or `problems` of the user, it is renamed to `own_status` or `own_problems`.
    Keys that an earlier extraction of the same text wrote are replaced.
    """
    document = from_document(extraction.document).document
    if not extraction.has_problem:
        return document
    meta = dict(document.meta)
    for name in ("status", "problems"):
        free_name = name
        while free_name in meta:
            free_name = f"own_{free_name}"
        if free_name != name:
            meta[free_name] = meta.pop(name)
    problems = [{"kind": str(problem.kind), "found": problem.found} for problem in extraction.problems]
    return replace(document, meta={**meta, "status": str(extraction.status), "problems": problems})


def from_document(document: Document) -> Extraction:
    """Return the Extraction that `to_document` turned into `document`; this is the inverse of `to_document`.

    `status` and `problems` are removed from `meta`. If their values cannot come from `to_document`, they belong to the
    user and stay.
    """
    meta = dict(document.meta)
    try:
        status, problems = Status(str(meta.pop("status"))), _problems(meta.pop("problems"))
    except (KeyError, ValueError, TypeError):
        return Extraction(document)
    extraction = Extraction(replace(document, meta=meta), status=status, problems=problems)
    return extraction if extraction.has_problem else Extraction(document)


def to_prediction_record(extraction: Extraction) -> dict[str, object]:
    """Return the JSON object of a line of a predictions file.

    It is the native document of `to_document`, with the answer as `answer` and, if there are any, the entities below
    the threshold as `meta.left_out`.
    """
    document = to_document(extraction)
    if extraction.below_threshold:
        rows = to_record(document.with_entities(extraction.below_threshold))["entities"]
        document = replace(document, meta={**document.meta, "left_out": rows})
    return {**to_record(document), "answer": extraction.answer}


def from_prediction_record(document: Document, answer: str) -> Extraction:
    """Return the Extraction of a line of a predictions file; this is the inverse of `to_prediction_record`.

    Args:
        document: the document of the line.
        answer: the value of its key `answer`.
    """
    extraction = replace(from_document(document), answer=answer)
    meta = dict(extraction.document.meta)
    try:
        below_threshold = document.with_entities(map(_entity, _rows(meta.pop("left_out")))).entities
    except (KeyError, ValueError, TypeError, DataError):
        return extraction
    return replace(extraction, document=replace(extraction.document, meta=meta), below_threshold=below_threshold)


def _problems(rows: object) -> tuple[Problem, ...]:
    """Read the rows of `meta.problems`.

    Raises:
        ValueError, KeyError: the rows were not written by `to_document` and belong to the user.
    """
    problems = []
    for row in _rows(rows):
        kind, found = row["kind"], row["found"]
        if len(row) != 2 or not (isinstance(kind, str) and isinstance(found, str)):
            raise ValueError("not a problem")
        problems.append(Problem(ProblemKind(kind), found))
    return tuple(problems)


def _entity(row: Mapping[str, object]) -> Entity:
    """Read a row of `meta.left_out`.

    Raises:
        ValueError, KeyError: the row was not written by `to_prediction_record` and belongs to the user.
    """
    start, end, label, score = row["start"], row["end"], row["label"], row.get("score")
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str)):
        raise ValueError("not an entity")
    return Entity(start, end, label, float(score) if isinstance(score, int | float) else None)


def _rows(value: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError("not a list of objects")
    return value
