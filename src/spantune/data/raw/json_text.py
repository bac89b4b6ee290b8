"""JSON text, parsed with errors that name the line and the column.

Two things that Python's reader silently accepts are refused: a repeated key, and NaN or infinity.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NoReturn

from spantune.core import DataError

_BLANK = re.compile(r"[ \t\r\n]*")
_PYTHON = re.compile(r"['(]|(?:True|False|None)\b")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def parse_value(text: str, place: int, path: Path, line: int, line_at: int = 0) -> tuple[object, int]:
    """Return the JSON value at `place` and the offset of its end.

    Args:
        text: the text.
        place: where the value begins in it.
        path: the file, for errors.
        line: the number of the line of the character at `line_at`.
        line_at: an offset in the text, at most `place`.

    Raises:
        DataError: there is no JSON value.
    """
    try:
        value, end = DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise not_json(error.msg, text, error.pos, path, line, line_at) from None
    except RecursionError:
        raise not_json("lists and objects are nested too deeply", text, place, path, line, line_at) from None
    except ValueError as error:
        problem = "a number has thousands of digits" if "digits" in str(error) else str(error)
        raise not_json(problem, text, place, path, line, line_at) from None
    return value, end


def skip_blank(text: str, place: int) -> int:
    """Return the first offset from `place` on that is not JSON white space."""
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def not_json(what: str, text: str, place: int, path: Path, line: int, line_at: int = 0) -> DataError:
    """Return the error for what stands at `place`; the other arguments are those of `parse_value`."""
    column = place - text.rfind("\n", 0, place)
    if text.startswith("\ufeff", place):
        what = "a byte-order mark stands there, perhaps since files were joined: remove it"
    problem = f"{what}{python_hint(text, place)}"
    return DataError(
        f"not JSON at column {column}: {problem}; mend it there (strings and names stand in double quotes, and in "
        "JSONL each line is one whole object), or name the file's format if it is another",
        path=path,
        line=line + text.count("\n", line_at, place),
    )


def python_hint(text: str, place: int) -> str:
    """Return a hint if the text at `place` is Python's notation, as `str` and pandas write lists; "" otherwise."""
    is_python = _PYTHON.match(text, place) is not None
    return "; this is Python's notation, of which json.dumps(ast.literal_eval(TEXT)) makes JSON" if is_python else ""


def kind_of(value: object) -> str:
    """Describe the type of a JSON value."""
    return _KINDS.get(type(value)) or f"the number {value}"


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""Decodes JSON, and refuses what Python's own decoder accepts: repeated keys, and NaN and infinity."""
