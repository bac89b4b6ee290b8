"""Label Studio's JSON: tasks with `data` and `annotations[].result[]` of type `labels`, and its JSON-MIN export.

Each annotation of a task is a document; a task without annotations gives its predictions, or nothing. Offsets are
half-open code points; older versions counted UTF-16 units. Everything
but the text and its spans (other fields, relations, other results) is kept in meta and written back. The written tasks
can be imported by Label Studio; entities with scores are written as predictions, others as annotations. Exports without
any labels, of choices or images, are refused, and tasks whose text is only a link to a file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal

from spantune.core import DataError, Document, half_surrogate, replacing, to_json
from spantune.data.raw.document import (
    Item,
    Options,
    RawDocument,
    RawEntity,
    Row,
    Sample,
    SurrogateError,
    meta_error,
    stored_meta,
    unwritten_meta,
    with_rows,
)
from spantune.data.raw.json_records import Record, read_json
from spantune.data.raw.regions import html_span

NAME = "label_studio"

Kind = Literal["annotations", "predictions"]

_OWN = "spantune"  # the field of a task's meta in which the writer puts id and meta of the document
_NAMES = {"from_name": "label", "to_name": "text"}
_MADE = re.compile("spantune-[0-9]+")  # the id of a region that the writer made
# A whole text that is a link; a path in a storage may have blanks in it if it ends as a file name does.
_LINK = re.compile(
    r"\s*(?:(?:https?|s3|gs|azure-blob)://\S+|/data/(?:upload/|local-files/\?d=)\S+"
    r"|(?:(?:s3|gs|azure-blob)://|/data/(?:upload/|local-files/\?d=))[^\n]+\.\w{1,5})\s*",
    re.IGNORECASE,
)
_HTML_FIELDS = ("start", "end", "startOffset", "endOffset", "globalOffsets", "text")
_SPANS = ("labels", "hypertextlabels")  # the types of results that are spans of a text
_KEPT = ("key", "data", "task", "annotations", "predictions", "entities", "results")
_MIN_FIELDS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    if isinstance(record.get("data"), dict):
        return any(isinstance(record.get(kind), list) for kind in ("annotations", "predictions", "completions"))
    return {"annotator", "annotation_id", "lead_time"} <= record.keys()


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield a document for each annotation, called `<task id>-<annotation id>`; `notes` counts what gives none.

    `options.column` names the text where a task's data have several.

    The file is read a second time, up to its first labels, if a result of another kind comes before all labels.

    Raises:
        DataError: the file is neither an array nor JSONL of tasks.
    """
    has_labels = cache(lambda: _has_labels(path, options))
    for record in read_json(path, notes, options.encoding):
        if isinstance(record, DataError):
            yield record
            continue
        try:
            record = _task_of(record)
            completions = list(_completions(record, notes))
            several = len(completions) > 1
            task = _Task(record, _text_key(record, options), notes, several, has_labels) if completions else None
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


def _has_labels(path: Path, options: Options) -> bool:
    """Whether any result of the file is of labels, even one that is not read, such as a cancelled annotation's."""
    for record in read_json(path, Counter(), options.encoding):
        if isinstance(record, DataError):
            continue
        for kind in ("annotations", "completions", "predictions"):
            for completion in _objects(_task_of(record).values.get(kind)):
                if any(result.get("type") in _SPANS for result in _objects(completion.get("result"))):
                    return True
    return False


def _objects(value: object) -> list[dict[str, object]]:
    """Return the objects in a list; none if it is no list."""
    return [inner for inner in value if isinstance(inner, dict)] if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, object]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _task_of(record: Record) -> Record:
    """Return the task of a record, which in JSON-MIN is a single annotation."""
    if "data" in record.values:
        return record
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
    stated_predictions = task.values.get("predictions")
    if annotations:
        notes["prediction not read: its task is annotated"] += _size(stated_predictions)
    elif stated_predictions and not isinstance(stated_predictions, list):
        notes["task skipped: it has no annotation, and its predictions are no list"] += 1
    elif stated_predictions:
        notes["prediction read: its task is not annotated"] += _size(stated_predictions)
        for prediction in task.rows("predictions"):
            yield "predictions", prediction
    else:
        notes["task without annotation skipped"] += 1


