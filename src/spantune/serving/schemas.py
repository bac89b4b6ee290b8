"""The JSON of the HTTP interface: the bodies of requests and of answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from spantune.core import Entity, Extraction, half_surrogate
from spantune.extraction import Options

SHORT = Field(min_length=1, max_length=256)


class Strict(BaseModel):
    """A value that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_encodable(text: str) -> str:
    if half_surrogate(text) is not None:
        raise ValueError("half a surrogate pair, which UTF-8 does not have")
    return text


class TextIn(Strict):
    """A text to extract from."""

    id: Annotated[str, Field(max_length=256), AfterValidator(_is_encodable)] | None = None
    text: str


class ExtractIn(Strict):
    """A request of `/v1/extract`: one text or several documents, and options that replace the run's settings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "患者因急性阑尾炎行腹腔镜手术。"},
                {"documents": [{"id": "a", "text": "胸片示右下肺炎。"}, {"text": "未见异常。"}], "min_score": 0.5},
            ]
        }
    )
    text: str | None = None
    documents: Annotated[tuple[TextIn, ...], Field(min_length=1)] | None = None
    model: Annotated[str, SHORT] | None = Field(None, description="A name of /v1/models; the first run if absent.")
    min_score: float | None = Field(None, ge=0, le=1, description="Drops entities with a lower score.")
    labels: Annotated[tuple[Annotated[str, SHORT], ...], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Only entities of these labels."
    )
    chunk_tokens: int | None = Field(None, ge=1, le=1 << 20, description="Tokens of a text that are read at once.")
    overlap: int | None = Field(None, ge=0, le=1 << 20, description="Characters that two chunks share.")
    all_scores: StrictBool = Field(False, description="Also tell the entities below the threshold.")

    @model_validator(mode="after")
    def _has_text_or_documents(self) -> ExtractIn:
        if (self.text is None) == (self.documents is None):
            raise ValueError("give either text or documents")
        return self

    @property
    def options(self) -> Options:
        """The options of the request."""
        return Options(self.min_score, self.labels, self.chunk_tokens, self.overlap, self.all_scores)


class EntityOut(BaseModel):
    """An entity: half-open offsets in Unicode code points, and a score from 0 to 1."""

    start: int
    end: int
    label: str
    text: str
    score: float | None = None


class ProblemOut(BaseModel):
    """What was wrong with an answer or a document."""

    kind: str
    found: str


class Extracted(BaseModel):
    """The entities of a text, how its answer ended, and what was wrong with it."""

    entities: list[EntityOut]
    below_threshold: list[EntityOut] | None = None
    status: str
    problems: list[ProblemOut]


class ExtractedText(Extracted):
    """The answer for one text."""

    model: str


class ExtractedDocument(Extracted):
    """One document in the answer for several documents."""

    id: str


class ExtractedDocuments(BaseModel):
    """The answer for several documents, in the order of the request."""

    documents: list[ExtractedDocument]
    model: str


class LabelOut(BaseModel):
    """An entity type."""

    code: str
    name: str
    description: str
    colour: tuple[str, str] = Field(description="For a light page and for a dark one.")


class TaskOut(BaseModel):
    """The task of a run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "demo",
                    "answer": "spans",
                    "instruction": "Find all medical entities.",
                    "language": "zh",
                    "nested": True,
                    "labels": [{"code": "dis", "name": "疾病", "description": "", "colour": ["#1771e3", "#83b1e9"]}],
                }
            ]
        }
    )
    model: str
    answer: str
    instruction: str
    language: str
    nested: bool
    labels: list[LabelOut]


class ModelOut(BaseModel):
    """A run that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["spantune"] = "spantune"
    fingerprint: str
    answer: str


class ModelsOut(BaseModel):
    """The runs that are served."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [
                        {
                            "id": "demo",
                            "object": "model",
                            "created": 1795880305,
                            "owned_by": "spantune",
                            "fingerprint": "baed9d7d15b1",
                            "answer": "spans",
                        }
                    ],
                }
            ]
        }
    )
    object: Literal["list"] = "list"
    data: list[ModelOut]


EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}
"""The schema of a server-sent event in OpenAPI, which describes a stream by one of its events."""


def example_of(
    example: object, *, status: int = 200, kind: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entry with an example of an answer."""
    return {status: {"content": {kind: {"example": example}}}}


def extracted(extraction: Extraction, *, whole: bool = False) -> dict[str, Any]:
    """Return the fields of `Extracted` for an Extraction; with `whole` also the entities below the threshold."""
    text = extraction.document.text
    answer: dict[str, Any] = {"entities": [_entity(entity, text) for entity in extraction.document.entities]}
    if whole:
        answer["below_threshold"] = [_entity(entity, text) for entity in extraction.below_threshold]
    answer["status"] = str(extraction.status)
    answer["problems"] = [{"kind": str(problem.kind), "found": problem.found} for problem in extraction.problems]
    return answer


def _entity(entity: Entity, text: str) -> dict[str, Any]:
    score = None if entity.score is None else round(entity.score, 6)
    surface = text[entity.start : entity.end]
    return {"start": entity.start, "end": entity.end, "label": entity.label, "text": surface, "score": score}
