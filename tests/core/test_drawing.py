"""Drawings of annotated texts: the text is unchanged, every entity is shown, and no text becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.core import ERROR_SIGNS as SIGNS
from spantune.core import LABEL_COLORS as PALETTE
from spantune.core import Document, Entity, entities_html, label_colors, prefer_label_order
from spantune.core import draw_entities as draw
from spantune.core import drawing_style as style

LABELS = [f"L{index}" for index in range(len(PALETTE) + 2)]
ODD = (
    '<script>alert(1)</script> & "x"\n\u764c e\u0301 \U0001f469\u200d\u2695\ufe0f \u0627\u0644\u0645\u0631\u064a\u0636'
)


class Drawing(HTMLParser):
    """Parses a drawing: its text, the characters under each line, and the tags with their places."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.open: list[tuple[str, str]] = []
        self.elements: set[str] = set()
        self.under: dict[tuple[str, str], list[int]] = {}
        self.tags: list[tuple[int, str, str]] = []
        self.over: dict[str, list[str]] = {}
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.add(tag)
        self.open.append((values.get("class", "").strip(), values.get("style", "")))
        if tag == "i":
            self.tags.append((len(self.text), values["data-tag"], values["title"]))
            self.over[values["data-tag"]] = [name for name, _ in self.open[1:-1]]

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for line in self.open[1:]:
            self.under.setdefault(line, []).extend(range(len(self.text), len(self.text) + len(data)))
        self.text += data


@st.composite
def any_document(draw_: st.DrawFn) -> Document:
    text = draw_(st.text(st.sampled_from(ODD), min_size=1, max_size=30))
    places = st.integers(0, len(text))
    spans = draw_(st.lists(st.tuples(places, places, st.sampled_from(LABELS)), max_size=8))
    return Document("1", text, tuple(Entity(min(a, b), max(a, b), label) for a, b, label in spans if a != b))


@settings(max_examples=200, deadline=None)
@given(any_document(), st.sampled_from(["", *SIGNS]))
def test_text_is_kept_and_every_entity_is_drawn(document: Document, kind: str):
    entities = sorted(set(document.entities))
    drawing = Drawing(draw(document, LABELS, {entity: kind for entity in entities}))
    assert drawing.text == document.text
    assert drawing.elements <= {"div", "span", "i"}
    sign = f" {SIGNS[kind]} {kind}" if kind else ""
    expected = [f"{document.surface(e)} [{e.start}, {e.end}) {e.label}{sign}" for e in entities]
    assert sorted(hint for _, _, hint in drawing.tags) == sorted(expected)
    covered = sorted(place for places in drawing.under.values() for place in places)
    assert covered == sorted(place for entity in entities for place in range(entity.start, entity.end))


def test_nested_and_crossing_entities_have_their_own_lines():
    document = Document("1", "abcdefgh", (Entity(0, 5, "L0"), Entity(1, 3, "L1"), Entity(4, 8, "L2")))
    drawing = Drawing(draw(document, LABELS))
    assert drawing.under == {
        ("under entity-0", "--level:1"): [0, 1, 2, 3, 4],
        ("under entity-1", "--level:0"): [1, 2],
        ("under entity-2", "--level:0"): [4, 5, 6, 7],
    }
    assert [(place, tag) for place, tag, _ in drawing.tags] == [(3, "L1"), (5, "L0"), (8, "L2")]
    # a line that continues passes under the tag of another entity
    assert drawing.over == {"L1": ["under entity-0"], "L0": ["under entity-2"], "L2": []}


def test_one_span_with_two_labels_has_two_levels_and_two_tags():
    drawing = Drawing(draw(Document("1", "ab", (Entity(0, 2, "L0"), Entity(0, 2, "L1"))), LABELS))
    assert set(drawing.under) == {("under entity-0", "--level:0"), ("under entity-1", "--level:1")}
    assert [tag for _, tag, _ in drawing.tags] == ["L0", "L1"]


@pytest.mark.parametrize("kind", SIGNS)
def test_error_is_told_in_words_sign_and_shape(kind: str):
    entity = Entity(0, 1, "L0")
    markup = draw(Document("1", "ab", (entity,)), LABELS, {entity: kind})
    assert f'data-tag="L0 {SIGNS[kind]} {kind}"' in markup
    assert "tag entity-0 error" in markup
    assert all(f".drawn .{part}" in style() for part in kind.split("+"))


