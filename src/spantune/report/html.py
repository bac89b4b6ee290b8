"""HTML pages that are one file: a template of `templates/` with its style, its script and its data inside.

What is put into a template is escaped unless it is Markup, and the page's policy allows its own script and style and
nothing else, from nowhere. A page has one script at most, known to the policy by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unicodedata import category

from spantune.core import Document, Entity

if TYPE_CHECKING:
    from markupsafe import Markup


def render(template: str, script: str, **values: Any) -> str:
    """The page of `template` with the program of `script`, both files of `templates/`, filled with `values`.

    The script gets the values too; it is a program, into which no data belong: those go through `embed`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    engine = Environment(
        loader=PackageLoader("spantune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(number=number, points=points)
    program = engine.get_template(script).render(**values)
    return engine.get_template(template).render(
        style=Markup(style()),
        script=Markup(program),
        script_hash=base64.b64encode(hashlib.sha256(program.encode()).digest()).decode(),
        **values,
    )


def embed(values: Any) -> Markup:
    """JSON that no HTML parser takes for the end of its element."""
    from markupsafe import Markup

    return Markup(json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def colours(labels: Sequence[str]) -> dict[str, int]:
    """The place in the palette of every label."""
    return {label: index % len(PALETTE) for index, label in enumerate(labels)}


def number(value: float) -> str:
    """A count with separators, and a half where there is one: 12,345 or 1,234.5."""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def points(value: float) -> str:
    """A share as percentage points: 0.7423 as 74.2."""
    return f"{100 * value:.1f}"


def interval(low: float | None, high: float | None) -> str:
    """The bounds of an interval in points, or an empty text where there is none."""
    return "" if low is None or high is None else f"{points(low)}\u2013{points(high)}"


SIGNS: Mapping[str, str] = {
    "type": "\u2260",
    "boundary": "\u2194",
    "boundary+type": "\u2194\u2260",
    "missed": "\u2212",
    "spurious": "+",
}
"""Kind of error to the sign in its tag; every other kind is drawn as correct."""

JOINER = "\u200d"
"""Joins emoji into one."""

PALETTE = (
    ("#1771e3", "#83b1e9"),
    ("#7b4811", "#f96803"),
    ("#077771", "#05e995"),
    ("#c44195", "#f47cae"),
    ("#647e05", "#f9fa30"),
    ("#743aaf", "#ab78fc"),
    ("#213e08", "#379f71"),
    ("#880a4d", "#fec2fe"),
    ("#084e72", "#c2fdd9"),
    ("#391d90", "#f9b125"),
    ("#55055a", "#c869c3"),
    ("#4100f5", "#b4af6e"),
)
"""(light, dark) colours, by search: contrast at least 4.6 on white and 5 on #1b1d22, and at least 6 apart
(OKLab, 0 to 100) in normal, protan, deutan and tritan vision (Machado 2009). Further labels begin again."""


def draw(document: Document, labels: Sequence[str], kinds: Mapping[Entity, str] | None = None) -> str:
    """Draw `document` as one HTML element; put `style()` on the page once.

    A label's place in `labels` gives its colour, and one that is not there is grey. `kinds` says what became
    of an entity (a kind of `metrics.errors`); without it all are drawn as correct.
    """
    entities = sorted(set(document.entities))
    rows = _levels(entities)
    lines = {
        entity: _line(document, entity, labels, (kinds or {}).get(entity, ""), level) for entity, level in rows.items()
    }
    ends = {entity: _whole(document.text, entity.end) for entity in entities}
    places = {place for entity in entities for place in (entity.start, entity.end, ends[entity])}
    parts = []
    for begin, end in pairwise(sorted({0, len(document.text)} | places)):
        parts.append(_under(escape(document.text[begin:end]), _covering(rows, begin, end), lines))
        ending = [entity for entity in rows if ends[entity] == end]
        parts += _tags(rows, ending, end, lines)
    depth = max(rows.values(), default=-1) + 1
    return f'<div class="drawn" dir="auto" lang="" style="--depth:{depth}">{"".join(parts)}</div>'


def style() -> str:
    """The style sheet of drawings, for light and dark; it sets its colours from the page's colour scheme."""
    light, dark = (
        "".join(f"--entity-{index}:{colours[mode]};" for index, colours in enumerate(PALETTE)) for mode in (0, 1)
    )
    classes = "\n".join(f".entity-{index}{{--colour:var(--entity-{index})}}" for index in range(len(PALETTE)))
    return (
        f":root{{{light}--entity-other:#5d6470;--paper:#ffffff}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}--entity-other:#a4abb8;--paper:#1b1d22}}}}\n"
        f".entity-other{{--colour:var(--entity-other)}}\n{classes}\n{_SHAPES}"
    )


_SHAPES = """.drawn{white-space:pre-wrap;overflow-wrap:anywhere;line-height:calc(1.75em + var(--depth)*5px)}
.drawn .under{border-bottom:3px solid var(--colour);padding-bottom:calc(2px + var(--level)*5px)}
.drawn .boundary{border-bottom-style:dashed}
.drawn .type{border-bottom-style:double;border-bottom-width:4px}
.drawn .missed,.drawn .spurious{border-bottom-style:dotted}
.drawn .tag{font-style:normal;user-select:none}
.drawn .tag::after{content:"\\2060" attr(data-tag);color:var(--colour);
 font:600 .68em/1 ui-sans-serif,system-ui,sans-serif;margin:0 .35em 0 .15em;padding:.1em .3em;
 border:1px solid transparent;border-radius:.35em;white-space:nowrap;
 unicode-bidi:isolate;direction:ltr;vertical-align:.12em;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.drawn .error::after{background:var(--colour);color:var(--paper);border-color:var(--colour)}
"""


def _levels(entities: Iterable[Entity]) -> dict[Entity, int]:
    """The level of every entity, 0 the nearest to the text: shorter ones first, so that nesting reads inside out."""
    levels: dict[Entity, int] = {}
    for entity in sorted(entities, key=lambda entity: (entity.end - entity.start, entity)):
        taken = {level for other, level in levels.items() if other.start < entity.end and entity.start < other.end}
        levels[entity] = next(level for level in range(len(taken) + 1) if level not in taken)
    return levels


def _covering(levels: Mapping[Entity, int], begin: int, end: int) -> list[Entity]:
    """The entities over [begin, end), the nearest to the text first."""
    return sorted((one for one in levels if one.start <= begin and end <= one.end), key=levels.__getitem__)


def _line(document: Document, entity: Entity, labels: Sequence[str], kind: str, level: int) -> tuple[str, str]:
    """The opening tags of an entity: of its line under the text, and of the tag that ends it."""
    place = str(labels.index(entity.label) % len(PALETTE)) if entity.label in labels else "other"
    sign = SIGNS.get(kind)
    shape = " ".join(kind.split("+")) if sign else ""
    tag = f"{entity.label} {sign} {kind}" if sign else entity.label
    hint = f"{document.surface(entity)} [{entity.start}, {entity.end}) {tag}"
    under = f'<span class="under entity-{place} {shape}" style="--level:{level}">'
    error = " error" if sign else ""
    end = f'<i class="tag entity-{place}{error}" data-tag="{escape(tag)}" title="{escape(hint)}"></i>'
    return under, end


def _under(content: str, covering: Iterable[Entity], lines: Mapping[Entity, tuple[str, str]]) -> str:
    """`content` inside the lines of the entities that cover it."""
    for entity in covering:
        content = f"{lines[entity][0]}{content}</span>"
    return content


def _tags(
    levels: Mapping[Entity, int], ending: Iterable[Entity], place: int, lines: Mapping[Entity, tuple[str, str]]
) -> list[str]:
    """The tags that stand at `place`, inner ones first, over the lines that go on there."""
    waiting = sorted(ending, key=levels.__getitem__)
    going_on = {one for one in levels if one.start < place < one.end}
    tags = []
    for position, entity in enumerate(waiting):
        over = going_on | {one for one in waiting[position + 1 :] if one.end == place}
        tags.append(_under(lines[entity][1], sorted(over, key=levels.__getitem__), lines))
    return tags


def _whole(text: str, place: int) -> int:
    """The first place from `place` on where a tag tears no mark from its letter and no joined emoji apart."""
    while 0 < place < len(text) and (category(text[place])[0] == "M" or JOINER in text[place - 1 : place + 1]):
        place += 1
    return place
