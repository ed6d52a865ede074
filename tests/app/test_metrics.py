"""Names, counts and labels of the metrics."""

from __future__ import annotations

import gc
import re
from types import SimpleNamespace
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import connection
from app.batching import Answer
from app.batching.contract import Reason
from app.collector import DeviceMemory, ModelState
from app.metrics import REASONS, Metrics
from tests.app.support import MEMBERS, metric, plain_body, rows_of, serving

VERSIONED = ("queue_seconds", "compute_seconds", "batch_rows", "batch_requests", "batch_members")


def target(name: str = "m", version: str = "1", members: int = 8):
    return SimpleNamespace(name=name, version=version, ensemble=range(members))


def answered(model: str, version: str, non_finite: tuple[int, ...] = ()) -> dict:
    """What a route notes of a request that was answered."""
    answer = Answer({}, None, 0.0625, 0.125, non_finite)
    return {
        "model": model, "version": version, "asked_at": 1, "decoded": 0.25, "encoded": 0.5, "answer": answer,
    }  # fmt: skip


def page_of(metrics: Metrics) -> str:
    return metrics.text().decode()


def test_what_a_batcher_tells_is_counted():
    metrics = Metrics()
    metrics.batch_done(target(), 5, [0.5, 0.25, 0.0], 0.125)
    metrics.batch_done(target(), 3, [0.0], 0.25, members=2)
    metrics.batch_done(target(version="2"), 1, [0.0], 1.0)
    metrics.queue_changed(7, 2)
    page = page_of(metrics)

    def both(name: str) -> tuple[float, float]:
        found = [metric(page, f"ensembled_{name}_{kind}", model="m", version="1") for kind in ("count", "sum")]
        return found[0], found[1]

    assert both("batch_rows") == (2, 8)
    assert both("batch_requests") == (2, 4)
    assert both("batch_members") == (2, 10)
    assert both("queue_seconds") == (4, 0.75)
    assert both("compute_seconds") == (2, 0.375)
    assert metric(page, "ensembled_compute_seconds_sum", version="2") == 1
    assert metric(page, "ensembled_queued_rows") == 7
    assert metric(page, "ensembled_queued_requests") == 2


def test_two_services_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.queue_changed(3, 1)
    one.refused(target(), "deadline")
    assert metric(page_of(other), "ensembled_queued_rows") == 0
    assert metric(page_of(other), "ensembled_rejected_total") == 0


@pytest.mark.parametrize("reason", ["queue_full", "deadline", "gone", "draining"])
def test_what_the_batcher_refuses_is_counted_by_its_reason(reason):
    metrics = Metrics()
    metrics.refused(target(), reason)
    page = page_of(metrics)
    assert metric(page, "ensembled_rejected_total", reason=reason) == metric(page, "ensembled_rejected_total") == 1


@pytest.mark.parametrize(
    ("status", "route", "state", "reason"),
    [
        (401, "other", {"refused": "unauthorized"}, "unauthorized"),
        (429, "/predict", {"refused": "bodies_full"}, "bodies_full"),
        (429, "/v1/models/{name}/adapt", {"asked_at": 1, "refused": "adapted_full"}, "adapted_full"),
        (503, "/predict", {}, "not_ready"),
        (503, "/v1/models/{name}/adapt", {}, "not_ready"),
        # These the batcher has counted.
        (503, "/predict", {"asked_at": 1}, None),
        (429, "/predict", {"asked_at": 1}, None),
        (504, "/predict", {"asked_at": 1}, None),
        (503, "/v2/health/ready", {}, None),
        (400, "/predict", {}, None),
        (200, "/predict", {"asked_at": 1}, None),
    ],
)
def test_what_is_refused_before_the_batcher_is_counted_once(status, route, state, reason):
    metrics = Metrics()
    metrics.request_begun()
    metrics.request_done(route, status, 0.1, state)
    page = page_of(metrics)
    counted = {r: metric(page, "ensembled_rejected_total", reason=r) for r in REASONS}
    assert {r for r, count in counted.items() if count} == ({reason} if reason else set())


def test_a_service_that_ends_refuses_for_another_reason_than_one_that_begins():
    metrics = Metrics(draining=lambda: True)
    metrics.request_begun()
    metrics.request_done("/predict", 503, 0.1, {})
    assert metric(page_of(metrics), "ensembled_rejected_total", reason="draining") == 1


