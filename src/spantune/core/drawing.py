"""Documents as HTML: their entities as coloured lines with names, one colour a label.

A drawing is one HTML element whose text is the unchanged text of the document. Every page, and a notebook, takes the
colour of a label from here: `label_colors(task.codes)`, so that a label has one colour everywhere. A label is also
named beside its line, so that nothing is told by colour alone. Where no task is known, the order is that of the sorted
codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from unicodedata import category

from spantune.core.document import Document, Entity
from spantune.core.frames import number

ERROR_SIGNS: Mapping[str, str] = {
    "type": "\u2260",
    "boundary": "\u2194",
    "boundary+type": "\u2194\u2260",
    "missed": "\u2212",
    "spurious": "+",
}
"""The sign in the tag of each kind of error; every other kind is drawn as correct."""

JOINER = "\u200d"
"""The zero-width joiner, which joins emoji into one."""

LEFT_OUT = "left out"
"""The kind of an entity that a threshold left out: a script hides it."""

LABEL_COLORS = (
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


def label_colors(codes: Sequence[str]) -> dict[str, int]:
    """Return the index of every label in LABEL_COLORS, which is also the N of its style class `entity-N`.

    Args:
        codes: the label codes in the order of the task; without a task, sorted.
    """
    return {code: index % len(LABEL_COLORS) for index, code in enumerate(dict.fromkeys(codes))}


def draw_entities(
    document: Document,
    codes: Sequence[str],
    kinds: Mapping[Entity, str] | None = None,
    names: Mapping[str, str] | None = None,
    scores: bool = False,
) -> str:
    """Draw `document` as one HTML element, for a page that has `drawing_style()`.

    Args:
        document: the text with its entities.
        codes: the labels in the order that gives their colours; a label that is not among them is grey.
        kinds: the kind of each entity (see `metrics.error_analysis`), or LEFT_OUT; None draws all as correct.
        names: code to the name that is shown instead of it.
        scores: whether scores are shown, and stand in `data-score` for a script.
    """
    entities = sorted(set(document.entities))
    colors = label_colors(codes)
    levels = _levels(entities)
    lines = {}
    for entity, level in levels.items():
        name = (names or {}).get(entity.label) or entity.label
        line = _Line(entity, colors.get(entity.label), (kinds or {}).get(entity, ""), level, name)
        lines[entity] = _markup(line, document.surface(entity), scores)
    tag_offsets = {entity: _tag_offset(document.text, entity.end) for entity in entities}
    cuts = {offset for entity in entities for offset in (entity.start, entity.end, tag_offsets[entity])}
    parts = []
    for begin, end in pairwise(sorted({0, len(document.text)} | cuts)):
        parts.append(_under(escape(document.text[begin:end]), _covering(levels, begin, end), lines))
        ending = [entity for entity in levels if tag_offsets[entity] == end]
        parts += _tags(levels, ending, end, lines)
    depth = max(levels.values(), default=-1) + 1
    return f'<div class="drawn" dir="auto" lang="" style="--depth:{depth}">{"".join(parts)}</div>'


def entities_html(
    document: Document, codes: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> str:
    """Return a document as HTML that needs no page around it, as a notebook shows it: its drawing and a table.

    The table names label, offsets, text and score of every entity, so that nothing is lost where styles are removed.

    Args:
        document: the text with its entities.
        codes: the labels of the task in its order, which gives the colours; see `label_order` when absent.
        names: code to name.
    """
    return framed_html(document_html(document, codes, names))


def document_html(
    document: Document, codes: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> str:
    """Return what `entities_html` shows, for a frame of `framed_html` that shows more."""
    if codes is None:
        codes = label_order(sorted({entity.label for entity in document.entities}))
    drawing = draw_entities(document, codes, names=names)
    rows = [
        (
            (names or {}).get(entity.label) or entity.label,
            str(entity.start),
            str(entity.end),
            document.surface(entity),
            "" if entity.score is None else f"{entity.score:.3f}",
        )
        for entity in document.entities
    ]
    table = table_html(("label", "start", "end", "text", "score"), rows)
    count = number(len(rows), "entity", "entities")
    details = f"<details><summary>{count}</summary>{table}</details>" if rows else "<p>no entities</p>"
    return f"{drawing}{details}"


def framed_html(content: str) -> str:
    """Return markup in a frame that has the style of drawings and tables, as a notebook shows it in light and dark."""
    style = drawing_style(".spantune-document")
    return f'<div class="spantune-document"><style>{style}{_FRAME}</style>{content}</div>'


_session_codes: tuple[str, ...] = ()


def prefer_label_order(codes: Iterable[str], *, is_task: bool = True) -> None:
    """Have what a notebook shows from now on take the colours of this order.

    Args:
        codes: the labels of a task or a corpus in their order.
        is_task: the order of a task replaces an earlier one; that of a corpus holds until there is one.
    """
    global _session_codes
    if is_task or not _session_codes:
        _session_codes = tuple(codes)


def label_order(codes: Iterable[str]) -> list[str]:
    """Return the labels that give the colours where no task is at hand: those of `prefer_label_order`, then `codes`."""
    return list(dict.fromkeys([*_session_codes, *codes]))


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table with a header row and the first column as row headers; all texts are escaped."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in others)
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def drawing_style(root: str = ":root") -> str:
    """Return the style sheet of drawings; its colours follow the light or dark colour scheme of the reader.

    Args:
        root: the CSS selector of the element that has the colours.
    """
    light, dark = (
        "".join(f"--entity-{index}:{pair[mode]};" for index, pair in enumerate(LABEL_COLORS)) for mode in (0, 1)
    )
    classes = "\n".join(f".entity-{index}{{--colour:var(--entity-{index})}}" for index in range(len(LABEL_COLORS)))
    return (
        f"{root}{{{light}--entity-other:#5d6470;--paper:#ffffff;--ink:#1b1d22}}\n"
        f"@media (prefers-color-scheme:dark){{{root}{{{dark}--entity-other:#a4abb8;--paper:#1b1d22;--ink:#e7e9ee}}}}\n"
        f".entity-other{{--colour:var(--entity-other)}}\n{classes}\n{_SHAPES}"
    )


_FRAME = """.spantune-document{background:var(--paper);color:var(--ink);padding:.6rem .8rem;border-radius:.4rem}
.spantune-document table{color:inherit;font-size:.85em}
.spantune-document th,.spantune-document td{padding:.1em .6em;text-align:left}
"""
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


@dataclass(frozen=True)
class _Line:
    """How an entity is drawn: `color` is its index in LABEL_COLORS, and `level` counts the lines nearer to the text."""

    entity: Entity
    color: int | None
    kind: str
    level: int
    name: str


def _markup(line: _Line, surface: str, scores: bool) -> tuple[str, str]:
    """Return the markup of an entity: the start tag of its line under the text, and its label behind the text."""
    entity, color = line.entity, "other" if line.color is None else line.color
    sign = ERROR_SIGNS.get(line.kind)
    tag = f"{line.name} {sign} {line.kind}" if sign else line.name
    data = ""
    if scores and entity.score is not None:
        tag = f"{tag} {entity.score:.2f}"
        data = f' data-score="{entity.score:.4f}"' + (" data-left-out" if line.kind == LEFT_OUT else "")
    code = f" {entity.label}" if line.name != entity.label else ""
    hint = f"{surface} [{entity.start}, {entity.end}){code} {tag}"
    shape = " ".join(line.kind.split("+")) if sign else ""
    under = f'<span class="under entity-{color} {shape}" style="--level:{line.level}"{data}>'
    error = " error" if sign else ""
    end = f'<i class="tag entity-{color}{error}" data-tag="{escape(tag)}" title="{escape(hint)}"{data}></i>'
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
