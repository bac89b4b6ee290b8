"""Draw documents as HTML: each entity is a coloured line under its text, with the name of its label.

A drawing is one HTML element whose text is the unchanged text of the document. All pages and notebooks take the colour
of a label from `label_colors(task.codes)`, so that a label has the same colour everywhere. The name of the label is
always shown too, so that colour is never the only information. If no task is known, the labels are ordered by code.
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
"""The sign that the tag of an entity shows for each kind of error. An entity of any other kind is drawn as correct."""

JOINER = "\u200d"
"""The zero-width joiner, a character that joins several emoji into one."""

LEFT_OUT = "left out"
"""The kind of an entity whose score is below the threshold. It is drawn, and the script of the page hides it."""

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
"""The colours of labels, each as (colour on a light page, colour on a dark page). With more labels, colours repeat.

They were found by a search with these conditions: the contrast is at least 4.6 on white and at least 5 on #1b1d22, and
any two colours differ by at least 6 (OKLab, scale 0 to 100) in normal, protan, deutan and tritan vision (simulated as
in Machado et al. 2009).
"""


def label_colors(codes: Sequence[str]) -> dict[str, int]:
    """Return label code to index in LABEL_COLORS. The style class of the label is `entity-` with this index.

    Args:
        codes: the label codes in the order of the task, or sorted if there is no task.
    """
    return {code: index % len(LABEL_COLORS) for index, code in enumerate(dict.fromkeys(codes))}


def draw_entities(
    document: Document,
    codes: Sequence[str],
    kinds: Mapping[Entity, str] | None = None,
    names: Mapping[str, str] | None = None,
    scores: bool = False,
) -> str:
    """Draw `document` as one HTML element. The page must contain the style sheet of `drawing_style()`.

    Args:
        document: the text with its entities.
        codes: the label codes, whose order determines the colours. A label that is not in it is grey.
        kinds: entity to kind: a kind of error (see `metrics.error_analysis`) or LEFT_OUT. An entity without a kind is
            drawn as correct.
        names: label code to the name that is shown instead of the code.
        scores: whether to show scores, and to write them into the attribute `data-score` for a script.
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
    """Return a document as HTML for a notebook: its drawing and a table, together with their style sheet.

    The table has the label, offsets, text and score of every entity. It stays readable if styles are removed.

    Args:
        document: the text with its entities.
        codes: the label codes in the order of the task, which determines the colours. If None, see `label_order`.
        names: label code to name.
    """
    return framed_html(document_html(document, codes, names))


def document_html(
    document: Document, codes: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> str:
    """Return the drawing and table of `entities_html` without the style sheet, as content for `framed_html`."""
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
    """Return the HTML `content` in an element that brings the style sheet of drawings and tables, for a notebook.

    The colours follow the light or dark colour scheme of the reader.
    """
    style = drawing_style(".spantune-document")
    return f'<div class="spantune-document"><style>{style}{_FRAME}</style>{content}</div>'


_session_codes: tuple[str, ...] = ()


def prefer_label_order(codes: Iterable[str], *, is_task: bool = True) -> None:
    """Set the order of labels that determines the colours of documents that a notebook shows from now on.

    Args:
        codes: the label codes of a task or a corpus, in their order.
        is_task: True if the order is that of a task, which always replaces an earlier order. The order of a corpus is
            used only if no order was set before.
    """
    global _session_codes
    if is_task or not _session_codes:
        _session_codes = tuple(codes)


def label_order(codes: Iterable[str]) -> list[str]:
    """Return the order of labels that determines the colours if the caller has no task.

    It consists of the labels of `prefer_label_order`, followed by those of `codes` that are not among them.
    """
    return list(dict.fromkeys([*_session_codes, *codes]))


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table with the header row `head`; the first cell of a row is its header. Texts are escaped."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in others)
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def drawing_style(root: str = ":root") -> str:
    """Return the CSS of drawings. The colours follow the light or dark colour scheme of the reader.

    Args:
        root: the CSS selector of the element for which the colours are defined.
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
    """Return the level of every entity's line: 0 is next to the text, and overlapping entities have different levels.

    Shorter entities are placed first, so an inner entity is nearer to the text than the entity around it.
    """
    levels: dict[Entity, int] = {}
    for entity in sorted(entities, key=lambda entity: (entity.end - entity.start, entity)):
        taken = {level for placed, level in levels.items() if placed.start < entity.end and entity.start < placed.end}
        levels[entity] = next(level for level in range(len(taken) + 1) if level not in taken)
    return levels


def _covering(levels: Mapping[Entity, int], begin: int, end: int) -> list[Entity]:
    """Return the entities that cover [begin, end), sorted by level, beginning with the one nearest to the text."""
    covering = (entity for entity in levels if entity.start <= begin and end <= entity.end)
    return sorted(covering, key=levels.__getitem__)


@dataclass(frozen=True)
class _Line:
    """How an entity is drawn.

    Args:
        entity: the entity.
        color: the index of its colour in LABEL_COLORS; None for grey.
        kind: its kind of error; another text if it is correct.
        level: the level of its line, 0 next to the text (see `_levels`).
        name: the name of its label.
    """

    entity: Entity
    color: int | None
    kind: str
    level: int
    name: str


def _markup(line: _Line, surface: str, scores: bool) -> tuple[str, str]:
    """Return two pieces of HTML for an entity: the start tag of its line, and the tag with its label after the text."""
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
    """Wrap `content` in the line of every entity in `covering`; the first one is the innermost."""
    for entity in covering:
        content = f"{lines[entity][0]}{content}</span>"
    return content


def _tags(
    levels: Mapping[Entity, int], ending: Iterable[Entity], offset: int, lines: Mapping[Entity, tuple[str, str]]
) -> list[str]:
    """Return the tags of the entities in `ending`, which are placed at `offset`; inner entities come first.

    Each tag is wrapped in the lines of the other entities that continue at `offset` or that end there after it.
    """
    ordered = sorted(ending, key=levels.__getitem__)
    continuing = {entity for entity in levels if entity.start < offset < entity.end}
    tags = []
    for index, entity in enumerate(ordered):
        above = continuing | {later for later in ordered[index + 1 :] if later.end == offset}
        tags.append(_under(lines[entity][1], sorted(above, key=levels.__getitem__), lines))
    return tags


def _tag_offset(text: str, offset: int) -> int:
    """Return the first offset, not before `offset`, that does not split a letter from its marks or a joined emoji."""
    while 0 < offset < len(text) and (category(text[offset])[0] == "M" or JOINER in text[offset - 1 : offset + 1]):
        offset += 1
    return offset
