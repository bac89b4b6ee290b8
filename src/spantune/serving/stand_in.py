"""A session over `Extractor.stream`, until extractors have sessions of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spantune.core import Document, Extraction
from spantune.extraction import Extractor, load_run


@dataclass(frozen=True)
class Options:
    """What a request may ask for; None leaves it to the run."""

    min_score: float | None = None
    labels: tuple[str, ...] | None = None
    chunk_tokens: int | None = None
    overlap: int | None = None
    whole: bool = False


class Session:
    """A session over `Extractor.stream`: computes a few documents at each step; options are not looked at."""

    def __init__(self, extractor: Extractor):
        self._extractor, self._waiting, self._last = extractor, dict[int, Document](), 0

    def submit(self, document: Document, options: Options = Options()) -> int:
        """Return the ticket of a document."""
        self._last += 1
        self._waiting[self._last] = document
        return self._last

    def cancel(self, ticket: int) -> None:
        """Forget a document."""
        self._waiting.pop(ticket, None)

    def step(self) -> list[tuple[int, Extraction]]:
        """Return some that have ended."""
        tickets = list(self._waiting)[:8]
        documents = [self._waiting.pop(ticket) for ticket in tickets]
        return list(zip(tickets, self._extractor.stream(documents, strict=False), strict=True))

    @property
    def pending(self) -> int:
        """Documents submitted and not finished or cancelled."""
        return len(self._waiting)


def session_of(extractor: Extractor) -> Session:
    """Return a session of an extractor."""
    return Session(extractor)


def load_runs(paths: list[Path], device: str, min_score: float | None) -> dict[str, Extractor]:
    """Load the extractor of each run, by the name of its folder."""
    return {path.resolve().name: load_run(path, device, min_score=min_score) for path in paths}
