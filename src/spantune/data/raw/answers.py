"""Entities stated by text and label without offsets, in the layouts that people and models write as JSON.

The layouts are a list of objects (`{"text": "腹痛", "label": "sym"}`, with these or other usual names), a list of
pairs (`["腹痛", "sym"]`), an object of texts by label (`{"sym": ["腹痛"]}`), or one of these in the field `entities`.
An answer in chat data is such a value as text, or several of them one after another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from spantune.data.raw.anchored import Surface
from spantune.data.raw.json_records import Record
from spantune.data.raw.json_text import DECODER

TEXT_KEYS = ("text", "entity_text", "word", "mention", "surface", "span", "value", "name", "entity")
LABEL_KEYS = ("label", "entity_label", "type", "entity_type", "entity_group", "category", "tag", "class", "entity")
_OFFSETS = re.compile(r"(start|begin|end|stop|offset|position|points|locations)", re.IGNORECASE)
_FENCE = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_PLAIN = re.compile(r'\s*\{"entity_text": "(.*?)", "entity_label": "(.*?)"\}', re.DOTALL)

NO_ENTITIES = {
    "", "无", "没有", "没有实体", "没有找到任何实体", "没有找到实体", "未找到任何实体",
    "none", "no entities", "no entities found", "no entity found", "n/a",
}  # fmt: skip
"""Answers, in lower case and without a full stop, that state that there is no entity."""


def is_stated(value: object) -> bool:
    """Return whether `value` states at least one entity in one of the layouts, without offsets."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(texts, list) and _are_texts(texts) for texts in value.values())
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    if isinstance(first, Mapping):
        return _keys(first) is not None and not any(_is_place(key, item) for key, item in first.items())
    return isinstance(first, list) and len(first) == 2 and _are_texts(first)


def stated(record: Record, value: object, place: str, notes: Counter[str]) -> Iterator[Surface]:
    """Yield the surfaces that `value` states.

    Args:
        record: the record, for errors.
        value: a JSON value in one of the layouts.
        place: where `value` is in the record.
        notes: counts fields that are not read.

    Raises:
        DataError: the value is in none of the layouts.
    """
    if isinstance(value, dict):
        row = record.at(place, value)
        if (keys := _keys(value)) is not None:
            row.note_others(keys, notes)
            yield Surface(row.text(keys[0]), row.text(keys[1]), f"{place}.{keys[0]}")
        elif "entities" in value:
            yield from stated(record, value["entities"], f"{place}.entities", notes)
        else:
            for label in value:
                for index, text in enumerate(row.items(label)):
                    here = f"{label}[{index}]"
                    yield Surface(row.cells(here, [text], "[text]").text("[0]"), label, f"{place}.{here}", label)
        return
    if not isinstance(value, list):
        raise record.error(f"found {value!r:.40}; expected a list of entities ([] for none): mend it", place)
    for index, item in enumerate(value):
        here = f"{place}[{index}]"
        if isinstance(item, dict):
            yield from stated(record, item, here, notes)
        else:
            pair = record.cells(here, item, "[text, label]")
            yield Surface(pair.text("[0]"), pair.text("[1]"), here)


def answered(record: Record, answer: str, place: str, notes: Counter[str]) -> list[Surface]:
    """Return the surfaces that the text `answer` states; `notes` counts what was not read. For the rest see `stated`.

    Raises:
        DataError: the answer is not JSON, or in none of the layouts.
    """
    if thought := _THOUGHT.match(answer):
        notes["reasoning before an answer not read"] += bool(thought[1].strip())
        answer = answer[thought.end() :]
    fenced = _FENCE.fullmatch(answer.strip())
    content = fenced[1] if fenced else answer.strip()
    if content.lower().rstrip(".。") in NO_ENTITIES:
        return []
    try:
        values = _sequence(content)
    except ValueError as error:
        if plain := _unescaped(content, place):
            return plain
        raise record.error(
            f"the answer is not JSON: {error}; found {content[:60]!r}; expected entities such as "
            '{"entity_text": "…", "entity_label": "…"}: mend it, or remove a record that extracts nothing',
            place,
        ) from None
    if len(values) == 1 and isinstance(values[0], str) and values[0].lstrip()[:1] in ("[", "{"):
        notes["answer is JSON inside a string of JSON"] += 1
        return answered(record, values[0], place, notes)
    return [surface for value in values for surface in stated(record, value, place, notes)]


def _sequence(text: str) -> list[object]:
    """Return the JSON values in `text`, which follow each other with white space or commas between them.

    Raises:
        ValueError: there is something else in the text.
    """
    values: list[object] = []
    while text:
        try:
            value, end = DECODER.raw_decode(text)
        except RecursionError:
            raise ValueError("brackets are nested too deeply") from None
        values.append(value)
        text = text[end:].lstrip().removeprefix(",").lstrip()
    return values


def _unescaped(content: str, place: str) -> list[Surface]:
    """Return the surfaces of objects whose strings are not escaped, as in the tutorial; [] if there is more."""
    matches = list(_PLAIN.finditer(content))
    if "".join(match[0] for match in matches).strip() != content:
        return []
    return [Surface(match[1], match[2], place) for match in matches]


def _keys(row: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the names of the text and label fields of an object that states an entity; None for another object."""
    text = next((key for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    label = next((key for key in LABEL_KEYS if key != text and isinstance(row.get(key), str)), None)
    return (text, label) if text and label else None


def _is_place(key: str, value: object) -> bool:
    """Return whether a field of an entity may state where the entity stands."""
    numbers = value if isinstance(value, list) else [value]
    counts = any(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    return bool(_OFFSETS.match(key)) or (key != "id" and counts)


def _are_texts(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)