def _size(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


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


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that is being read.

    Args:
        record: the task.
        key: the field of its data that holds the text.
        notes: what is counted.
        several: whether it has several completions.
        has_labels: says whether its file has any labels.
    """

    record: Record
    key: str
    notes: Counter[str]
    several: bool
    has_labels: Callable[[], bool]

    def document(self, kind: Kind, completion: Record, number: int) -> RawDocument:
        """Return the document of `completion`, the `number`-th of the task."""
        task, data = self.record, self.record.mapping("data")
        text = task.inner("data").text(self.key, blank=True)
        self._refuse_link(text, completion)
        entities: list[RawEntity] = []
        rows: list[Row] = []
        others: list[dict[str, object]] = []
        for result in completion.rows("result"):
            if result.values.get("type") in _SPANS:
                region = self._entities(result, text, kind)
                entities += region
                if isinstance(id := result.values.get("id"), str) and half_surrogate(id) is None:
                    rows += [_row(result, entity, kind) for entity in region]
            else:
                others.append(result.values)
        self._judge_others(completion, others, bool(entities))
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
        id = (own_id if not self.several else None) or self._id(fields, number)
        if half_surrogate(id) is not None:
            raise SurrogateError(
                f"half of a surrogate pair in {id!r}, which is not text; give the task another id",
                path=task.path,
                line=task.line,
                field="id",
            )
        meta = {**_derived(frame, fields), **own_meta, **({NAME: details} if details else {})}
        return RawDocument(id, text, tuple(entities), task.path, task.line, meta)

    def _frame(self) -> dict[str, object]:
        """Return the task's fields without its data, its completions and the writer's part of its meta."""
        frame = self.record.others(("data", "annotations", "predictions", "completions"))
        if isinstance(self.record.values.get("meta"), dict):
            frame["meta"] = {name: value for name, value in self._meta().items() if name != _OWN} or None
        return {name: value for name, value in frame.items() if value is not None or name not in ("id", "meta")}

    def _meta(self) -> dict[str, object]:
        """Return the task's meta; an empty one if it is of another type, which only our writer's part depends on."""
        return self.record.mapping("meta") if isinstance(self.record.values.get("meta"), dict) else {}

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

    def _refuse_link(self, text: str, completion: Record) -> None:
        """Refuse a text that is only a link, unless a region states a part of the link as its text."""
        if _LINK.fullmatch(text) is None:
            return
        regions = [_mapping(result.get("value")) for result in _objects(completion.values.get("result"))]
        surfaces = [(region.get("start"), region.get("text")) for region in regions]
        if not any(
            isinstance(start, int) and isinstance(surface, str) and surface and text.startswith(surface, start)
            for start, surface in surfaces
        ):
            raise self.record.inner("data").error(
                f"found {text.strip()[:60]!r}, only a link to a file; expected the text, to which the offsets belong: "
                "put the text of that file into the task (Label Studio leaves it out where the interface has "
                'valueType="url")',
                self.key,
            )

    def _judge_others(self, completion: Record, others: list[dict[str, object]], labelled: bool) -> None:
        """Count the results that are not spans; refuse an annotation of them if its whole file has no spans."""
        kinds = Counter(str(other.get("type")) for other in others)
        del kinds["relation"]
        if kinds and not labelled and not self.has_labels():
            raise completion.error(
                f"found results of type {', '.join(sorted(kinds))}, and no labels in the whole file; expected labels, "
                "spans of a text: export a project whose labelling interface has <Labels> on a <Text>",
                "result",
            )
        for kind, number in kinds.items():
            self.notes[f"result of type {kind!r} kept in meta only"] += number

    def _entities(self, result: Record, text: str, kind: Kind) -> list[RawEntity]:
        value = result.inner("value")
        has_score = kind == "predictions" and result.values.get("score") is not None
        score = result.score("score") if has_score else None
        if str(value.values.get("start")).startswith("/"):  # an XPath
            value.note_others((*_HTML_FIELDS, *_SPANS), self.notes)
            self.notes["region of HTML placed by its globalOffsets, to be written as a region of text"] += 1
            start, end = html_span(text, value)
            surface: str | None = text[start:end]
        else:
            value.note_others(("start", "end", "text", *_SPANS), self.notes)
            start, end = value.integer("start"), value.integer("end")
            surface = value.text("text") if value.values.get("text") is not None else None
        labels = _labels(value, "labels" if "labels" in value.values else str(result.values.get("type")))
        field = value.place("end" if surface is None else "text")
        return [RawEntity(start, end, label, surface, score, field) for label in labels]


def _labels(value: Record, field: str) -> list[str]:
    """Return the labels of a region."""
    labels = value.values.get(field)
    names = [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
    if names and names == labels and all(name and half_surrogate(name) is None for name in names):
        return names
    raise value.error(f"found {json.dumps(labels)[:60]}; expected a list of labels: give the region one", field)


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
    notes["meta left out"] += unwritten_meta(document, NAME, _KEPT)
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
