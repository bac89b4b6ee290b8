"""Strict JSON for files: invalid JSON is refused with its place, and no module writes JSON in another way."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from spantune.core import DataError, to_json

SOURCE = Path(__file__).parents[2] / "src" / "spantune"
# JSON that is not a value of a file: hashes and keys in memory, and grammars and answers, which hold only strings.
NO_FILES = {"core/document.py", "data/placement.py", "extraction/vocabulary.py", "runs/listing.py"} | {
    f"encoding/answers/{name}.py" for name in ("grouped", "jsonl", "lark")
}


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
@pytest.mark.parametrize(
    ("text", "place"),
    [('{"a": [1.5, {"b": %s}]}', "a[1].b"), ('{"a": {"b": {"c": %s}}}', "a.b.c"), ("[[%s]]", "[0][0]"), ("%s", None)],
)
def test_a_number_that_is_no_json_is_refused_by_its_place(number: str, text: str, place: str | None) -> None:
    with pytest.raises(DataError, match="NaN or an infinite number, which JSON cannot hold") as caught:
        to_json(json.loads(text % number))
    assert (caught.value.field or None) == place


def test_other_values_are_written_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, "\u2028é"], "b": (1e308, 10**30)}
    assert json.loads(to_json(value)) == {**value, "b": [1e308, 10**30]}
    assert to_json({"é": 1}) == '{"é": 1}' and to_json({"é": 1}, ascii_only=True) == '{"\\u00e9": 1}'
    assert to_json([1, {"a": 2}], compact=True) == '[1,{"a":2}]'


def test_values_nested_too_deeply_are_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(DataError, match="nested too deeply"):
        to_json(value)


def test_no_module_writes_json_that_may_hold_nan() -> None:
    """Every `json.dumps` refuses NaN, or is used for the beginning of a value in a message."""
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        cut = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("json.dumps", "json.dump", "dumps"):
                refuses = any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in call.keywords)
                if not refuses and id(call) not in cut:
                    found.append(path.relative_to(SOURCE).as_posix())
    assert set(found) == NO_FILES
