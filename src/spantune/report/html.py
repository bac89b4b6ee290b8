"""Self-contained HTML pages: a template of `templates/` with its style, its script and its data inside.

Values are escaped by the template unless they are Markup. The page's content security policy allows only its own style
and its own script, which it knows by its hash, and no loading from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import TYPE_CHECKING

from spantune.core import drawing_style, to_json

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
        style=Markup(drawing_style()),
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


def number(value: float) -> str:
    """Format a count with separators, and with a half where there is one: 12,345 or 1,234.5."""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def points(value: float) -> str:
    """Format a share as percentage points: 0.7423 as 74.2."""
    return f"{100 * value:.1f}"


def interval(low: float | None, high: float | None) -> str:
    """Format the bounds of an interval in points; an empty text where there is none."""
    return "" if low is None or high is None else f"{points(low)}\u2013{points(high)}"
