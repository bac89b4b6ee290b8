"""Extraction: a document as a model annotated it, how its answer ended, and what was wrong with it.

In files an Extraction is its document in native JSONL. Where something went wrong, `meta.status` and `meta.problems`
say what; `to_document` puts them there and `from_document` takes them out again, so that no other module looks for
them. In memory `Document.meta` holds nothing but what is the user's.
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

    - `stopped`: the model ended it.
    - `length`: it reached `extract.max_new_tokens`.
    - `repeated`: it was stopped because it only repeated itself.
    - `failed`: the grammar of this text could not be followed to the end, or a server did not answer.
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
        """Whether the document has no whole answer: that it has no entities does not mean that there are none."""
        return self in (Status.FAILED, Status.REFUSED, Status.UNREADABLE)


class ProblemKind(StrEnum):
    """What was wrong with a part of an answer, or with a document.

    - `invalid`: a part of the answer is not of its format.
    - `label`: a label that the task does not have.
    - `ungrounded`: a mention that is not in the text.
    - `repeated`: a mention that was written more often than the text holds it.
    - `truncated`: an object that was not complete when the answer was cut off.
    - `grammar`: the grammar of the text could not be followed.
    - `repaired`: a part that is not quite of the format and was read all the same.
    - `overlapping`: an entity that was dropped because it overlaps one with a higher score, for a task whose entities
      do not overlap.
    - `unconstrained`: the server refused the grammar of the text, and answered without it.
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
    """A problem of an answer or a document: `found` is the part of the answer, or an error message."""

    kind: ProblemKind
    found: str


@dataclass(frozen=True)
class Extraction:
    """What a model made of one document; by default a prediction of which nothing else is known.

    Entities have as score the probability of the tokens that the grammar did not force, calibrated where the extractor
    has a calibration.

    Args:
        document: the text with the entities.
        answer: the answer as the model wrote it.
        status: how the answer ended.
        problems: what was wrong with it.
        below_threshold: entities that were dropped because of their score.
        contradicted: entities that were dropped because another chunk of the text contradicts them.
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
        """Whether anything was wrong with the answer, or there is none."""
        return self.status is not Status.STOPPED or bool(self.problems)


Prediction = Document | Extraction
"""What may be scored: a document with predicted entities, alone or with what is known of its answer."""


def as_extraction(prediction: Prediction) -> Extraction:
    """Return `prediction` as an Extraction."""
    return prediction if isinstance(prediction, Extraction) else Extraction(prediction)


def to_document(extraction: Extraction) -> Document:
    """Return the document as files hold it: with `meta.status` and `meta.problems` where something went wrong.

    A `status` or `problems` of the user's is then called `own_status` or `own_problems`. What an earlier extraction of
    the same text wrote there is replaced.
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
    """Return the Extraction that `to_document` wrote as `document`, which then has only the user's `meta`.

    A `status` and `problems` that `to_document` cannot have written are the user's and stay.
    """
    meta = dict(document.meta)
    try:
        status, problems = Status(str(meta.pop("status"))), _problems(meta.pop("problems"))
    except (KeyError, ValueError, TypeError):
        return Extraction(document)
    extraction = Extraction(replace(document, meta=meta), status=status, problems=problems)
    return extraction if extraction.has_problem else Extraction(document)


def to_prediction_record(extraction: Extraction) -> dict[str, object]:
    """Return the JSON object of a predictions file: with the answer and the entities below the threshold."""
    document = to_document(extraction)
    if extraction.below_threshold:
        rows = to_record(document.with_entities(extraction.below_threshold))["entities"]
        document = replace(document, meta={**document.meta, "left_out": rows})
    return {**to_record(document), "answer": extraction.answer}


def from_prediction_record(document: Document, answer: str) -> Extraction:
    """Return the Extraction that `to_prediction_record` wrote, from the document and the answer of its record."""
    extraction = replace(from_document(document), answer=answer)
    meta = dict(extraction.document.meta)
    try:
        below_threshold = document.with_entities(map(_entity, _rows(meta.pop("left_out")))).entities
    except (KeyError, ValueError, TypeError, DataError):
        return extraction
    return replace(extraction, document=replace(extraction.document, meta=meta), below_threshold=below_threshold)


def _problems(rows: object) -> tuple[Problem, ...]:
    """Read `meta.problems`; raises ValueError for what is the user's."""
    problems = []
    for row in _rows(rows):
        kind, found = row["kind"], row["found"]
        if len(row) != 2 or not (isinstance(kind, str) and isinstance(found, str)):
            raise ValueError("not a problem")
        problems.append(Problem(ProblemKind(kind), found))
    return tuple(problems)


def _entity(row: Mapping[str, object]) -> Entity:
    """Read a row of `meta.left_out`; raises ValueError for what is the user's."""
    start, end, label, score = row["start"], row["end"], row["label"], row.get("score")
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str)):
        raise ValueError("not an entity")
    return Entity(start, end, label, float(score) if isinstance(score, int | float) else None)


def _rows(value: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError("not a list of objects")
    return value
