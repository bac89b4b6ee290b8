"""Label Studio's JSON: tasks with `data` and `annotations[].result[]` of type `labels`, and its JSON-MIN export.

Each annotation of a task is a document; a task without any gives its predictions, or nothing. Offsets are half-open
code points; older versions counted UTF-16 units, which is recognised by the regions' text. What is not the text and its
spans (other fields, relations, other results) is kept in meta and written back, into tasks that Label Studio imports:
as predictions where entities have scores, else as annotations. It refuses exports of other tasks, choices say.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from spantune.core import DataError, Document, replacing
from spantune.data.raw.document import (
    Defect,
    Item,
    Options,
    RawDocument,
    RawEntity,
    Row,
    Sample,
    kept,
    reunited,
    strange,
)
from spantune.data.raw.json_records import Record, read_json
from spantune.data.rules import Rule

NAME = "label_studio"
UTF16 = Defect(Rule.UTF16_OFFSETS, "offsets count UTF-16 units, not code points", tolerated=False)

Kind = Literal["annotations", "predictions"]

_OWN = "spantune"  # what the writer puts under the task's meta: id and meta of the document
_NAMES = {"from_name": "label", "to_name": "text"}
_MADE = re.compile("spantune-[0-9]+")  # the id of a region that the writer made
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

    Raises:
        DataError: the file is neither an array nor JSONL of tasks.
    """
    for record in read_json(path, notes):
        if isinstance(record, DataError):
            yield record
            continue
        try:
            record = record if "data" in record.values else _expanded(record)
            completions = list(_completions(record, notes))
            task = _Task(record, _text_key(record, options), notes, len(completions) > 1) if completions else None
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
            file.write(before + json.dumps(task, ensure_ascii=False))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[\n]\n")


def _expanded(record: Record) -> Record:
    """A JSON-MIN record, one annotation without its frame, as the task that it is of."""
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
    """The annotations of a task that its annotators did not cancel, or its predictions where nobody annotated it."""
    stated = "completions" if "completions" in task.values else "annotations"
    annotations = task.rows(stated) if stated in task.values else []
    for annotation in annotations:
        if annotation.values.get("was_cancelled"):
            notes["cancelled annotation skipped"] += 1
        else:
            yield "annotations", annotation
    predictions = task.values.get("predictions") or []
    if annotations:
        notes["prediction not read: its task is annotated"] += len(predictions)
    elif predictions:
        notes["prediction read: its task is not annotated"] += len(predictions)
        for prediction in task.rows("predictions"):
            yield "predictions", prediction
    else:
        notes["task without annotation skipped"] += 1


