"""Generated documents for tests of answer formats: labels and texts with quotes, escapes and special tokens."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from spantune.core import Document, Entity, Label, TaskSpec

TASK = TaskSpec(labels=(Label(code="sym"), Label(code="疾病"), Label(code='b"\\\x7f')), instruction="x")

pieces = st.one_of(
    st.sampled_from(
        [
            '{"entity_text": "',
            '", "entity_label": "',
            '"}\n',
            "<|im_end|>",
            "👩🏽‍⚕️",
            "e\u0301",
            "שלום",
            "肺",
            "肺炎",
            "\\u0041",
        ]
    ),
    st.sampled_from(list("a\"'\\\n\r\t\0\x0b\x0c\x1c\x7f\x85\u2028\u2029\ufeff{}[]/")),
    st.characters(exclude_categories=["Cs"]),
)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Draw a document with nested, crossing and doubly labelled entities, each at most once.

    No entity begins or ends with white space, because no grammar writes such an entity.
    """
    text = "".join(draw(st.lists(pieces, max_size=12)))
    entities = set()
    for _ in range(draw(st.integers(0, 7)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        end = draw(st.integers(start + 1, min(len(text), start + 20)))
        if text[start:end] != text[start:end].strip():
            continue
        entities.add(Entity(start, end, draw(st.sampled_from(TASK.codes))))
    return Document("1", text, tuple(entities))


def f1(pairs: list[tuple[set[Any], set[Any]]]) -> float:
    """Return micro F1 in per cent over pairs of (gold, found) sets."""
    hits = sum(len(gold & found) for gold, found in pairs)
    return 200 * hits / sum(len(gold) + len(found) for gold, found in pairs)
