"""`jsonl`: one JSON object a line for each entity, every line ended, the last one too.

The final line break is not decoration: `"}` with the break after it is one token in many vocabularies,
and without it forced decoding leaves the tokenisation that training used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from spantune.answer.resolve import Mention, Parsed, Problem, resolve
from spantune.document import Document
from spantune.task import TaskSpec


def render(document: Document, task: TaskSpec) -> str:
    """The answer that states the entities of `document`, sorted by (start, end)."""
    lines = [
        json.dumps({"entity_text": document.surface(entity), "entity_label": entity.label}, ensure_ascii=False)
        for entity in document.entities
    ]
    if not lines and task.empty_answer:
        lines = [task.empty_answer]
    return "".join(line + "\n" for line in lines)


def parse(answer: str, text: str, task: TaskSpec) -> Parsed:
    """Read an answer, free or constrained; a line that is no object of the format is a problem."""
    return resolve(_mentions(answer, task), text, task)


def grammar(text: str, task: TaskSpec) -> str:
    """A Lark grammar of llguidance: entities are non-empty substrings of `text`, labels the task's."""
    escaped = [json.dumps(character, ensure_ascii=False)[1:-1] for character in text]
    labels = [json.dumps(code, ensure_ascii=False) for code in task.codes]
    return lark(escaped, labels, task.empty_answer, terminator="\n")


def lark(characters: list[str], labels: list[str], empty_answer: str, terminator: str) -> str:
    """The grammar over `characters` and `labels` as the format writes them, each object followed by `terminator`."""
    quoted = " | ".join(_literal(label + "}" + terminator) for label in labels)
    entities = "ent*" if not empty_answer else f"ent+ | {_literal(empty_answer + terminator)}"
    if not characters:
        return f"start: {_literal(empty_answer + terminator) if empty_answer else _literal('')}"
    chunks = json.dumps(characters, ensure_ascii=False)
    return (
        f"start: {entities}\n"
        f'ent: "{{\\"entity_text\\": \\"" MENTION "\\", \\"entity_label\\": " label\n'
        f"label: {quoted}\n"
        "MENTION: SUBSTRING & /(?s:.)+/\n"
        f'SUBSTRING: %regex {{"substring_chunks": {chunks}}}\n'
    )


def _mentions(answer: str, task: TaskSpec) -> Iterator[Mention | Problem]:
    position = 0
    for line in answer.split("\n"):  # not splitlines: U+2028 and its like stand unescaped in a mention
        span = (position, min(position + len(line) + 1, len(answer)))
        position = span[1]
        content = line.strip()
        if not content or content == task.empty_answer:
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):  # a free model may write ten thousand digits or brackets
            record = None
        if isinstance(record, dict) and all(_is_text(record.get(key)) for key in ("entity_text", "entity_label")):
            yield Mention(record["entity_text"], record["entity_label"], span)
        else:
            yield Problem("invalid", content)


def _is_text(value: Any) -> bool:
    """Whether `value` is a string without half a surrogate pair, which an escape can smuggle in."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one control that JSON leaves as it is
