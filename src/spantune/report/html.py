"""Self-contained HTML pages: a template of `templates/` with its style, its script and its data inside.

Values are escaped by the template unless they are Markup. The page's content security policy allows only its own style
and its own script, which it knows by its hash, and no loading from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING
from unicodedata import category

from spantune.core import Document, Entity, to_json

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, script: str, **values: object) -> str:
    """Return the page of `template` with the program of `script`, both files of `templates/`, filled with `values`.

    The script gets the values too, but data must not be put into it: they go through `embed`.
    """
    from markupsafe import Markup

    program = render_part(script, **values)
    return render_part(
        template,
        style=Markup(style()),
        script=Markup(program),
        script_hash=base64.b64encode(hashlib.sha256(program.encode()).digest()).decode(),
        **values,
    )


def render_part(template: str, **values: object) -> str:
    """Return a part of a page: `template`, a file of `templates/`, filled with `values`."""
    return _engine().get_template(template).render(**values)


@functools.cache
def _engine() -> Environment:
    """The engine of the templates, which keeps those that it has compiled."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader("spantune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(number=number, points=points)
    return engine


def embed(values: object) -> Markup:
    """Return JSON for a script element; it cannot end the element, since it has no `<`."""
    from markupsafe import Markup

    return Markup(to_json(values, compact=True).replace("<", "\\u003c"))


def colours(labels: Sequence[str]) -> dict[str, int]:
    """Return the index of every label in the palette."""
    return {label: index % len(PALETTE) for index, label in enumerate(labels)}


def number(value: float) -> str:
    """Format a count with separators, and with a half where there is one: 12,345 or 1,234.5."""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def points(value: float) -> str:
    """Format a share as percentage points: 0.7423 as 74.2."""
    return f"{100 * value:.1f}"


def interval(low: float | None, high: float | None) -> str:
    """Format the bounds of an interval in points; an empty text where there is none."""
    return "" if low is None or high is None else f"{points(low)}\u2013{points(high)}"


SIGNS: Mapping[str, str] = {
    "type": "\u2260",
    "boundary": "\u2194",
    "boundary+type": "\u2194\u2260",
    "missed": "\u2212",
    "spurious": "+",
}
"""The sign in the tag of each kind of error; every other kind is drawn as correct."""

JOINER = "\u200d"
"""The zero-width joiner, which joins emoji into one."""

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
"""(light, dark) colours, found by search: contrast at least 4.6 on white and 5 on #1b1d22, and at least 6 apart
(OKLab, 0 to 100) in normal, protan, deutan and tritan vision (Machado 2009). With more labels the colours repeat."""


def draw(document: Document, labels: Sequence[str], kinds: Mapping[Entity, str] | None = None) -> str:
    """Draw `document` as one HTML element, for a page that has `style()`.

    Args:
        document: the text with its entities.
        labels: the index of a label in them gives its colour; a label that is not among them is grey.
        kinds: the kind of each entity (see `metrics.error_analysis`); None draws all as correct.
    """
    entities = sorted(set(document.entities))
    levels = _levels(entities)
    lines = {
        entity: _line(document, entity, labels, (kinds or {}).get(entity, ""), level)
        for entity, level in levels.items()
    }
    tag_offsets = {entity: _tag_offset(document.text, entity.end) for entity in entities}
    cuts = {offset for entity in entities for offset in (entity.start, entity.end, tag_offsets[entity])}
    parts = []
    for begin, end in pairwise(sorted({0, len(document.text)} | cuts)):
        parts.append(_under(escape(document.text[begin:end]), _covering(levels, begin, end), lines))
        ending = [entity for entity in levels if tag_offsets[entity] == end]
        parts += _tags(levels, ending, end, lines)
    depth = max(levels.values(), default=-1) + 1
    return f'<div class="drawn" dir="auto" lang="" style="--depth:{depth}">{"".join(parts)}</div>'


def style() -> str:
    """Return the style sheet of drawings; its colours follow the light or dark colour scheme of the page."""
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
    """Return the level of every entity, 0 next to the text; shorter entities come first, so inner ones are nearer."""
    levels: dict[Entity, int] = {}
    for entity in sorted(entities, key=lambda entity: (entity.end - entity.start, entity)):
        taken = {level for placed, level in levels.items() if placed.start < entity.end and entity.start < placed.end}
        levels[entity] = next(level for level in range(len(taken) + 1) if level not in taken)
    return levels


def _covering(levels: Mapping[Entity, int], begin: int, end: int) -> list[Entity]:
    """Return the entities that cover [begin, end), the nearest to the text first."""
    covering = (entity for entity in levels if entity.start <= begin and end <= entity.end)
    return sorted(covering, key=levels.__getitem__)


def _line(document: Document, entity: Entity, labels: Sequence[str], kind: str, level: int) -> tuple[str, str]:
    """Return the markup of an entity: the start tag of its line under the text, and its label behind the text."""
    colour = str(labels.index(entity.label) % len(PALETTE)) if entity.label in labels else "other"
    sign = SIGNS.get(kind)
    shape = " ".join(kind.split("+")) if sign else ""
    tag = f"{entity.label} {sign} {kind}" if sign else entity.label
    hint = f"{document.surface(entity)} [{entity.start}, {entity.end}) {tag}"
    under = f'<span class="under entity-{colour} {shape}" style="--level:{level}">'
    error = " error" if sign else ""
    end = f'<i class="tag entity-{colour}{error}" data-tag="{escape(tag)}" title="{escape(hint)}"></i>'
    return under, end


def _under(content: str, covering: Iterable[Entity], lines: Mapping[Entity, tuple[str, str]]) -> str:
    """Put `content` inside the lines of the entities that cover it."""
    for entity in covering:
        content = f"{lines[entity][0]}{content}</span>"
    return content


def _tags(
    levels: Mapping[Entity, int], ending: Iterable[Entity], offset: int, lines: Mapping[Entity, tuple[str, str]]
) -> list[str]:
    """Return the labels at `offset`, inner ones first, above the lines that continue there."""
    ordered = sorted(ending, key=levels.__getitem__)
    continuing = {entity for entity in levels if entity.start < offset < entity.end}
    tags = []
    for index, entity in enumerate(ordered):
        above = continuing | {later for later in ordered[index + 1 :] if later.end == offset}
        tags.append(_under(lines[entity][1], sorted(above, key=levels.__getitem__), lines))
    return tags


def _tag_offset(text: str, offset: int) -> int:
    """Return the first offset from `offset` on that is not inside a letter with marks or a joined emoji."""
    while 0 < offset < len(text) and (category(text[offset])[0] == "M" or JOINER in text[offset - 1 : offset + 1]):
        offset += 1
    return offset
