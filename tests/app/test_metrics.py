"""Names, counts and labels of the metrics."""

from __future__ import annotations

from types import SimpleNamespace

from app.metrics import Metrics
from tests.app.support import MEMBERS, metric, plain_body, rows_of, serving


def test_what_a_batcher_tells_is_counted():
    metrics = Metrics()
    target = SimpleNamespace(name="m")
    metrics.batch_done(target, 5, [0.5, 0.25, 0.0], 0.125)
    metrics.batch_done(target, 3, [0.0], 0.25)
    metrics.queue_changed(7)
    page = metrics.text().decode()
    assert metric(page, "ensembled_batch_rows_count", model="m") == 2
    assert metric(page, "ensembled_batch_rows_sum", model="m") == 8
    assert metric(page, "ensembled_queue_seconds_count", model="m") == 4
    assert metric(page, "ensembled_queue_seconds_sum", model="m") == 0.75
    assert metric(page, "ensembled_compute_seconds_sum", model="m") == 0.375
    assert metric(page, "ensembled_queued_rows") == 7


def test_two_services_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.queue_changed(3)
    assert metric(other.text().decode(), "ensembled_queued_rows") == 0


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
        assert metric(page, "ensembled_rejected_total") == 0
        assert metric(page, "ensembled_ready") == 1
        for model, version in (("classes", "2"), ("house", "1"), ("pair", "1"), ("weather", "1")):
            assert metric(page, "ensembled_model_ready", model=model, version=version) == 1
            assert metric(page, "ensembled_model_members", model=model) == MEMBERS
            assert metric(page, "ensembled_model_weight_bytes", model=model) > 0
        for hostile in ("nobody", "script", "evil", "..", "nothing-"):
            assert hostile not in page
        assert server.stop() == 0