def _text_key(task: Record, options: Options) -> str:
    """The field of the task's data that holds the text."""
    texts = [name for name, value in task.object("data").items() if isinstance(value, str)]
    wanted = options.column
    if wanted is None and len(texts) == 1:
        return texts[0]
    if wanted in texts:
        return str(wanted)
    found = f"found {', '.join(texts) or 'no text'}"
    expected = "one text" if wanted is None else f"a text {wanted!r}"
    raise task.error(f"{found}; expected {expected}: name the field that holds it with --column NAME", "data")


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that is being read: its text is `data[key]`; `several` says whether it has several completions."""

    record: Record
    key: str
    notes: Counter[str]
    several: bool

    def document(self, kind: Kind, completion: Record, number: int) -> RawDocument:
        """The document of `completion`, the `number`-th of the task."""
        task, data = self.record, self.record.object("data")
        text = Record(data, task.path, task.line, task.number, "data.").text(self.key, blank=True)
        entities: list[RawEntity] = []
        rows: list[Row] = []
        others: list[dict[str, Any]] = []
        for result in completion.rows("result"):
            if result.values.get("type") == "labels":
                of_result = self._entities(result, text, kind)
                entities += of_result
                if isinstance(result.values.get("id"), str):
                    rows += [_row(result, entity, kind) for entity in of_result]
            else:
                others.append(result.values)
        self._judge_others(completion, others, bool(entities))
        frame, fields, own = self._frame(), _fields(kind, completion), self._own()
        details = {
            "key": self.key if self.key != "text" else None,
            "data": {name: value for name, value in data.items() if name != self.key},
            "task": frame,
            kind: fields,
            "entities": [row for row in rows if fields or others or not _is_made(row)],
            "results": others,
        }
        details = {name: value for name, value in details.items() if value}
        id = own.get("id") if not self.several else None
        meta = {**_derived(frame, fields), **own["meta"], **({NAME: details} if details else {})}
        return RawDocument(id or self._id(fields, number), text, tuple(entities), task.path, task.line, meta)

    def _frame(self) -> dict[str, Any]:
        """The task's fields but for its data, its completions and what our writer put into its meta."""
        frame = self.record.others(("data", "annotations", "predictions", "completions"))
        frame["meta"] = {name: value for name, value in self._meta().items() if name != _OWN} or None
        return {name: value for name, value in frame.items() if value is not None or name not in ("id", "meta")}

    def _meta(self) -> dict[str, Any]:
        return self.record.object("meta") if self.record.values.get("meta") else {}

    def _own(self) -> dict[str, Any]:
        """What our writer put into the task's meta."""
        meta = Record(self._meta(), self.record.path, self.record.line, inside="meta.")
        own = Record(meta.object(_OWN), meta.path, meta.line, inside=f"meta.{_OWN}.")
        return {**({"id": own.text("id")} if "id" in own.values else {}), "meta": own.object("meta")}

    def _id(self, fields: Mapping[str, Any], number: int) -> str:
        task = self._own().get("id", self.record.values.get("id"))
        if task is None:
            task = f"{self.record.path.stem}-{self.record.number}"
        completion = fields.get("id")
        if completion is None and self.several:
            completion = number
        return _joined(task, completion)

    def _judge_others(self, completion: Record, others: list[dict[str, Any]], labelled: bool) -> None:
        """Count the results that are no spans; an annotation that has only such is of another task."""
        kinds = Counter(str(other.get("type")) for other in others)
        del kinds["relation"]
        if kinds and not labelled:
            raise completion.error(
                f"found results of type {', '.join(sorted(kinds))}; expected labels, spans of a text: export a project "
                "whose labelling interface has <Labels> on a <Text>",
                "result",
            )
        for kind, number in kinds.items():
            self.notes[f"result of type {kind!r} kept in meta only"] += number

    def _entities(self, result: Record, text: str, kind: Kind) -> list[RawEntity]:
        value = Record(result.object("value"), result.path, result.line, result.number, result.place("value."))
        value.note_others(("start", "end", "text", "labels"), self.notes)
        start, end = value.integer("start"), value.integer("end")
        surface = value.text("text") if value.values.get("text") is not None else None
        labels = value.values.get("labels")
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
            raise value.error(
                f"found {json.dumps(labels)[:60]}; expected a list of labels: give the region one", "labels"
            )
        score = _score(result) if kind == "predictions" else None
        field, defect = value.place("end" if surface is None else "text"), None
        if surface is not None and text[start:end] != surface and (found := _of_units(text, start, end, surface)):
            (start, end), defect = found, UTF16
        return [RawEntity(start, end, label, surface, score, field, defect=defect) for label in labels]


def _of_units(text: str, start: int, end: int, surface: str) -> tuple[int, int] | None:
    """The code points of the span whose UTF-16 units are [start, end), if `surface` stands there."""
    units = text.encode("utf-16-le")
    if not 0 <= start < end <= len(units) // 2 or units[2 * start : 2 * end] != surface.encode("utf-16-le"):
        return None
    first = len(units[: 2 * start].decode("utf-16-le"))
    return first, first + len(surface)


