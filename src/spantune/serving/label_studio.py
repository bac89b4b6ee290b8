"""Label Studio's machine learning backend: predictions for its tasks, and corrections from its annotations.

The routes are at the root for the first run, and under `/label-studio/RUN` for each run. The labelling configuration in
each request says which tags hold text and labels. Label Studio also sends an API key, its host name and the login of
its storage. These are not read into any value, so they are neither stored nor logged. No link is fetched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from spantune.core import DataError, Document, Entity, Extraction
from spantune.data import is_link, predicted_results
from spantune.serving.corrections import Correction, Corrections, checked
from spantune.serving.corrections_api import NO_FOLDER, saved, store_of
from spantune.serving.errors import QUEUE, ApiError
from spantune.serving.health import health
from spantune.serving.label_config import Interface, read_interface
from spantune.serving.requests import ServiceOf, while_connected
from spantune.serving.schemas import example_of
from spantune.serving.service import ServedRun, Service

SECONDS = 80.0
"""Seconds after which a request for predictions is answered with those that are done; Label Studio waits 100."""
UNNAMED = "$undefined$"
"""The field that holds the text if tasks were imported without naming the field."""
_STORED = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
_WITHDRAWN = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED")
_ROOT, _NAMED = "", "/label-studio/{run}"
_VERSION = "demo-baed9d7d15b1"
_REGION = {
    "id": "spantune-1",
    "type": "labels",
    "from_name": "label",
    "to_name": "text",
    "value": {"start": 3, "end": 7, "text": "右下肺炎", "labels": ["dis"]},
    "score": 0.97,
}
_PREDICTION = {"result": [_REGION], "score": 0.97, "model_version": _VERSION}

router = APIRouter(tags=["Label Studio"])
log = logging.getLogger(__name__)


async def run_of(request: Request, service: ServiceOf) -> ServedRun:
    """Return the run that the path of a request names, or the first run at the root; async, as `service_of`.

    Raises:
        UnknownModel: there is no run with this name.
    """
    return service.run(request.path_params.get("run"))


RunOf = Annotated[ServedRun, Depends(run_of)]
"""The type of a handler's parameter that gets the run."""


class SetupIn(BaseModel):
    """What Label Studio sends when it connects; other fields are not read."""

    project: Annotated[str, Field(max_length=256)] = ""
    interface: str = Field(alias="schema")


class TaskIn(BaseModel):
    """A task: the fields of its data, one of which is the text."""

    data: dict[str, Any]


class PredictIn(BaseModel):
    """Tasks to predict, and the labelling configuration of their project."""

    tasks: list[TaskIn]
    label_config: str


class WebhookIn(BaseModel):
    """An event in a project; the other fields depend on the action."""

    action: Annotated[str, Field(max_length=256)]
    annotation: dict[str, Any] | list[dict[str, Any]] | None = None
    annotations: list[dict[str, Any]] | None = None
    task: dict[str, Any] | list[dict[str, Any]] | None = None
    project: dict[str, Any] | None = None


router.get(f"{_NAMED}/health", include_in_schema=False)(health)


@router.post(f"{_ROOT}/setup", responses=example_of({"model_version": _VERSION, "problems": []}))
@router.post(f"{_NAMED}/setup", include_in_schema=False)
async def setup(sent: SetupIn, run: RunOf) -> dict[str, Any]:
    """Connect a project: return the version of the model that predicts, and which labels have no counterpart."""
    interface = _interface(sent.interface, run)
    matched, all_labels = len(interface.label_of), len(run.task.labels)
    said = "Label Studio connects project %.40r: %d of %d labels of the run %s match"
    log.info(said, sent.project, matched, all_labels, run.name)
    for problem in interface.problems:
        log.warning("Label Studio, project %.40r: %.500s", sent.project, problem)
    return {"model_version": version_of(run), "problems": interface.problems}


@router.get(f"{_ROOT}/versions", responses=example_of({"versions": [_VERSION]}))
@router.get(f"{_NAMED}/versions", include_in_schema=False)
async def versions(run: RunOf) -> dict[str, list[str]]:
    """Return the one version that predicts: the run's name and fingerprint."""
    return {"versions": [version_of(run)]}


