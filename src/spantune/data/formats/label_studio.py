"""Label Studio's JSON: tasks with `data` and `annotations[].result[]` of type `labels`, and its JSON-MIN export.

Each annotation of a task is a document; a task without annotations gives its predictions, or nothing. Offsets are
half-open code points; older versions counted UTF-16 units. Everything
but the text and its spans (other fields, relations, other results) is kept in meta and written back. The written tasks
can be imported by Label Studio; entities with scores are written as predictions, others as annotations. Exports of
other kinds of tasks, such as choices alone or labels on HTML, are refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from spantune.core import DataError, Document, replacing
from spantune.data.raw.document import (
    Item,
    Options,
    RawDocument,
    RawEntity,
    Row,
    Sample,
    meta_error,
    stored_meta,
    with_rows,
)
from spantune.data.raw.json_records import Record, read_json, to_json

NAME = "label_studio"

Kind = Literal["annotations", "predictions"]

_OWN = "spantune"  # the field of a task's meta in which the writer puts id and meta of the document
_NAMES = {"from_name": "label", "to_name": "text"}
_MADE = re.compile("spantune-[0-9]+")  # the id of a region that the writer made
_MIN_FIELDS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


_HTML = "hypertextlabels"
_OF_HTML = (
    "labels on HTML (<HyperText>), whose offsets count in the rendered page; expected labels on plain text: import the "
    "texts without their tags into a project with <Text>, and label or pre-annotate them there"
)
_LINK = re.compile(r"(?:https?|s3|s3s|gs|azure-blob|file|ftp)://\S+|/?data/(?:upload|local-files)/\S*", re.IGNORECASE)


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    if isinstance(record.get("data"), dict):
        return any(isinstance(record.get(kind), list) for kind in ("annotations", "predictions", "completions"))
    return {"annotator", "annotation_id", "lead_time"} <= record.keys()


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield a document for each annotation, called `<task id>-<annotation id>`; `notes` counts what gives none.

    `options.column` names the text where a task's data have several.

    Raises:
        DataError: the file is neither an array nor JSONL of tasks.
    """
    judge = _Judge(path)
    for record in read_json(path, notes):
        if isinstance(record, DataError):
            yield record
            continue
        try:
            record = record if "data" in record.values else _expanded(record)
            completions = list(_completions(record, notes))
            task = (
                _Task(record, _text_key(record, options), notes, len(completions) > 1, judge) if completions else None
            )
        except DataError as error:
            yield error
            continue
        for number, (kind, completion) in enumerate(completions, start=1):
            assert task is not None
            try:
                yield task.document(kind, completion, number)
            except DataError as error:
                yield error


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as an array of tasks, annotations of one task that follow each other as one.

    Entities with scores become a prediction, whose own score is the lowest of them.

    Raises:
        DataError: the meta under `label_studio` is not what reading keeps, or the file cannot be written.
    """
    with replacing(path) as file:
        before = "[\n"
        for task in _tasks(documents, notes):
            file.write(before + to_json(task))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[\n]\n")


def _expanded(record: Record) -> Record:
    """Return the task of a JSON-MIN record, which is a single annotation."""
    data, results = {}, []
    for name, value in record.others(_MIN_FIELDS).items():
        if isinstance(value, list) and value and all(isinstance(region, dict) for region in value):
            kind = next((field for field in value[0] if field.endswith("labels")), "unknown")
            names = {"from_name": name, "to_name": "text"}
            results += [{"value": region, **names, "type": kind} for region in value]
        else:
            data[name] = value
    names = {"annotation_id": "id", "annotator": "completed_by"}
    fields = {names.get(name, name): record.values[name] for name in _MIN_FIELDS[1:] if name in record.values}
    id = {"id": record.values["id"]} if "id" in record.values else {}
    values = {**id, "data": data, "annotations": [{**fields, "result": results}]}
    return Record(values, record.path, record.line, record.number)


def _completions(task: Record, notes: Counter[str]) -> Iterator[tuple[Kind, Record]]:
    """Yield the annotations of a task that are not cancelled, or the predictions of a task without annotations."""
    stated = "completions" if "completions" in task.values else "annotations"
    annotations = task.rows(stated) if stated in task.values else []
    for annotation in annotations:
        if annotation.values.get("was_cancelled"):
            notes["cancelled annotation skipped"] += 1
        else:
            yield "annotations", annotation
    predictions = task.values.get("predictions")
    is_readable = isinstance(predictions, list) and all(isinstance(prediction, dict) for prediction in predictions)
    count = len(predictions) if isinstance(predictions, list) else int(predictions is not None)
    if annotations:
        notes["prediction not read: its task is annotated"] += count
    elif predictions and is_readable:
        notes["prediction read: its task is not annotated"] += count
        for prediction in task.rows("predictions"):
            yield "predictions", prediction
    else:
        notes["predictions not read: found no list of objects"] += not is_readable and predictions is not None
        notes["task without annotation skipped"] += 1


def _text_key(task: Record, options: Options) -> str:
    """Return the field of the task's data that contains the text."""
    texts = [name for name, value in task.mapping("data").items() if isinstance(value, str)]
    column = options.column
    if column is None and len(texts) == 1:
        return texts[0]
    if column in texts:
        return str(column)
    stated = f"found {', '.join(texts) or 'no text'}"
    expected = "one text" if column is None else f"a text {column!r}"
    raise task.error(f"{stated}; expected {expected}: name the field that holds it with --column NAME", "data")