def _score(result: Record) -> float | None:
    score = result.values.get("score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise result.error(f"found {score!r}; expected a probability from 0 to 1: mend or remove it", "score")
    return float(score)


def _row(result: Record, entity: RawEntity, kind: Kind) -> Row:
    """What to keep of a region."""
    known = ("value", "type", "score") if kind == "predictions" else ("value", "type")
    return {**result.others(known), "start": entity.start, "end": entity.end, "label": entity.label}


def _is_made(row: Row) -> bool:
    """Whether the writer would make the same region again."""
    names = {name: value for name, value in row.items() if name not in ("id", "start", "end", "label")}
    return names == _NAMES and bool(_MADE.fullmatch(str(row["id"])))


def _fields(kind: Kind, completion: Record) -> dict[str, Any]:
    """The fields of an annotation or a prediction but for its result; none of a prediction as the writer makes it."""
    fields = completion.others(("result",))
    made = kind == "predictions" and fields.keys() <= {"model_version", "score"} and fields.get("model_version") == _OWN
    return {} if made else fields


def _derived(frame: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The meta that follows from a task's and an annotation's fields."""
    group = {"group": str(frame["id"])} if "id" in frame else {}
    return group | ({"annotator": fields["completed_by"]} if "completed_by" in fields else {})


def _joined(task: object, completion: object) -> str:
    return f"{task}" if completion is None else f"{task}-{completion}"


def _tasks(documents: Iterable[Document], notes: Counter[str]) -> Iterator[dict[str, Any]]:
    """The tasks to write, those of one id that follow each other as one."""
    last: dict[str, Any] | None = None
    for document, kind in _with_kind(documents):
        task, completion = _task(document, kind, notes)
        if last is not None and "id" in task and last == {**task, kind: last.get(kind)}:
            last[kind].append(completion)
            continue
        if last is not None:
            yield last
        last = {**task, kind: [completion]}
    if last is not None:
        yield last


def _with_kind(documents: Iterable[Document]) -> Iterator[tuple[Document, Kind]]:
    """Each document and what it is written as: one without entities as the one before it, the first as the next."""
    waiting: list[Document] = []
    kind: Kind | None = None
    for document in documents:
        if any(entity.score is not None for entity in document.entities) or "predictions" in kept(document, NAME):
            kind = "predictions"
        elif document.entities:
            kind = "annotations"
        waiting.append(document)
        if kind is not None:
            yield from ((held, kind) for held in waiting)
            waiting = []
    yield from ((held, "annotations") for held in waiting)


def _task(document: Document, kind: Kind, notes: Counter[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task of `document` without completions, and the completion of it that the document is."""
    values = kept(document, NAME)
    frame, fields, data = (_object(document, name, values.get(name)) for name in ("task", kind, "data"))
    pairs, gone = reunited(document, NAME)
    stale = kind == "predictions" and (bool(gone) or not all(row for _, row in pairs))
    if values.keys() & {"annotations", "predictions"} - {kind} or (stale and fields):
        notes["fields of the annotation left out: its entities are predicted anew"] += 1
        fields = {}
    derived = _derived(frame, fields)
    meta = {name: value for name, value in document.meta.items() if name != NAME and derived.get(name, NAME) != value}
    own: dict[str, Any] = {} if document.id == _joined(frame.get("id"), fields.get("id")) else {"id": document.id}
    own |= {"meta": meta} if meta else {}
    task = {**frame, "data": {str(values.get("key", "text")): document.text, **data}}
    if own:
        task["meta"] = {**_object(document, "task.meta", frame.get("meta")), _OWN: own}
    scores = [entity.score for entity in document.entities if entity.score is not None]
    if kind == "predictions":
        fields = {"model_version": _OWN, **({"score": min(scores)} if scores else {}), **fields}
    return task, {**fields, "result": _results(document, notes)}


def _object(document: Document, name: str, value: Any) -> dict[str, Any]:
    """`value`, which is `name` of the kept meta, if it is an object; an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise strange(document, NAME, f"found {value!r:.40} for {name}; expected an object")
    return value


def _results(document: Document, notes: Counter[str]) -> list[dict[str, Any]]:
    """The regions, labels of one region together, and the kept results whose regions are still there."""
    pairs, gone = reunited(document, NAME)
    rows = [row for _, row in pairs if row]
    names = _NAMES | next(({name: row[name] for name in _NAMES if name in row} for row in rows), {})
    used = {row["id"] for row in (*rows, *gone)}
    fresh = (id for number in count(1) if (id := f"spantune-{number}") not in used)
    regions: dict[tuple[object, ...], dict[str, Any]] = {}
    for entity, row in pairs:
        row = row or {"id": next(fresh), **names}
        region = regions.setdefault(
            (row["id"], entity.start, entity.end, entity.score),
            {
                "value": {"start": entity.start, "end": entity.end, "text": document.surface(entity), "labels": []},
                **{name: value for name, value in row.items() if name not in ("start", "end", "label")},
                "type": "labels",
                **({} if entity.score is None else {"score": entity.score}),
            },
        )
        region["value"]["labels"].append(entity.label)
    others = kept(document, NAME).get("results", [])
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise strange(document, NAME, f"found {others!r:.60} for results; expected a list of objects")
    lost = {str(row["id"]) for row in gone} - {str(row["id"]) for row in rows}
    left = [other for other in others if not {str(other.get(end)) for end in ("id", "from_id", "to_id")} & lost]
    notes["result left out: its entity is gone"] += len(others) - len(left)
    return [*regions.values(), *left]
