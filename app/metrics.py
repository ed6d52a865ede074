"""Prometheus metrics: what is counted, under which name and unit.

Labels hold names of loaded models and fixed words only, never what a client sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one service; observer of its batcher."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def named(kind: type, name: str, text: str, labels: Sequence[str] = (), **rest: Any) -> Any:
            return kind(f"ensembled_{name}", text, labels, registry=self._registry, **rest)

        self.requests: Counter = named(
            Counter, "requests", "Requests answered, by route, model and status.", ("route", "model", "status")
        )
        self.request_seconds: Histogram = named(
            Histogram, "request_seconds", "Time from head to answer.", ("route",), buckets=_SECONDS
        )
        self.queue_seconds: Histogram = named(
            Histogram, "queue_seconds", "Time a request waited for its call.", ("model",), buckets=_SECONDS
        )
        self.compute_seconds: Histogram = named(
            Histogram, "compute_seconds", "Time of one call.", ("model",), buckets=_SECONDS
        )
        self.batch_rows: Histogram = named(Histogram, "batch_rows", "Rows in one call.", ("model",), buckets=_ROWS)
        self.queued_rows: Gauge = named(Gauge, "queued_rows", "Rows that wait now.")
        self.rejected: Counter = named(Counter, "rejected", "Requests refused, by reason.", ("reason",))
        self.ready: Gauge = named(Gauge, "ready", "1 if every model is loaded and warm.")
        self.model_ready: Gauge = named(Gauge, "model_ready", "1 if the model can answer.", ("model", "version"))
        self.members: Gauge = named(Gauge, "model_members", "Members of a loaded model.", ("model", "version"))
        self.weights: Gauge = named(Gauge, "model_weight_bytes", "Bytes of its weights.", ("model", "version"))

    def batch_done(self, target: Any, rows: int, queued: Sequence[float], compute: float) -> None:
        for seconds in queued:
            self.queue_seconds.labels(target.name).observe(seconds)
        self.compute_seconds.labels(target.name).observe(compute)
        self.batch_rows.labels(target.name).observe(rows)

    def queue_changed(self, rows: int) -> None:
        self.queued_rows.set(rows)

    def text(self) -> bytes:
        """In Prometheus' exposition format."""
        return generate_latest(self._registry)
