"""JSON text for files, in which NaN and infinite numbers are refused, although Python's `json` would write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from spantune.core.errors import DataError


def to_json(value: object, *, indent: int | None = None, ascii_only: bool = False, compact: bool = False) -> str:
    """Return `value` as JSON text.

    Args:
        value: a value that `json.dumps` can write.
        indent: the number of spaces by which each level is indented; None for a text of one line.
        ascii_only: whether characters outside ASCII are written as escapes.
        compact: whether to leave out the spaces after commas and colons.

    Raises:
        DataError: a number is NaN or infinite, or the value is nested too deeply. `field` is the place of the number.
        TypeError: `value` has a part that `json.dumps` cannot write.
    """
    try:
        separators = (",", ":") if compact else None
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, indent=indent, separators=separators)
    except RecursionError:
        raise DataError("the value is nested too deeply to be written as JSON; flatten it") from None
    except ValueError:
        place = non_finite(value)
        if place is None:  # a circular reference, which is a bug of the caller
            raise
        raise DataError(
            "found NaN or an infinite number, which JSON cannot hold; replace it by a finite number or null, or remove "
            "it",
            field=place or None,
        ) from None


def non_finite(value: object) -> str | None:
    """Return the place of the first number in `value` that is NaN or infinite, such as `meta.x[0]`.

    None means that there is no such number, and "" that `value` itself is one.
    """
    for place, number in _floats(value, ""):
        if not math.isfinite(number):
            return place.removeprefix(".")
    return None


def _floats(value: object, place: str) -> Iterator[tuple[str, float]]:
    """Yield the floats in `value` as (place, float), where `place` is the place of `value` itself."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _floats(inner, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _floats(inner, f"{place}[{index}]")
