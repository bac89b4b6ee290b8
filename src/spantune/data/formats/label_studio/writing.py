"""Write Label Studio's JSON: tasks that it can import, with annotations or predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from spantune.core import Document, replacing, to_json
from spantune.data.formats.label_studio.names import NAME, NAMES, OWN, Kind, derived, joined
from spantune.data.raw.document import Options, meta_error, stored_meta, unwritten_meta, with_rows

_KEPT = ("key", "data", "task", "annotations", "predictions", "entities", "results")


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as an array of tasks; consecutive annotations of a task become one task.

    Entities with scores become a prediction, whose own score is the lowest of theirs. With `options.predicted`, every
    document becomes a prediction, even one without entities.

    Raises:
        DataError: the meta under `label_studio` is not as reading stores it, or the file cannot be written.
    """
    with replacing(path) as file:
        before = "[\n"
        for task in _tasks(documents, notes, predicted=options.predicted):
            file.write(before + to_json(task))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[\n]\n")


def predicted_results(document: Document, from_name: str, to_name: str) -> list[dict[str, object]]:
    """Return each entity of a document as a result of a prediction, for two tags of a project.

    Args:
        document: the document.
        from_name: the name of the tag <Labels>.
        to_name: the name of the tag <Text>.
    """
    return [{**result, "from_name": from_name, "to_name": to_name} for result in _results(document, Counter())]


def _tasks(documents: Iterable[Document], notes: Counter[str], *, predicted: bool) -> Iterator[dict[str, object]]:
    """Yield the tasks to write; consecutive completions of the same task are united."""
    last: dict[str, object] | None = None
    completions: list[dict[str, object]] = []
    with_kind: Iterable[tuple[Document, Kind]]
    with_kind = ((document, "predictions") for document in documents) if predicted else _with_kind(documents)
    for document, kind in with_kind:
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
    """Yield each document with its kind; one without entities has the kind of the previous document, or of the next."""
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
    """Return the task of `document` without completions, and the completion with the entities of the document."""
    values = stored_meta(document, NAME)
    frame, fields, data = (_object(document, name, values.get(name)) for name in ("task", kind, "data"))
    notes["meta left out"] += unwritten_meta(document, NAME, _KEPT)
    pairs, gone = with_rows(document, NAME)
    stale = kind == "predictions" and (bool(gone) or not all(row for _, row in pairs))
    if values.keys() & {"annotations", "predictions"} - {kind} or (stale and fields):
        notes["fields of the annotation left out: its entities are predicted anew"] += 1
        fields = {}
    known = derived(frame, fields)
    meta = {name: value for name, value in document.meta.items() if name != NAME and known.get(name, NAME) != value}
    own: dict[str, object] = {} if document.id == joined(frame.get("id"), fields.get("id")) else {"id": document.id}
    own |= {"meta": meta} if meta else {}
    task = {**frame, "data": {str(values.get("key", "text")): document.text, **data}}
    if own:
        task["meta"] = {**_object(document, "task.meta", frame.get("meta")), OWN: own}
    scores = [entity.score for entity in document.entities if entity.score is not None]
    if kind == "predictions":
        fields = {"model_version": OWN, **({"score": min(scores)} if scores else {}), **fields}
    return task, {**fields, "result": _results(document, notes)}


def _object(document: Document, name: str, value: object) -> dict[str, object]:
    """Return `value`, the field `name` of the stored meta, if it is an object; an empty object for None.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise meta_error(document, NAME, f"found {value!r:.40} for {name}; expected an object")
    return value


def _results(document: Document, notes: Counter[str]) -> list[dict[str, object]]:
    """Return the regions, each with all its labels, and the stored results whose regions still exist."""
    pairs, gone = with_rows(document, NAME)
    rows = [row for _, row in pairs if row]
    names = NAMES | next(({name: row[name] for name in NAMES if name in row} for row in rows), {})
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