@dataclass(slots=True)
class _Judge:
    """Says whether any annotation of the file at `path` has labels, which is looked up when it is first asked."""

    path: Path
    known: bool | None = None

    @property
    def has_labels(self) -> bool:
        """Whether there is a result of type `labels` in the file."""
        if self.known is None:
            self.known = any(map(_is_labelled, read_json(self.path, Counter())))
        return self.known


def _is_labelled(record: Record | DataError) -> bool:
    if isinstance(record, DataError):
        return False
    if "data" not in record.values:
        record = _expanded(record)
    completions = [record.values.get(kind) for kind in ("annotations", "completions", "predictions")]
    results = [
        completion.get("result")
        for listed in completions
        if isinstance(listed, list)
        for completion in listed
        if isinstance(completion, dict)
    ]
    rows = [row for result in results if isinstance(result, list) for row in result]
    return any(isinstance(row, dict) and row.get("type") == "labels" for row in rows)


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that is being read: its text is `data[key]`; `several` says whether it has several completions."""

    record: Record
    key: str
    notes: Counter[str]
    several: bool
    judge: _Judge

    def document(self, kind: Kind, completion: Record, number: int) -> RawDocument:
        """Return the document of `completion`, the `number`-th of the task."""
        task, data = self.record, self.record.mapping("data")
        text = task.inner("data").text(self.key, blank=True)
        entities: list[RawEntity] = []
        rows: list[Row] = []
        others: list[dict[str, object]] = []
        for result in completion.rows("result"):
            if result.values.get("type") == "labels":
                region = self._entities(result, text, kind)
                entities += region
                if isinstance(result.values.get("id"), str):
                    rows += [_row(result, entity, kind) for entity in region]
            else:
                others.append(result.values)
        self._judge_others(completion, others, bool(entities))
        self._judge_text(text, entities)
        frame, fields, (own_id, own_meta) = self._frame(), _fields(kind, completion), self._own()
        details = {
            "key": self.key if self.key != "text" else None,
            "data": {name: value for name, value in data.items() if name != self.key},
            "task": frame,
            kind: fields,
            "entities": [row for row in rows if fields or others or not _is_made(row)],
            "results": others,
        }
        details = {name: value for name, value in details.items() if value}
        id = own_id if not self.several else None
        meta = {**_derived(frame, fields), **own_meta, **({NAME: details} if details else {})}
        return RawDocument(id or self._id(fields, number), text, tuple(entities), task.path, task.line, meta)

    def _frame(self) -> dict[str, object]:
        """Return the task's fields without its data, its completions and the writer's part of its meta."""
        frame = self.record.others(("data", "annotations", "predictions", "completions"))
        frame["meta"] = {name: value for name, value in self._meta().items() if name != _OWN} or None
        return {name: value for name, value in frame.items() if value is not None or name not in ("id", "meta")}

    def _meta(self) -> dict[str, object]:
        return self.record.mapping("meta") if self.record.values.get("meta") else {}

    def _own(self) -> tuple[str | None, dict[str, object]]:
        """Return the document's id and meta that the writer put into the task's meta."""
        own = Record(self._meta(), self.record.path, self.record.line, inside="meta.").inner(_OWN)
        return own.text("id") if "id" in own.values else None, own.mapping("meta")

    def _id(self, fields: Mapping[str, object], number: int) -> str:
        own_id, _ = self._own()
        task = self.record.values.get("id") if own_id is None else own_id
        if task is None:
            task = f"{self.record.path.stem}-{self.record.number}"
        completion = fields.get("id")
        if completion is None and self.several:
            completion = number
        return _joined(task, completion)

    def _judge_others(self, completion: Record, others: list[dict[str, object]], labelled: bool) -> None:
        """Count the results that are not spans; refuse an annotation without spans in a file without any."""
        kinds = Counter(str(other.get("type")) for other in others)
        del kinds["relation"]
        if _HTML in kinds:
            raise completion.error(f"found results of type {_HTML}, {_OF_HTML}", "result")
        if kinds and not labelled and not self.judge.has_labels:
            raise completion.error(
                f"found results of type {', '.join(sorted(kinds))}; expected labels, spans of a text: export a project "
                "whose labelling interface has <Labels> on a <Text>",
                "result",
            )
        for kind, number in kinds.items():
            self.notes[f"result of type {kind!r} kept in meta only"] += number

    def _judge_text(self, text: str, entities: list[RawEntity]) -> None:
        """Refuse a text that is the address of a text, unless a region states a text that stands in it."""
        if _LINK.fullmatch(text.strip()) and not any(entity.surface and entity.surface in text for entity in entities):
            raise self.record.error(
                f'found {text.strip()[:60]!r}, which is a link to a text (valueType="url"), and offsets count in that '
                "text, which the export does not have; put the texts themselves into the tasks and export again",
                f"data.{self.key}",
            )

    def _entities(self, result: Record, text: str, kind: Kind) -> list[RawEntity]:
        value = result.inner("value")
        value.note_others(("start", "end", "text", "labels"), self.notes)
        if "globalOffsets" in value.values or str(value.values.get("start")).startswith("/"):
            raise value.error(f"found offsets in elements of a page, {_OF_HTML}", "start")
        start, end = value.integer("start"), value.integer("end")
        surface = value.text("text") if value.values.get("text") is not None else None
        labels = value.values.get("labels")
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
            raise value.error(
                f"found {json.dumps(labels)[:60]}; expected a list of labels: give the region one", "labels"
            )
        has_score = kind == "predictions" and result.values.get("score") is not None
        score = result.score("score") if has_score else None
        field = value.place("end" if surface is None else "text")
        return [RawEntity(start, end, label, surface, score, field) for label in labels]


def _row(result: Record, entity: RawEntity, kind: Kind) -> Row:
    """Return the fields of a region that are kept in meta."""
    known = ("value", "type", "score") if kind == "predictions" else ("value", "type")
    return {**result.others(known), "start": entity.start, "end": entity.end, "label": entity.label}


def _is_made(row: Row) -> bool:
    """Whether the writer would produce the same region."""
    names = {name: value for name, value in row.items() if name not in ("id", "start", "end", "label")}
    return names == _NAMES and bool(_MADE.fullmatch(str(row["id"])))


def _fields(kind: Kind, completion: Record) -> dict[str, object]:
    """Return the fields of a completion without its result; none for a prediction that the writer would produce."""
    fields = completion.others(("result",))
    made = kind == "predictions" and fields.keys() <= {"model_version", "score"} and fields.get("model_version") == _OWN
    return {} if made else fields


def _derived(frame: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, object]:
    """Return the meta that is derived from the fields of a task and an annotation."""
    group = {"group": str(frame["id"])} if "id" in frame else {}
    return group | ({"annotator": fields["completed_by"]} if "completed_by" in fields else {})


def _joined(task: object, completion: object) -> str:
    return f"{task}" if completion is None else f"{task}-{completion}"


def _tasks(documents: Iterable[Document], notes: Counter[str]) -> Iterator[dict[str, object]]:
    """Yield the tasks to write; consecutive completions of the same task are put together."""
    last: dict[str, object] | None = None
    completions: list[dict[str, object]] = []
    for document, kind in _with_kind(documents):
        task, completion = _task(document, kind, notes)
        if last is not None and "id" in task and last == {**task, kind: last.get(kind)}:
            completions.append(completion)
            continue
        if last is not None:
            yield last
        completions = [completion]
        last = {**task, kind: completions}
    if last is not None:
        yield last


def _with_kind(documents: Iterable[Document]) -> Iterator[tuple[Document, Kind]]:
    """Yield each document and its kind; one without entities has the kind of the previous document, or of the next."""
    waiting: list[Document] = []
    kind: Kind | None = None
    for document in documents:
        if any(entity.score is not None for entity in document.entities) or "predictions" in stored_meta(
            document, NAME
        ):
            kind = "predictions"
        elif document.entities:
            kind = "annotations"
        waiting.append(document)
        if kind is not None:
            yield from ((held, kind) for held in waiting)
            waiting = []
    yield from ((held, "annotations") for held in waiting)


def _task(document: Document, kind: Kind, notes: Counter[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Return the task of `document` without completions, and the completion with the document's entities."""
    values = stored_meta(document, NAME)
    frame, fields, data = (_object(document, name, values.get(name)) for name in ("task", kind, "data"))
    pairs, gone = with_rows(document, NAME)
    stale = kind == "predictions" and (bool(gone) or not all(row for _, row in pairs))
    if values.keys() & {"annotations", "predictions"} - {kind} or (stale and fields):
        notes["fields of the annotation left out: its entities are predicted anew"] += 1
        fields = {}
    derived = _derived(frame, fields)
    meta = {name: value for name, value in document.meta.items() if name != NAME and derived.get(name, NAME) != value}
    own: dict[str, object] = {} if document.id == _joined(frame.get("id"), fields.get("id")) else {"id": document.id}
    own |= {"meta": meta} if meta else {}
    task = {**frame, "data": {str(values.get("key", "text")): document.text, **data}}
    if own:
        task["meta"] = {**_object(document, "task.meta", frame.get("meta")), _OWN: own}
    scores = [entity.score for entity in document.entities if entity.score is not None]
    if kind == "predictions":
        fields = {"model_version": _OWN, **({"score": min(scores)} if scores else {}), **fields}
    return task, {**fields, "result": _results(document, notes)}


