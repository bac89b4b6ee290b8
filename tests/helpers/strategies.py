"""Hypothesis strategies for documents with nested and crossing entities and unusual characters."""

from __future__ import annotations

from hypothesis import strategies as st

from spantune.core import Document, Entity

characters = st.one_of(
    st.sampled_from("肺炎a \"'\\{}|#\r\n\t\u2028\u0085\ufeff\u0301e\u200d😀𠮷👩🏽"),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.text(characters, max_size=24)
labels = st.text(characters, min_size=1, max_size=4)


@st.composite
def annotated(draw: st.DrawFn, *, crossing: bool = True, on_a_line: bool = False) -> Document:
    text = draw(texts)
    if on_a_line:
        text = (text.replace("\n", "") + ".").rstrip("\r")
    entities: list[Entity] = []
    for _ in range(draw(st.integers(0, 6)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        label = draw(labels.map(lambda name: name.replace("\n", "") + "x") if on_a_line else labels)
        entity = Entity(start, draw(st.integers(start + 1, len(text))), label)
        if crossing or not any(crosses(entity, other) for other in entities):
            entities.append(entity)
    return Document("?", text, tuple(entities))


def crosses(a: Entity, b: Entity) -> bool:
    return a.start < b.start < a.end < b.end or b.start < a.start < b.end < a.end
