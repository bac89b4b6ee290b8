"""The service: runs behind HTTP, with a page, annotation back ends and metrics."""

from __future__ import annotations

__all__: list[str] = []
