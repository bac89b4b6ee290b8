"""HTML pages that are one file: the engine of the templates in `web/`, which escapes all that is put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def engine(**filters: Callable[..., Any]) -> Environment:
    """The templates of `web/`, autoescaped and strict, with `filters` by name."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("spantune", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made
