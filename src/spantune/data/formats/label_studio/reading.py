"""Read Label Studio's JSON and its JSON-MIN export: each annotation, or prediction, of a task is a document."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from spantune.core import DataError, half_surrogate
from spantune.data.formats.label_studio.names import MADE, NAME, NAMES, OWN, Kind, derived, joined
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Row, Sample, SurrogateError
from spantune.data.raw.json_files import read_json
from spantune.data.raw.json_records import Record
from spantune.data.raw.json_text import kind_of
from spantune.data.raw.regions import html_span

# A text that is only a link. A path in a storage may have blanks in it if it ends like a file name.
_LINK = re.compile(
    r"\s*(?:(?:https?|s3|gs|azure-blob)://\S+|/data/(?:upload/|local-files/\?d=)\S+"
    r"|(?:(?:s3|gs|azure-blob)://|/data/(?:upload/|local-files/\?d=))[^\n]+\.\w{1,5})\s*",
    re.IGNORECASE,
)
_HTML_FIELDS = ("start", "end", "startOffset", "endOffset", "globalOffsets", "text")
_SPANS = ("labels", "hypertextlabels")  # the types of results that are spans of a text
_MIN_FIELDS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


def is_link(text: str) -> bool:
    """Return whether the text of a task is only a link to the file that has the text."""
    return _LINK.fullmatch(text) is not None


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    if isinstance(record.get("data"), dict):
        return any(isinstance(record.get(kind), list) for kind in ("annotations", "predictions", "completions"))
    return {"annotator", "annotation_id", "lead_time"} <= record.keys()


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield a document for each annotation, with the id `<task id>-<annotation id>`; `notes` counts what gives none.

    `options.column` names the field of the text if the data of a task have several texts. If a result of another kind
    comes before all labels, the file is read a second time, up to its first labels.

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


def _has_labels(path: Path, options: Options) -> bool:
    """Return whether any result of the file has labels, even one that is not read, as in a cancelled annotation."""
    for record in read_json(path, Counter(), options.encoding):
        if isinstance(record, DataError):
            continue
        for kind in ("annotations", "completions", "predictions"):
            for completion in _objects(_task_of(record).values.get(kind)):
                if any(result.get("type") in _SPANS for result in _objects(completion.get("result"))):
                    return True
    return False


def _objects(value: object) -> list[dict[str, object]]:
    """Return the objects in a list; an empty list if `value` is no list."""
    return [inner for inner in value if isinstance(inner, dict)] if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, object]:
    """Return `value` if it is an object, otherwise an empty object."""
    return value if isinstance(value, dict) else {}


def _task_of(record: Record) -> Record:
    """Return the task of a record. In JSON-MIN, a record is a single annotation, from which a task is made."""
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
    return replace(record, values=values)


def _completions(task: Record, notes: Counter[str]) -> Iterator[tuple[Kind, Record]]:
    """Yield the annotations of a task that are not cancelled, or its predictions if it has no annotations."""
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
    """Return the field of the task's data that holds the text.

    Raises:
        DataError: there is no text, or it is not clear which of several it is.
    """
    texts = [name for name, value in task.mapping("data").items() if isinstance(value, str)]
    column = options.column
    if column is None and len(texts) == 1:
        return texts[0]
    if column in texts:
        return str(column)
    if not texts:
        fields = ", ".join(f"{name} ({kind_of(value)})" for name, value in task.mapping("data").items()) or "nothing"
        raise task.error(f"found {fields}; expected a text, a string: put it into the task, or remove the task", "data")
    stated = f"found {', '.join(texts)}"
    expected = "one text" if column is None else f"a text {column!r}"
    raise task.error(f"{stated}; expected {expected}: name the field that holds it with --column NAME", "data")


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that is being read.

    Args:
        record: the task.
        key: the field of its data that holds the text.
        notes: counts what is not read or changed.
        several: whether the task has several completions (annotations or predictions).
        has_labels: returns whether the file has any labels.
    """

    record: Record
    key: str
    notes: Counter[str]
    several: bool
    has_labels: Callable[[], bool]

    def document(self, kind: Kind, completion: Record, number: int) -> RawDocument:
        """Return the document of `completion`, the `number`-th of the task.

        Raises:
            DataError: a region is not valid, or the annotation or its text is of a kind that is refused.
        """
        task, data = self.record, self.record.mapping("data")
        text = task.inner("data").text(self.key, blank=True)
        if any(result.get("type") in _SPANS for result in _objects(completion.values.get("result"))):
            self._refuse_link(text, completion)
        entities: list[RawEntity] = []
        rows: list[Row] = []
        others: list[dict[str, object]] = []
        results = completion.rows("result")
        elsewhere = self._on_other_texts(completion, [r for r in results if r.values.get("type") in _SPANS], text)
        for result in results:
            if result.values.get("to_name") in elsewhere:
                self.notes["region of another text kept in meta only"] += 1
                others.append(result.values)
            elif result.values.get("type") in _SPANS:
                region = self._entities(result, text, kind)
                entities += region
                if isinstance(id := result.values.get("id"), str) and half_surrogate(id) is None:
                    rows += [_row(result, entity, kind) for entity in region]
            else:
                others.append(result.values)
        self._judge_others(completion, others, bool(entities))
        if not entities:
            self._refuse_link(text, completion)
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
        meta = {**derived(frame, fields), **own_meta, **({NAME: details} if details else {})}
        return RawDocument(id, text, tuple(entities), task.path, task.line, meta)

    def _frame(self) -> dict[str, object]:
        """Return the fields of the task without its data, its completions and the part of meta that the writer made."""
        frame = self.record.others(("data", "annotations", "predictions", "completions"))
        if isinstance(self.record.values.get("meta"), dict):
            frame["meta"] = {name: value for name, value in self._meta().items() if name != OWN} or None
        return {name: value for name, value in frame.items() if value is not None or name not in ("id", "meta")}

    def _meta(self) -> dict[str, object]:
        """Return the meta of the task; an empty one if it is no object, since the writer makes only objects."""
        return self.record.mapping("meta") if isinstance(self.record.values.get("meta"), dict) else {}

    def _own(self) -> tuple[str | None, dict[str, object]]:
        """Return the id and the meta of the document that the writer stored in the task's meta."""
        own = self.record.at("meta", self._meta()).inner(OWN)
        return own.text("id") if "id" in own.values else None, own.mapping("meta")

    def _id(self, fields: Mapping[str, object], number: int) -> str:
        own_id, _ = self._own()
        task = self.record.values.get("id") if own_id is None else own_id
        if task is None:
            task = f"{self.record.path.stem}-{self.record.number}"
        completion = fields.get("id")
        if completion is None and self.several:
            completion = number
        return joined(task, completion)

    def _refuse_link(self, text: str, completion: Record) -> None:
        """Refuse a text that is only a link, unless a region states a part of the link as its text.

        Raises:
            DataError: it is only a link.
        """
        if not is_link(text):
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

    def _on_other_texts(self, completion: Record, regions: list[Record], text: str) -> set[object]:
        """Return the `to_name`s of the regions that are spans of another text of the task.

        An export does not say which field a `to_name` shows. That is found by the texts that the regions state.

        Raises:
            DataError: these texts do not show which regions belong to the text.
        """
        names = {region.values.get("to_name") for region in regions}
        texts = [value for value in self.record.mapping("data").values() if isinstance(value, str)]
        if len(names) < 2 or len(texts) < 2:
            return set()
        if self.key in names:
            return names - {self.key}
        fitting = {name for name in names if _fits([r for r in regions if r.values.get("to_name") == name], text)}
        if len(fitting) != 1:
            raise completion.error(
                f"found regions of several texts ({', '.join(sorted(map(str, names)))}), and their own texts do not "
                f"show which are of {self.key!r}; call the <Text> of the interface as this field, or export the texts "
                "as tasks of their own",
                "result",
            )
        return names - fitting

    def _judge_others(self, completion: Record, others: list[dict[str, object]], labelled: bool) -> None:
        """Count the results that are not spans; refuse them if the whole file has no spans.

        Raises:
            DataError: the file has only results of other types.
        """
        kinds = Counter(str(other.get("type")) for other in others if other.get("type") not in _SPANS)
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


