"""The metrics of the service for Prometheus: requests, queue, documents, seconds and problems."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from spantune.core import Extraction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120)
"""The upper bounds of the histograms' buckets, at most a factor of 2.5 apart, so that percentiles are accurate."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "spantune_requests",
            "Requests, by route, method and status.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "spantune_request_seconds", "Seconds of a request.", ("route",), buckets=SECONDS, registry=registry
        )
        self._documents = Counter(
            "spantune_documents", "Documents that are done, by how they ended.", ("model", "status"), registry=registry
        )
        self._document_seconds = Histogram(
            "spantune_document_seconds",
            "Seconds from when a document was accepted until it was done.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._problems = Counter(
            "spantune_problems", "Problems of documents, by kind.", ("model", "kind"), registry=registry
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read from `value` whenever the metrics are requested."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request; `seconds` is its duration."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def document(self, model: str, extraction: Extraction, seconds: float) -> None:
        """Count a finished document; `seconds` is the time since it was accepted."""
        self._documents.labels(model, str(extraction.status)).inc()
        self._document_seconds.labels(model).observe(seconds)
        for problem in extraction.problems:
            self._problems.labels(model, str(problem.kind)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