@router.post(f"{_ROOT}/predict", responses=QUEUE | example_of({"results": [_PREDICTION], "problems": []}))
@router.post(f"{_NAMED}/predict", include_in_schema=False)
async def predict(sent: PredictIn, request: Request, service: ServiceOf, run: RunOf) -> JSONResponse:
    """Predict tasks: return one result for each, in order; a task that cannot be predicted has an error instead.

    A task that is not done after 80 seconds has an error too; Label Studio can send such tasks again.
    """
    interface = _interface(sent.label_config, run)
    texts = [_text_or_error(task.data, interface) for task in sent.tasks]
    documents = {index: Document(str(index), text) for index, text in enumerate(texts) if isinstance(text, str)}
    done = await while_connected(request, _extracted(documents, service, run.name))
    version = version_of(run)
    results: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        if isinstance(text, DataError):
            results.append({"error": text.message, "model_version": version})
        elif index in done:
            results.append(_prediction(done[index], interface, version))
        else:
            results.append({"error": "there was no time for this task; ask again", "model_version": version})
    failed = sum("error" in result for result in results)
    if failed:
        log.warning("Label Studio: %d of %d tasks were not predicted", failed, len(results))
    return JSONResponse({"results": results, "problems": interface.problems})


@router.post(
    f"{_ROOT}/webhook", status_code=201, responses=NO_FOLDER | example_of({"saved": 1, "problems": []}, status=201)
)
@router.post(f"{_NAMED}/webhook", status_code=201, include_in_schema=False)
async def webhook(sent: WebhookIn, request: Request, run: RunOf) -> dict[str, Any]:
    """Store annotations as corrections, and withdraw deleted ones; other events are only acknowledged."""
    if sent.action == "START_TRAINING":
        return {"message": f"run this where the run {run.name} was trained: {COMMAND}"}
    if sent.action not in (*_STORED, *_WITHDRAWN):
        return {"saved": 0}
    store = store_of(request)
    problems: list[str] = []
    try:
        if sent.action in _WITHDRAWN:
            corrections = await asyncio.to_thread(_withdrawals, sent, run, store)
        else:
            interface = _interface(str((sent.project or {}).get("label_config", "")), run)
            corrections, problems = await asyncio.to_thread(_corrections, sent, run, interface, store)
    except DataError as error:
        log.warning("Label Studio: an annotation was not saved (field %s)", error.field)
        raise ApiError(422, "invalid_annotation", str(error), "mend the annotation and submit it again") from None
    if problems:
        log.warning("Label Studio: %.500s", "; ".join(problems))
    await saved(store, corrections)
    return {"saved": len(corrections), "problems": problems}


COMMAND = "spantune train RECIPE 'data.train=[TRAIN.jsonl, corrections.jsonl]' train.from=RUN run.name=NEW_NAME"
"""How to train with the corrections; names in capitals are known only to the user."""


def version_of(run: ServedRun) -> str:
    """Return the version of the model for Label Studio, which asks again for tasks that another version predicted."""
    return f"{run.name}-{run.fingerprint}"


def _interface(xml: str, run: ServedRun) -> Interface:
    try:
        return read_interface(xml, run.task.labels)
    except DataError as error:
        log.warning("Label Studio, run %s: %.500s", run.name, error)
        raise ApiError(
            422, "labelling_interface", str(error), "in Label Studio: Settings, Labeling Interface, Code"
        ) from None


async def _extracted(documents: Mapping[int, Document], service: Service, run: str) -> dict[int, Extraction]:
    """Return the Extractions of all documents, or of those that are done after `SECONDS`, by their keys.

    The documents are submitted in parts of at most `max_documents`, the limit of one request.
    """
    ends = time.monotonic() + SECONDS
    size = service.settings.max_documents
    keys, done = list(documents), dict[int, Extraction]()
    for first in range(0, len(keys), size):
        part = keys[first : first + size]
        results = service.extract(run, [documents[key] for key in part])
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                async for index, extraction in results:
                    done[part[index]] = extraction
        except TimeoutError:
            return done
        except ApiError as error:
            if not done or error.status not in (429, 503):
                raise
            return done
        finally:
            await results.aclose()
    return done


def _text_or_error(data: Mapping[str, Any], interface: Interface) -> str | DataError:
    """Return the text of a task, or an error that does not quote the task if it has no text."""
    value: Any = data.get(interface.key, data.get(UNNAMED))
    if value is None and "." in interface.key:
        value = data
        for part in interface.key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return DataError(
            f"the task has no text in its field {interface.key!r}, which the labelling interface names: name the right "
            "field in <Text value=…>"
        )
    if interface.is_link or is_link(value):
        return DataError("the text of the task is a link, and links are not fetched: import tasks that hold their text")
    return value


def _prediction(extraction: Extraction, interface: Interface, version: str) -> dict[str, Any]:
    """Return the prediction of a task, or an error if the model gave no answer."""
    problems = [f"{problem.kind}: {problem.found}" for problem in extraction.problems]
    if extraction.status.is_failure:
        return {"error": "; ".join(problems) or str(extraction.status), "model_version": version}
    entities = [
        replace(entity, label=interface.label_of[entity.label])
        for entity in extraction.document.entities
        if entity.label in interface.label_of
    ]
    shown = extraction.document.with_entities(entities)
    scores = [entity.score for entity in entities if entity.score is not None]
    answer: dict[str, Any] = {"result": predicted_results(shown, interface.from_name, interface.to_name)}
    if scores:
        answer["score"] = round(min(scores), 6)  # the score of the least sure entity; Label Studio sorts tasks by it
    return answer | {"model_version": version} | ({"problems": problems} if problems else {})


