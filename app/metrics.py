"""Prometheus metrics: what is counted, under which name and unit.

Labels hold names and versions of loaded models and fixed words only, never what a client sent. What is a state is
looked up when the page is asked for; series of a version that is not loaded any more disappear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.collector import OF_VERSION, DeviceMemory, ModelState, States
from app.statistics import Key, Parts, Statistics

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = tuple(1 << power for power in range(13))

# Why requests are refused. The batcher tells the first four, connections the last six. Of the others the error that
# answers the request names its own, but for one that finds no model to ask.
REASONS = {
    "queue_full": "too many rows waited",
    "deadline": "its time had passed before it was computed",
    "gone": "the client went away before it was computed",
    "draining": "the service was shutting down",
    "not_ready": "the model was not loaded",
    "stuck": "a call did not end",
    "bodies_full": "the bodies of all requests together were over the limit",
    "adapted_full": "too many adapted models were kept",
    "too_large": "the body was over the limit",
    "too_slow": "the body did not arrive in time",
    "unauthorized": "there was no key, or a wrong one",
    "forbidden": "whoever asked may not",
    "misdirected": "it was for another host",
    "bad_http": "it was no request in HTTP/1.1",
    "head_too_large": "its line and headers were over the limit",
    "head_timeout": "its line and headers did not arrive in time",
    "pipelined": "too many requests waited on one connection",
    "connections": "too many connections were open",
    "slow_reader": "the client did not take its answer in time",
}
_INFERENCES = ("/infer", "/predict", "/adapt")


@dataclass(frozen=True)
class _Series:
    """The histograms of one version, found once and not for each call."""

    queue: Histogram
    compute: Histogram
    rows: Histogram
    requests: Histogram
    members: Histogram


class Metrics:
    """The metrics of one service; observer of its batcher.

    Args:
        models: gives every version that is there.
        ready: whether all that should be loaded is.
        live: whether calls end in time.
        draining: whether the service is shutting down.
        devices: gives the memory of each accelerator that is used.
        build: what the service was made of, as labels.
        kept: how many adapted models are kept, and the bytes of their weights.
    """

    def __init__(
        self,
        models: Callable[[], Iterable[ModelState]] | None = None,
        ready: Callable[[], bool] = lambda: False,
        live: Callable[[], bool] = lambda: True,
        draining: Callable[[], bool] = lambda: False,
        devices: Callable[[], Iterable[DeviceMemory]] = tuple,
        build: Mapping[str, str] | None = None,
        kept: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.statistics = Statistics()
        self._models = models
        self._draining = draining
        self._series: dict[Key, _Series] = {}
        self._asked: dict[tuple[str, str], Histogram] = {}
        self._answered: dict[tuple[str, str, int], Counter] = {}
        self._in_progress = 0
        self._queued_rows = self._queued_requests = 0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

        def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
            return Counter(f"ensembled_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"ensembled_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"ensembled_{name}", text, labels, registry=self._registry, buckets=buckets)

        self._requests = counter(
            "requests", "Requests answered, by route, model and status (499: the client had gone).",
            ("route", "model", "status"),
        )  # fmt: skip
        # Without labels, since Prometheus sees a series grow only from its second value on, and the first failure is to
        # be seen, whatever was asked.
        self._internal_errors = Counter(
            "ensembled_internal_errors", "Requests answered 500, a fault of the service.", registry=self._registry
        )
        self._request_seconds = histogram(
            "request_seconds", "Time from a request's head to the end of its answer.", ("route", "model")
        )
        self._queue_seconds = histogram("queue_seconds", "Time that a request waited for its call.", OF_VERSION)
        self._compute_seconds = histogram("compute_seconds", "Time of one call of a model.", OF_VERSION)
        self._rows = histogram("batch_rows", "Rows in one call.", OF_VERSION, _COUNTS)
        self._merged = histogram("batch_requests", "Requests that shared one call.", OF_VERSION, _COUNTS)
        self._members = histogram("batch_members", "Members that one call evaluated.", OF_VERSION, _COUNTS)
        self._non_finite = counter("non_finite_rows", "Rows of which some output was NaN or infinite.", OF_VERSION)
        gauge("requests_in_progress", "Requests that are being answered.").set_function(lambda: self._in_progress)
        gauge("ready", "1 if every model is loaded and warm.").set_function(lambda: float(ready()))
        gauge("live", "1 while calls end in time.").set_function(lambda: float(live()))
        gauge("queued_rows", "Rows that wait now.").set_function(lambda: self._queued_rows)
        gauge("queued_requests", "Requests that wait now.").set_function(lambda: self._queued_requests)
        gauge("adapted_models", "Adapted models that are kept.").set_function(lambda: kept()[0])
        gauge("adapted_bytes", "Bytes of the weights of adapted models that are kept.").set_function(lambda: kept()[1])
        self._of_versions = (
            self._queue_seconds, self._compute_seconds, self._rows, self._merged, self._members, self._non_finite
        )  # fmt: skip
        self._rejected = counter("rejected", "Requests that were refused, by reason.", ("reason",))
        for reason in REASONS:
            self._rejected.labels(reason)
        if build is not None:
            gauge("build_info", "What the service was made of; always 1.", tuple(build)).labels(*build.values()).set(1)
        if models is not None:
            self._registry.register(States(models, devices))

    def batch_done(
        self, target: Any, rows: int, queued: Sequence[float], compute: float, members: int | None = None
    ) -> None:
        """A call is done; see :class:`app.batching.Observer`."""
        key = (target.name, target.version)
        series = self._series.get(key) or self._begin(key)
        for seconds in queued:
            series.queue.observe(seconds)
        series.compute.observe(compute)
        series.rows.observe(rows)
        series.requests.observe(len(queued))
        series.members.observe(len(target.ensemble) if members is None else members)
        self.statistics.call_done(key, rows, compute)

    def queue_changed(self, rows: int, requests: int = 0) -> None:
        """So many rows, of so many requests, wait now."""
        self._queued_rows, self._queued_requests = rows, requests

    def refused(self, target: Any, reason: str) -> None:
        """A request gets no answer from a model."""
        self._rejected.labels(reason).inc()

    def request_begun(self) -> None:
        """The head of a request was read."""
        self._in_progress += 1

    def request_done(self, route: str, status: int, seconds: float, state: Mapping[str, Any]) -> None:
        """A request was answered.

        Args:
            route: the pattern of its path.
            status: of the answer, 0 if there was none.
            state: what the route noted: ``model`` and ``version``; of an inference that was handed to the batcher
                ``asked_at``; once it was answered ``answer``, ``decoded`` and ``encoded`` (seconds); and of one that
                was refused the error's reason as ``refused``.
        """
        self._in_progress -= 1
        model = state.get("model", "")
        counted = self._answered.get((route, model, status))
        if counted is None:
            counted = self._answered[route, model, status] = self._requests.labels(route, model, str(status))
        counted.inc()
        timed = self._asked.get((route, model))
        if timed is None:
            timed = self._asked[route, model] = self._request_seconds.labels(route, model)
        timed.observe(seconds)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self._internal_errors.inc()
        if (reason := state.get("refused")) is not None:
            self._rejected.labels(reason).inc()
        if not route.endswith(_INFERENCES):
            return
        if status == HTTPStatus.SERVICE_UNAVAILABLE and "asked_at" not in state:
            self._rejected.labels("draining" if self._draining() else "not_ready").inc()
        if model:
            parts = None
            if status == HTTPStatus.OK and (answer := state.get("answer")) is not None:
                if answer.non_finite_rows:
                    self._non_finite.labels(model, state["version"]).inc(len(answer.non_finite_rows))
                parts = Parts(answer.queued, state["decoded"], answer.computed, state["encoded"])
            self.statistics.request_done((model, state["version"]), seconds, parts)

    def text(self) -> bytes:
        """In Prometheus' exposition format."""
        self._forget()
        return generate_latest(self._registry)

    def _begin(self, key: Key) -> _Series:
        # Whoever never asks for the page still must not pay for versions that came and went.
        self._forget()
        self._non_finite.labels(*key)
        series = self._series[key] = _Series(
            self._queue_seconds.labels(*key),
            self._compute_seconds.labels(*key),
            self._rows.labels(*key),
            self._merged.labels(*key),
            self._members.labels(*key),
        )
        return series

    def _forget(self) -> None:
        if self._models is None:
            return
        loaded = {(state.name, state.version) for state in self._models() if state.ready}
        names = {name for name, _ in loaded}
        self.statistics.keep(loaded)
        for key in self._series.keys() - loaded:
            del self._series[key]
            for each in self._of_versions:
                each.remove_by_labels(dict(zip(OF_VERSION, key, strict=True)))
        for route, model in [key for key in self._asked if key[1] and key[1] not in names]:
            del self._asked[route, model]
            self._request_seconds.remove(route, model)
        for route, model, status in [key for key in self._answered if key[1] and key[1] not in names]:
            del self._answered[route, model, status]
            self._requests.remove(route, model, str(status))
