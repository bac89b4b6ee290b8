"""The service: finished runs over HTTP, with a page, back ends for annotation tools, and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.serving.app import create_app
    from spantune.serving.server import serve
    from spantune.serving.settings import ServeSettings

__all__ = ["ServeSettings", "create_app", "serve"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"app": ("create_app",), "server": ("serve",), "settings": ("ServeSettings",)}
)