def _corrections(
    sent: WebhookIn, run: ServedRun, interface: Interface, store: Corrections
) -> tuple[list[Correction], list[str]]:
    """Return new or changed annotations as corrections, and a description of what was left out of them.

    Raises:
        DataError: an annotation cannot be read.
    """
    annotations = _rows(sent.annotation, "annotation")
    tasks = _rows(sent.task, "task")
    if len(annotations) != len(tasks):
        raise DataError(f"found {len(annotations)} annotations and {len(tasks)} tasks; expected as many")
    corrections: list[Correction] = []
    problems: list[str] = []
    for annotation, task in zip(annotations, tasks, strict=True):
        name = _name(sent, annotation)
        if annotation.get("was_cancelled"):
            corrections += _withdrawal(name, run, store)
            continue
        text = _text_or_error(task["data"] if isinstance(task.get("data"), dict) else {}, interface)
        if isinstance(text, DataError):
            raise text
        entities, left_out = _entities(annotation, text, interface)
        if left_out:
            problems.append(f"labels that the run does not have were left out: {', '.join(sorted(left_out))}")
        meta: dict[str, object] = {"left_out": sorted(left_out)} if left_out else {}
        if isinstance(annotation.get("completed_by"), int):
            meta["annotator"] = annotation["completed_by"]
        project = (sent.project or {}).get("id")
        document = Document(f"label-studio-{project}-{task.get('id')}", text, tuple(entities), meta)
        corrections.append(
            Correction(checked(document, run.task), run.name, run.fingerprint, "label-studio", annotation=name)
        )
    return corrections, problems


def _entities(annotation: Mapping[str, Any], text: str, interface: Interface) -> tuple[set[Entity], set[str]]:
    """Return the entities of an annotation that have labels of the run, and the labels that the run does not have.

    Raises:
        DataError: a region is not a span of the text.
    """
    entities: set[Entity] = set()
    left_out: set[str] = set()
    for index, result in enumerate(_rows(annotation.get("result"), "annotation.result")):
        if result.get("type") != "labels" or result.get("to_name") != interface.to_name:
            continue
        place, value = f"annotation.result[{index}].value", result.get("value")
        if not isinstance(value, dict) or not isinstance(value.get("labels"), list):
            raise DataError("found no span with labels; expected start, end and labels", field=place)
        start, end = value.get("start"), value.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise DataError(f"the span is empty or outside the text of {len(text)} characters", field=place)
        if isinstance(value.get("text"), str) and value["text"] != text[start:end]:
            raise DataError("the text of the region is not that of the task at its offsets", field=place)
        for label in value["labels"]:
            code = interface.code_of.get(label) if isinstance(label, str) else None
            if code is None:
                left_out.add(str(label)[:60])
            else:
                entities.add(Entity(start, end, code))
    return entities, left_out


def _withdrawals(sent: WebhookIn, run: ServedRun, store: Corrections) -> list[Correction]:
    """Return the records that withdraw deleted annotations; annotations that were never stored have none."""
    deleted = _rows(sent.annotations if sent.annotations is not None else sent.annotation, "annotations")
    return [withdrawal for annotation in deleted for withdrawal in _withdrawal(_name(sent, annotation), run, store)]


def _withdrawal(name: str, run: ServedRun, store: Corrections) -> list[Correction]:
    stored = store.find(name)
    if stored is None:
        return []
    return [Correction(stored, run.name, run.fingerprint, "label-studio", annotation=name, withdrawn=True)]


def _name(sent: WebhookIn, annotation: Mapping[str, Any]) -> str:
    """Return a name for an annotation that stays known after its deletion: project, its creation time, and id."""
    project = sent.project or {}
    parts = (project.get("id"), project.get("created_at"), annotation.get("id"))
    if annotation.get("id") is None or not all(isinstance(part, str | int | None) for part in parts):
        raise DataError("the annotation has no id", field="annotation.id")
    return " ".join(f"{part}"[:60] for part in ("label-studio", *parts))


def _rows(value: object, field: str) -> Sequence[dict[str, Any]]:
    """Return `value`, an object or a list of objects, as a list.

    Raises:
        DataError: it is something else.
    """
    stated = value if isinstance(value, list) else [value]
    rows = [row for row in stated if isinstance(row, dict)]
    if len(rows) < len(stated):
        raise DataError("expected an object, or a list of them", field=field)
    return rows