def _object(document: Document, name: str, value: object) -> dict[str, object]:
    """Return `value`, the field `name` of the kept meta, if it is an object; an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise meta_error(document, NAME, f"found {value!r:.40} for {name}; expected an object")
    return value


def _results(document: Document, notes: Counter[str]) -> list[dict[str, object]]:
    """Return the regions, each with all its labels, and the kept results whose regions still exist."""
    pairs, gone = with_rows(document, NAME)
    rows = [row for _, row in pairs if row]
    names = _NAMES | next(({name: row[name] for name in _NAMES if name in row} for row in rows), {})
    used = {row["id"] for row in (*rows, *gone)}
    fresh = (id for number in count(1) if (id := f"spantune-{number}") not in used)
    regions: dict[tuple[object, ...], tuple[dict[str, object], list[str]]] = {}
    for entity, row in pairs:
        row = row or {"id": next(fresh), **names}
        labels: list[str] = []
        region = {
            "value": {"start": entity.start, "end": entity.end, "text": document.surface(entity), "labels": labels},
            **{name: value for name, value in row.items() if name not in ("start", "end", "label")},
            "type": "labels",
            **({} if entity.score is None else {"score": entity.score}),
        }
        _, labels = regions.setdefault((row["id"], entity.start, entity.end, entity.score), (region, labels))
        labels.append(entity.label)
    others = stored_meta(document, NAME).get("results", [])
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise meta_error(document, NAME, f"found {others!r:.60} for results; expected a list of objects")
    lost = {str(row["id"]) for row in gone} - {str(row["id"]) for row in rows}
    remaining = [other for other in others if not {str(other.get(end)) for end in ("id", "from_id", "to_id")} & lost]
    notes["result left out: its entity is gone"] += len(others) - len(remaining)
    return [*(region for region, _ in regions.values()), *remaining]
