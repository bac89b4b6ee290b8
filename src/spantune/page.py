"""HTML pages that are one file: a template of `web/` with its style, its script and its data inside.

What is put into a template is escaped unless it is Markup, and the page's policy allows its own script and style and
nothing else, from nowhere. A page has one script at most, known to the policy by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spantune.drawing import PALETTE, style

if TYPE_CHECKING:
    from markupsafe import Markup


def render(template: str, script: str, **values: Any) -> str:
    """The page of `template` with the program of `script`, both files of `web/`, filled with `values`.

    The script gets the values too; it is a program, into which no data belong: those go through `embed`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    engine = Environment(
        loader=PackageLoader("spantune", "web"),
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