def test_every_reason_that_somebody_gives_is_known():
    refusals = {value.reason for value in vars(connection).values() if isinstance(value, connection._Refusal)}
    assert len(refusals) >= 3
    assert refusals | set(get_args(Reason)) <= set(REASONS)


def test_what_is_no_request_is_counted_too(service):
    before = service.metric("ensembled_rejected_total", reason="bad_http")
    assert service.raw(b"nonsense\r\n\r\n")[0] == 400
    assert service.metric("ensembled_rejected_total", reason="bad_http") == before + 1


def test_every_reason_is_there_before_it_happened():
    families = text_string_to_metric_families(page_of(Metrics()))
    found = next(f for f in families if f.name == "ensembled_rejected").samples
    assert {s.labels["reason"] for s in found if s.name.endswith("_total")} == set(REASONS)


def test_requests_that_are_being_answered_are_known():
    metrics = Metrics()
    metrics.request_begun()
    metrics.request_begun()
    assert metric(page_of(metrics), "ensembled_requests_in_progress") == 2
    metrics.request_done("/predict", 200, 0.25, {"model": "m", "version": "1"})
    page = page_of(metrics)
    assert metric(page, "ensembled_requests_in_progress") == 1
    assert metric(page, "ensembled_request_seconds_sum", route="/predict", model="m") == 0.25


