"""Exports of a run that other engines load: merged weights, a plain adapter, GGUF, and a loader for span heads."""

from __future__ import annotations

__all__: list[str] = []