def test_correct_entity_carries_no_error():
    entity = Entity(0, 1, "L0")
    assert draw(Document("1", "ab", (entity,)), LABELS, {entity: "correct"}) == draw(
        Document("1", "ab", (entity,)), LABELS
    )


def test_labels_beyond_the_palette_begin_again_and_unknown_ones_are_grey():
    entities = (Entity(0, 1, LABELS[len(PALETTE)]), Entity(1, 2, "<new>"))
    markup = draw(Document("1", "ab", entities), LABELS)
    assert "under entity-0" in markup and "under entity-other" in markup
    assert 'data-tag="&lt;new&gt;"' in markup


@pytest.mark.parametrize(
    ("text", "end", "place"),
    [("e\u0301cole", 1, 2), ("\U0001f469\u200d\u2695\ufe0f!", 1, 4), ("ab", 1, 1), ("ae\u0301", 2, 3)],
)
def test_tag_tears_no_cluster_apart(text: str, end: int, place: int):
    drawing = Drawing(draw(Document("1", text, (Entity(0, end, "L0"),)), LABELS))
    assert drawing.tags[0][0] == place
    assert drawing.under[("under entity-0", "--level:0")] == list(range(end))


def test_empty_text_is_an_empty_element():
    assert Drawing(draw(Document("1", ""), LABELS)).text == ""


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2.2 defines it."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_is_readable_on_its_paper():
    papers = re.findall(r"--paper:(#\w{6})", style())
    others = re.findall(r"--entity-other:(#\w{6})", style())
    assert len(PALETTE) == 12 and len(papers) == 2
    for mode, paper in enumerate(papers):
        for colour in [both[mode] for both in PALETTE] + [others[mode]]:
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (colour, paper)


# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def seen(colours: Sequence[str], sight: str) -> np.ndarray:
    """Return the OKLab coordinates (0 to 100) of colours as a person with this kind of colour vision sees them."""
    channels = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    simulated = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    return 100 * np.cbrt(simulated @ np.array(TO_CONES).T) @ np.array(TO_LAB).T


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("mode", [0, 1])
def test_a_dozen_colours_are_told_apart_by_every_sight(mode: int, sight: str):
    places = seen([both[mode] for both in PALETTE], sight)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert distances[~np.eye(len(PALETTE), dtype=bool)].min() > 5.9


def test_colours_follow_the_order_of_the_codes_and_begin_again() -> None:
    codes = [f"L{index}" for index in range(14)]
    assert [label_colors([*codes, "L0"])[code] for code in codes] == [*range(12), 0, 1]


def test_names_and_scores_are_shown_and_a_script_reads_the_scores() -> None:
    document = Document("1", "ab", (Entity(0, 1, "dis", 0.987654), Entity(1, 2, "bod")))
    markup = draw(document, ["dis", "bod"], names={"dis": "<disease>"}, scores=True)
    assert re.findall('data-tag="([^"]*)"', markup) == ["&lt;disease&gt; 0.99", "bod"]
    assert markup.count('data-score="0.9877"') == 2 and "a [0, 1) dis &lt;disease&gt; 0.99" in markup
    assert "0.99" not in draw(document, ["dis", "bod"])


def test_a_document_without_a_page_has_its_style_its_drawing_and_a_table_of_its_entities() -> None:
    document = Document("1", "<b>b", (Entity(0, 3, "dis", 0.5), Entity(2, 4, "bod")))
    markup = entities_html(document, ["x", "dis"], {"dis": "disease"})
    assert draw(document, ["x", "dis"], names={"dis": "disease"}) in markup and ":root" not in markup
    assert "<b>" not in markup and '<th scope="row">disease</th><td>0</td><td>3</td><td>&lt;b&gt;</td>' in markup
    assert "<td>0.500</td>" in markup and "2 entities" in markup
    prefer_label_order([])  # another test's extractor may have set an order
    assert "under entity-0" in entities_html(document) and "no entities" in entities_html(Document("1", "a"))