def test_the_parts_of_an_answer_go_into_the_protocols_statistics():
    metrics = Metrics()
    for status, state in ((200, answered("m", "1")), (400, {"model": "m", "version": "1"}), (404, {})):
        metrics.request_begun()
        metrics.request_done("/predict", status, 1.0, state)
    metrics.request_begun()
    metrics.request_done("/v2/models/{name}", 200, 1.0, {"model": "m", "version": "1"})
    (found,) = metrics.statistics.document([("m", "1")])["model_stats"]
    counts = {name: duration["count"] for name, duration in found["inference_stats"].items() if duration["count"]}
    assert counts == {"success": 1, "fail": 1, "queue": 1, "compute_input": 1, "compute_infer": 1, "compute_output": 1}
    times = [
        found["inference_stats"][name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert times == [62_500_000, 250_000_000, 125_000_000, 500_000_000]


@pytest.mark.parametrize("state", [{}, {"model": "m", "version": "1"}])
def test_the_first_failure_is_seen_to_come_whatever_was_asked(state):
    metrics = Metrics()
    # What rate() compares the first failure with, at the scrape before it.
    assert "ensembled_internal_errors_total 0.0" in page_of(metrics)
    for status in (500, 200, 503, 0):
        metrics.request_begun()
        metrics.request_done("/predict", status, 0.25, state)
    assert metric(page_of(metrics), "ensembled_internal_errors_total") == 1


def test_series_of_what_is_not_loaded_any_more_disappear():
    loaded = [ModelState("a", "1", True), ModelState("a", "2", True), ModelState("b", "1", True)]
    metrics = Metrics(models=lambda: loaded)

    def use():
        for state in (("a", "1"), ("a", "2"), ("b", "1")):
            metrics.batch_done(target(*state), 2, [0.1], 0.1)
            metrics.request_begun()
            metrics.request_done("/predict", 200, 0.1, answered(*state, non_finite=(0, 2)))

    use()
    page = page_of(metrics)
    assert all(metric(page, f"ensembled_{name}_count") == 3 for name in VERSIONED)
    assert metric(page, "ensembled_non_finite_rows_total") == 6
    del loaded[0], loaded[1]
    page = page_of(metrics)
    assert all(metric(page, f"ensembled_{name}_count") == 1 for name in VERSIONED)
    assert metric(page, "ensembled_non_finite_rows_total", model="a", version="2") == 2
    assert 'version="1"' not in page
    assert 'model="b"' not in page
    # Of a model of which another version is loaded, the answers go on being counted.
    assert metric(page, "ensembled_requests_total", model="a") == 2
    assert metrics.statistics.document([("b", "1")])["model_stats"][0]["execution_count"] == 0
    # What ends on the old version after it was unloaded brings nothing back for long.
    use()
    assert 'model="b"' not in page_of(metrics)


def test_versions_that_come_and_go_take_no_memory_although_nobody_asks_for_the_page():
    loaded: list[ModelState] = []
    metrics = Metrics(models=lambda: loaded)

    def reload(version: int) -> None:
        loaded[:] = [ModelState("a", str(version), True)]
        metrics.batch_done(target("a", str(version)), 2, [0.1], 0.1)

    for version in range(10):
        reload(version)
    gc.collect()
    before = len(gc.get_objects())
    for version in range(10, 110):
        reload(version)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_names_follow_the_conventions():
    """What promtool checks: a text for each, base units, and `_total` on counters alone."""
    metrics = Metrics(
        lambda: [ModelState("m", "1", True, 3, 4)], devices=lambda: [DeviceMemory("cuda:0", 1, 1, 1)], build={"v": "1"}
    )
    metrics.batch_done(target(), 5, [0.5], 0.125)
    metrics.request_begun()
    metrics.request_done("/predict", 200, 0.25, {"model": "m", "version": "1"})
    page = page_of(metrics)
    families = list(text_string_to_metric_families(page))
    ours = [f for f in families if f.name.startswith("ensembled_") and not f.name.endswith("_created")]
    assert len(ours) >= 20
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"ensembled(_[a-z]+)+", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|mb|count|sum|bucket|total)$", family.name), family.name
        for unit, word in (("seconds", "ime"), ("bytes", "ytes|emory")):
            if family.name.endswith(f"_{unit}"):
                assert re.search(word, family.documentation), family.name
        if family.type == "counter":
            assert {s.name for s in family.samples} <= {f"{family.name}_total", f"{family.name}_created"}
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert set(sample.labels) <= {"route", "model", "version", "status", "reason", "device", "found", "le", "v"}
    # Nothing is said twice.
    samples = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
    assert len(samples) == len(set(samples))


def test_counts_are_right_after_known_requests_and_labels_are_the_services_own(models, tmp_path):
    # A service of its own, so that nobody else's requests are counted.
    with serving(tmp_path / "log", "--models", models) as server:
        server.wait_ready()
        for rows in (1, 2, 3):
            server.post("/v1/models/house/predict", json=plain_body(rows_of("house", rows)))
        server.post("/v1/models/house/predict", json={"inputs": "wrong"})
        server.post("/v2/models/nobody<script>/infer", json={})
        server.post("/v1/models/%2e%2e%2f%22%0a/predict", json={})
        server.get("/evil%0aensembled_ready%2099")
        server.get("/docs/static/swagger-ui.css")
        server.get("/docs/static/nothing-" + "x" * 500)
        reply = server.get("/metrics")
        page = reply.text
        assert reply.headers["content-type"].startswith("text/plain; version=")

        def requests(**labels: str) -> float:
            return metric(page, "ensembled_requests_total", **labels)

        assert requests(route="/v1/models/{name}/predict", model="house", status="200") == 3
        assert requests(route="/v1/models/{name}/predict", model="house", status="400") == 1
        assert requests(route="/v2/models/{name}/infer", model="", status="404") == 1
        assert requests(route="other", status="404") == 2
        assert requests(route="/docs/static", status="200") == 1
        assert metric(page, "ensembled_request_seconds_count", route="/v1/models/{name}/predict") == 4
        assert metric(page, "ensembled_batch_rows_sum", model="house") == 6
        assert metric(page, "ensembled_batch_rows_count", model="house") == 3
        assert metric(page, "ensembled_queue_seconds_count", model="house") == 3
        assert metric(page, "ensembled_compute_seconds_count", model="house") == 3
        assert metric(page, "ensembled_queued_rows") == 0
        assert metric(page, "ensembled_rejected_total") == metric(page, "ensembled_internal_errors_total") == 0
        assert metric(page, "ensembled_ready") == 1
        for model, version in (("classes", "2"), ("house", "1"), ("pair", "1"), ("weather", "1")):
            assert metric(page, "ensembled_model_ready", model=model, version=version) == 1
            assert metric(page, "ensembled_model_members", model=model) == MEMBERS
            assert metric(page, "ensembled_model_weight_bytes", model=model) > 0
        assert metric(page, "ensembled_batch_members_sum", model="house", version="1") == 3 * MEMBERS
        assert metric(page, "ensembled_build_info", device="cpu") == 1
        # The one that asks for the page.
        assert metric(page, "ensembled_requests_in_progress") == 1
        assert metric(page, "process_resident_memory_bytes") > 10**7
        for hostile in ("nobody", "<script", "evil", "..", "nothing-"):
            assert hostile not in page
        assert server.stop() == 0
