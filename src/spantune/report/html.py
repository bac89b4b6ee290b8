"""Self-contained HTML pages: a template of the folder `templates/`, which contains its style, its script and its data.

The template escapes every value that is not Markup. The content security policy of a page allows only its own style and
its own script, which is identified by its hash, and forbids loading anything.
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
    """Return an HTML page.

    Args:
        template: the file of the page in `templates/`.
        script: the file of its script in `templates/`.
        values: the values of the template, by name. The script file may use them too, but documents and other data must
            be passed to the page by `embed` instead.
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
    """Return a part of a page: the file `template` of `templates/`, filled with `values`."""
    return _engine().get_template(template).render(**values)


@functools.cache
def _engine() -> Environment:
    """Return the template engine, which caches compiled templates. An undefined value is an error."""
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
    """Return `values` as JSON for a script element. It has no `<`, so that it cannot end the element.

    Raises:
        DataError: as `core.to_json`.
    """
    from markupsafe import Markup

    return Markup(to_json(values, compact=True).replace("<", "\\u003c"))


def number(value: float) -> str:
    """Format a count with thousands separators, and with one decimal place if it is not whole: 12,345 or 1,234.5."""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def points(value: float) -> str:
    """Format a share in percentage points: 0.7423 becomes 74.2."""
    return f"{100 * value:.1f}"


def interval(low: float | None, high: float | None) -> str:
    """Format the bounds of an interval in percentage points, such as 72.1–76.0; "" if there is no interval."""
    return "" if low is None or high is None else f"{points(low)}\u2013{points(high)}"
