"""The statistics of a real service, as Triton's client reads them."""

from __future__ import annotations

import shutil
import threading

import pytest

from tests.app.support import plain_body, rows_of, serving, until, v2_body


def stats(server, path: str = "/v2/models/stats") -> dict[tuple[str, str], dict]:
    reply = server.get(path)
    assert reply.status_code == 200
    return {(m["name"], m["version"]): m for m in reply.json()["model_stats"]}


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """While this directory holds `hold`, calls wait."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def used(models, gate, tmp_path_factory):
    """A service of its own, since its counts are looked at, after known requests."""
    folder = tmp_path_factory.mktemp("statistics")
    for name in ("house", "weather"):
        shutil.copytree(models / name, folder / "models" / name)
    with serving(folder / "log", "--models", folder / "models", gate=gate) as server:
        server.wait_ready()
        for rows in (1, 2, 3):
            server.post("/v2/models/house/infer", json=v2_body(rows_of("house", rows))).raise_for_status()
        server.post("/v1/models/house/predict", json=plain_body(rows_of("house", 2))).raise_for_status()
        assert server.post("/v2/models/house/infer", json={"inputs": []}).status_code == 400
        # None of these is an inference of a model.
        server.get("/v2/models/house")
        server.post("/v2/models/nobody/infer", json={})
        yield server


def test_what_was_answered_is_counted(used):
    found = stats(used)["house", "1"]
    assert (found["inference_count"], found["execution_count"]) == (8, 4)
    times = found["inference_stats"]
    assert times["success"]["count"] == times["queue"]["count"] == times["compute_infer"]["count"] == 4
    assert times["fail"]["count"] == 1
    assert times["fail"]["ns"] > 0
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in found["batch_stats"]] == [(1, 1), (2, 2), (3, 1)]
    # Every part was really measured, and together they are no more than the whole.
    parts = [times[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= times["success"]["ns"]
    assert sum(b["compute_infer"]["ns"] for b in found["batch_stats"]) == pytest.approx(parts[2], abs=10)
    assert times["cache_hit"] == times["cache_miss"] == {"count": 0, "ns": 0}


def test_the_last_inference_is_a_time_of_day(used):
    before = stats(used)["house", "1"]["last_inference"]
    used.post("/v2/models/house/infer", json=v2_body(rows_of("house", 1))).raise_for_status()
    after = stats(used)["house", "1"]["last_inference"]
    assert before < after
    assert 1.7e12 < after < 1e13


def test_all_models_one_model_and_one_version_can_be_asked_for(used):
    assert {name for name, _ in stats(used)} == {"house", "weather"}
    assert set(stats(used, "/v2/models/house/stats")) == {("house", "1")}
    assert set(stats(used, "/v2/models/house/versions/1/stats")) == {("house", "1")}
    for path in ("/v2/models/nobody/stats", "/v2/models/house/versions/9/stats"):
        reply = used.get(path)
        assert reply.status_code == 404
        assert "error" in reply.json()


def test_it_is_announced(used):
    assert "statistics" in used.get("/v2").json()["extensions"]


def test_requests_that_share_a_call_are_told_from_calls(used, gate):
    (gate / "hold").touch()
    body = plain_body(rows_of("weather", 1))
    asking = [
        threading.Thread(target=used.post, args=("/v1/models/weather/predict",), kwargs={"json": body})
        for _ in range(4)
    ]
    # Alone, or others would join its call before the engine takes it.
    asking[0].start()
    until((gate / "held").exists, "one is being computed")
    for thread in asking[1:]:
        thread.start()
    until(lambda: used.metric("ensembled_queued_requests") == 3, "three wait")
    (gate / "hold").unlink()
    for thread in asking:
        thread.join()
    found = stats(used)["weather", "1"]
    assert found["inference_count"] == found["inference_stats"]["success"]["count"] == 4
    assert found["execution_count"] == sum(b["compute_infer"]["count"] for b in found["batch_stats"]) == 2


def test_tritons_client_reads_them(used):
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(used.url.removeprefix("http://")) as client:
        (found,) = client.get_inference_statistics("house")["model_stats"]
        assert found["inference_stats"]["success"]["count"] >= 4
        assert len(client.get_inference_statistics()["model_stats"]) == 2
        assert client.get_inference_statistics("house", "1")["model_stats"][0]["version"] == "1"