def _fits(regions: list[Record], text: str) -> bool:
    """Return whether each of `regions` states the text that stands at its offsets."""
    values = [_mapping(region.values.get("value")) for region in regions]
    places = [(value.get("start"), value.get("text")) for value in values]
    return all(isinstance(at, int) and isinstance(said, str) and text.startswith(said, at) for at, said in places)


def _labels(value: Record, field: str) -> list[str]:
    """Return the labels of a region.

    Raises:
        DataError: there is no list of labels.
    """
    labels = value.values.get(field)
    names = [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
    if names and names == labels and all(name and half_surrogate(name) is None for name in names):
        return names
    raise value.error(f"found {json.dumps(labels)[:60]}; expected a list of labels: give the region one", field)


def _row(result: Record, entity: RawEntity, kind: Kind) -> Row:
    """Return the fields of a region that are kept in meta, with the span and the label of its entity."""
    known = ("value", "type", "score") if kind == "predictions" else ("value", "type")
    return {**result.others(known), "start": entity.start, "end": entity.end, "label": entity.label}


def _is_made(row: Row) -> bool:
    """Return whether the writer would make the same region, so that it need not be kept."""
    names = {name: value for name, value in row.items() if name not in ("id", "start", "end", "label")}
    return names == NAMES and bool(MADE.fullmatch(str(row["id"])))


def _fields(kind: Kind, completion: Record) -> dict[str, object]:
    """Return the fields of a completion without its result; {} for a prediction that the writer would make too."""
    fields = completion.others(("result",))
    made = kind == "predictions" and fields.keys() <= {"model_version", "score"} and fields.get("model_version") == OWN
    return {} if made else fields
