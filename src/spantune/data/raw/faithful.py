"""Meta that every output can hold: a field that JSON text cannot represent is left out, and counted.

A file can state half of a surrogate pair (`"\\ud800"`) or a number that no float can hold (`1e999`). Python reads both,
but nearly no other program does. No annotation needs such a field, so the document is kept without it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from spantune.core import DataError, encodable, half_surrogate
from spantune.data.raw.document import Item, RawDocument

NOTE = "meta field left out: it holds half of a surrogate pair, NaN or a number too large: "
"""The beginning of the note for a field that is left out; the path of the field follows."""

_SPARE = 50  # more levels of nesting than any writer adds around meta
_OUT: Final = object()  # stands for a value that cannot be kept


def faithful(items: Iterable[Item], notes: Counter[str]) -> Iterator[Item]:
    """Yield `items`, with meta reduced to what JSON text can represent. `notes` counts what is left out, by field.

    A document whose meta is nested too deeply to be written is replaced by a DataError.
    """
    for item in items:
        yield _kept(item, notes) if isinstance(item, RawDocument) and item.meta else item


def _kept(document: RawDocument, notes: Counter[str]) -> Item:
    nested: object = document.meta
    for _ in range(_SPARE):
        nested = [nested]
    try:
        if half_surrogate(json.dumps(nested, ensure_ascii=False, allow_nan=False, default=str)) is None:
            return document
    except RecursionError:
        return _too_deep(document)
    except ValueError:
        pass  # a number that is not finite
    try:
        return replace(document, meta=_object(document.meta, "", notes))
    except RecursionError:
        return _too_deep(document)


def _too_deep(document: RawDocument) -> DataError:
    message = "the values are nested too deeply to be written again; flatten or remove them"
    return DataError(message, path=document.path, line=document.line, field="meta")


def _object(values: Mapping[str, object], place: str, notes: Counter[str]) -> dict[str, object]:
    """Return `values`, which are at the path `place` of the meta, without the fields that cannot be kept."""
    kept_values: dict[str, object] = {}
    for name, value in values.items():
        field = f"{place}.{name}" if place else str(name)
        kept = _OUT if _is_unsayable(name) else _value(value, field, notes)
        if kept is _OUT:
            notes[NOTE + encodable(field)] += 1
        else:
            kept_values[name] = kept
    return kept_values


def _value(value: object, place: str, notes: Counter[str]) -> object:
    """Return `value` without fields that cannot be kept, or `_OUT`. A list is kept as a whole or left out."""
    if isinstance(value, Mapping):
        return _object(value, place, notes)
    if isinstance(value, list | tuple):
        kept_values = [_value(inner, f"{place}[]", notes) for inner in value]
        return _OUT if any(kept is _OUT for kept in kept_values) else kept_values
    return _OUT if _is_unsayable(value) else value


def _is_unsayable(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and half_surrogate(value) is not None
