"""The real service as a process, asked by real clients: right answers, alone and in a crowd, to its very end."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.app.support import (
    MEMBERS,
    PATIENCE,
    askable,
    assert_same,
    command,
    expected,
    plain_body,
    rows_of,
    serving,
    until,
    v2_arrays,
    v2_body,
)

MODELS = ("classes", "house", "weather", "pair")


@pytest.mark.parametrize("model", MODELS)
def test_both_protocols_say_what_the_library_says_of_every_statistic(client, loaded, model):
    inputs = rows_of(model, 3)
    every = askable(loaded[model])
    want = expected(loaded[model], inputs, every)
    plain = client.post(f"/v1/models/{model}/predict", json=plain_body(inputs, every))
    v2 = client.post(f"/v2/models/{model}/infer", json=v2_body(inputs, every))
    assert_same(plain.json()["outputs"], want)
    assert_same(v2_arrays(v2.json()), want)
    # In the order in which they were asked for.
    assert list(plain.json()["outputs"]) == [o["name"] for o in v2.json()["outputs"]] == every


@pytest.mark.parametrize("model", MODELS)
def test_each_statistic_can_be_asked_for_alone(client, loaded, model):
    inputs = rows_of(model, 2)
    for name in askable(loaded[model]):
        answer = client.post(f"/v2/models/{model}/infer", json=v2_body(inputs, [name])).json()
        assert_same(v2_arrays(answer), expected(loaded[model], inputs, [name]))


@pytest.mark.parametrize("model", MODELS)
def test_what_is_not_selected_is_the_default_set(client, loaded, model):
    inputs = rows_of(model, 2)
    want = expected(loaded[model], inputs)
    assert list(want) == loaded[model].default_statistics()
    assert_same(client.post(f"/v1/models/{model}/predict", json=plain_body(inputs)).json()["outputs"], want)
    assert_same(v2_arrays(client.post(f"/v2/models/{model}/infer", json=v2_body(inputs)).json()), want)


def test_an_answer_says_what_is_needed_to_replay_it(client):
    body = plain_body(rows_of("classes", 1)) | {"id": "a-1"}
    answer = client.post("/v1/models/classes/predict", json=body).json()
    assert {key: answer[key] for key in ("model", "version", "members", "seed", "id")} == {
        "model": "classes",
        "version": "2",
        "members": MEMBERS,
        "seed": 2,
        "id": "a-1",
    }
    answer = client.post("/v2/models/classes/infer", json=v2_body(rows_of("classes", 1)) | {"id": "a-1"}).json()
    assert answer["parameters"] == {"members": MEMBERS, "seed": 2}
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("classes", "2", "a-1")


def test_more_rows_than_one_call_takes_are_answered_in_order(client, loaded):
    inputs = rows_of("classes", 101)
    answer = client.post("/predict", json=plain_body(inputs, ["mean", "members"])).json()["outputs"]
    assert_same(answer, expected(loaded["classes"], inputs, ["mean", "members"]))


QUESTIONS = [
    (model, api, rows, outputs, seed)
    for seed in range(4)
    for model in MODELS
    for api, rows, outputs in (("v1", 1, None), ("v2", 3, None), ("v1", 7, "all"), ("v2", 2, "all"))
]


def test_64_clients_at_once_get_each_what_they_get_alone(service, loaded):
    before = {m: (service.metric("ensembled_batch_rows_count", model=m)) for m in MODELS}
    assert len(QUESTIONS) == 64

    async def one(client: httpx.AsyncClient, model: str, api: str, rows: int, outputs: str | None, seed: int):
        inputs = rows_of(model, rows, seed)
        names = askable(loaded[model]) if outputs else None
        if api == "v1":
            reply = await client.post(f"/v1/models/{model}/predict", json=plain_body(inputs, names))
            return reply.status_code, reply.json()["outputs"]
        reply = await client.post(f"/v2/models/{model}/infer", json=v2_body(inputs, names))
        return reply.status_code, v2_arrays(reply.json())

    async def crowd():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=service.url, timeout=PATIENCE, limits=limits) as client:
            alone = [await one(client, *question) for question in QUESTIONS]
            rounds = [await asyncio.gather(*(one(client, *question) for question in QUESTIONS)) for _ in range(3)]
        return alone, rounds

    alone, rounds = asyncio.run(crowd())
    for together in rounds:
        for (model, _, rows, outputs, seed), (status, got), (_, single) in zip(QUESTIONS, together, alone, strict=True):
            assert status == 200
            assert_same(got, {name: np.asarray(value) for name, value in single.items()})
            names = askable(loaded[model]) if outputs else None
            assert_same(got, expected(loaded[model], rows_of(model, rows, seed), names))
    calls = sum(service.metric("ensembled_batch_rows_count", model=m) - before[m] for m in MODELS)
    assert calls <= 4 * 64


def test_requests_that_wait_are_merged_and_the_queue_has_an_end_and_sigterm_finishes_all(models, loaded, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    hold = gate / "hold"
    settings = ("--models", models, "--max-queue", 20, "--shutdown-timeout", PATIENCE)
    with serving(tmp_path / "log", *settings, gate=gate) as server, ThreadPoolExecutor(40) as threads:
        server.wait_ready()
        hold.touch()

        def ask(model: str, seed: int, rows: int = 1):
            reply = server.post(f"/v1/models/{model}/predict", json=plain_body(rows_of(model, rows, seed)))
            return reply, expected(loaded[model], rows_of(model, rows, seed))

        def held() -> int:
            """Rows of the call that is held."""
            return int(file.read_text() or 0) if (file := gate / "held").exists() else 0

        def queued() -> float:
            return server.metric("ensembled_queued_rows")

        first = threads.submit(ask, "house", 0)
        until(lambda: held() == 1, "the first is in its call")
        waiting = [threads.submit(ask, "classes", seed) for seed in range(12)]
        waiting += [threads.submit(ask, "weather", seed, 2) for seed in range(4)]
        until(lambda: queued() == 20, "20 rows wait")
        refused, _ = ask("pair", 0)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "20 rows are waiting and the limit is 20" in refused.json()["error"]
        assert server.metric("ensembled_rejected_total", reason="queue_full") == 1
        too_many = server.post("/v1/models/classes/predict", json=plain_body(rows_of("classes", 21)))
        assert too_many.status_code == 400
        assert too_many.json() == {"error": "a request may have 20 rows at most, however: 21"}

        hold.unlink()
        for future in [first, *waiting]:
            reply, want = future.result(PATIENCE)
            assert_same(reply.json()["outputs"], want)
        # 12 requests in one call, and 4 in another.
        for model, calls, rows in (("house", 1, 1), ("classes", 1, 12), ("weather", 1, 8)):
            assert server.metric("ensembled_batch_rows_count", model=model) == calls
            assert server.metric("ensembled_batch_rows_sum", model=model) == rows
        answered = server.metric("ensembled_requests_total", route="/v1/models/{name}/predict", status="200")
        assert answered == 1 + len(waiting)

        hold.touch()
        accepted = [threads.submit(ask, model, seed) for seed in range(4) for model in MODELS]
        until(lambda: held() and queued() + held() == len(accepted), "all wait or are in the call that runs")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(server.port), "it takes no more")
        assert server.process.poll() is None
        hold.unlink()
        for future in accepted:
            reply, want = future.result(PATIENCE)
            assert reply.status_code == 200
            assert_same(reply.json()["outputs"], want)
        assert server.process.wait(PATIENCE) == 0
        assert "stopped" in server.text().splitlines()[-1]


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_readiness_while_loading_and_with_a_broken_model_and_a_stop_in_the_middle(models, loaded, tmp_path):
    root, gate = tmp_path / "models", tmp_path / "gate"
    gate.mkdir()
    for name in ("broken", "classes", "house"):
        (root / name).mkdir(parents=True)
    for name, version in (("classes", "2"), ("house", "1")):
        shutil.copytree(models / name / version, root / name / version)
    (root / "broken" / "1").mkdir()
    (root / "broken" / "1" / "manifest.json").write_text("{}")
    (gate / "load-classes").touch()
    (gate / "load-house").touch()
    with serving(tmp_path / "log", "--models", root, "--default-model", "classes", gate=gate) as server:
        until(lambda: "waiting for the test" in server.get("/v2/health/ready").text, "classes is being loaded")
        live, ready = server.get("/v2/health/live"), server.get("/v2/health/ready")
        assert (live.status_code, live.json()) == (200, {"live": True})
        assert ready.status_code == 503
        assert ready.json()["ready"] is False
        assert ready.json()["models"]["classes"] == "waiting for the test (50%)"
        body = plain_body(rows_of("classes", 2))
        for path in ("/predict", "/v1/models/classes/predict", "/v2/models/classes/infer"):
            early = server.post(path, json=body)
            assert early.status_code == 503
            assert early.json() == {"error": "model 'classes' is not ready: waiting for the test (50%)"}
            assert early.headers["Retry-After"] == "1"
        assert server.get("/v2/models/classes/ready").status_code == 503
        assert server.get("/v2/models/classes").status_code == 503
        assert server.get("/openapi.json").status_code == 200

        (gate / "load-classes").unlink()
        until(lambda: server.get("/v2/models/classes/ready").status_code == 200, "classes is loaded")
        # What is ready answers while the next one is loaded, which stays so.
        until(lambda: "waiting for the test" in server.get("/v2/health/ready").text, "house is being loaded")
        assert server.get("/v2/health/ready").status_code == 503
        broken = server.post("/v1/models/broken/predict", json=body)
        assert broken.status_code == 503
        assert "format_version" in broken.json()["error"]
        assert str(tmp_path) not in broken.text
        states = {m["name"]: m["state"] for m in server.get("/v1/models").json()["models"]}
        assert states == {"broken": "UNAVAILABLE", "classes": "READY", "house": "LOADING"}

        answer = server.post("/predict", json=body)
        assert answer.status_code == 200
        assert_same(answer.json()["outputs"], expected(loaded["classes"], rows_of("classes", 2)))
        begun = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 20
        assert "Traceback" not in server.text()


def test_a_service_with_a_broken_model_answers_for_the_others(models, loaded, tmp_path):
    root = tmp_path / "models"
    for name, version in (("classes", "2"), ("house", "1")):
        shutil.copytree(models / name / version, root / name / version)
    weights = root / "house" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with serving(tmp_path / "log", "--models", root) as server:
        until(lambda: "READY" in server.get("/v1/models").text, "classes is loaded")
        until(lambda: "LOADING" not in server.get("/v1/models").text, "house was tried")
        assert server.get("/v2/health/ready").status_code == 503
        assert "weights.safetensors" in server.get("/v2/health/ready").json()["models"]["house"]
        house = server.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1)))
        assert house.status_code == 503
        assert str(tmp_path) not in house.text
        answer = server.post("/v1/models/classes/predict", json=plain_body(rows_of("classes", 2))).json()
        assert_same(answer["outputs"], expected(loaded["classes"], rows_of("classes", 2)))
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_model_is_loading_ends_the_service_at_once(models, tmp_path, number):
    (tmp_path / "load-classes").touch()
    with serving(tmp_path / "log", "--models", models, gate=tmp_path) as server:
        until(lambda: "waiting for the test" in server.get("/v2/health/ready").text, "classes is being loaded")
        begun = time.monotonic()
        assert server.stop(number) == 0
        assert time.monotonic() - begun < 20
        assert "Traceback" not in server.text()
        assert "error" not in server.text()


def test_predict_prints_the_same_of_a_directory_and_of_the_service(service, models, loaded, tmp_path):
    np.savez(tmp_path / "rows.npz", **(inputs := rows_of("pair", 5)))
    saved = command("predict", models / "pair" / "1", tmp_path / "rows.npz", "--json")
    served = command("predict", service.url, tmp_path / "rows.npz", "--model", "pair", "--json")
    assert (saved.stderr, served.stderr) == ("", "")
    assert_same(json.loads(saved.stdout)["outputs"], expected(loaded["pair"], inputs))
    # To the last digit, since both go one way.
    assert saved.stdout == served.stdout


def test_calls_are_compiled_while_it_answers_and_are_there_again_after_a_restart(models, loaded, tmp_path):
    shutil.copytree(models / "house", tmp_path / "models" / "house")
    arguments = ("--models", tmp_path / "models", "--max-batch", 1, "--cache-dir", tmp_path / "cache")
    # Without a C++ compiler, which takes a while; OpenVINO, where it is installed, needs none.
    environment = {"ENSEMBLED_COMPILE": "1", "PATH": str(tmp_path)}
    inputs = rows_of("house", 1)

    def compiled(server) -> bool:
        assert_same(
            server.post("/predict", json=plain_body(inputs)).json()["outputs"], expected(loaded["house"], inputs)
        )
        return not server.get("/v1/models/house").json()["compiling"]

    with serving(tmp_path / "log", *arguments, **environment) as server:
        server.wait_ready()
        until(lambda: compiled(server), "its calls are compiled")
        about = server.get("/v1/models/house").json()
        assert "inductor is not used: there is no C++ compiler; install g++" in server.text()
        assert "Traceback" not in server.text()
    [way] = about["plan"]
    tried = {trial["way"]: trial for trial in way["tried"]}
    assert about["backends_not_used"]["inductor"] == "there is no C++ compiler; install g++"
    assert tried.keys() | about["backends_not_used"].keys() == {"vmap", "loop", "openvino", "inductor"}
    assert all(trial["relative_error"] < 1e-4 for kind, trial in tried.items() if kind == "openvino")
    assert way["ms"] == min(trial["ms"] for trial in way["tried"])
    with serving(tmp_path / "log2", *arguments, **environment) as server:
        server.wait_ready()
        assert compiled(server)
        again = server.get("/v1/models/house").json()
        assert "is not used" not in server.text()
    assert again["backends_not_used"] == about["backends_not_used"]
    words = ("--json", "--threads", 1, "--max-batch", 1, "--cache-dir", tmp_path / "cache")
    inspected = json.loads(command("inspect", models / "house" / "1", *words, PATH=str(tmp_path)).stdout)
    assert [way["rows"] for way in inspected["plan"]] == [1]


def test_a_stop_while_a_call_is_compiled_is_prompt(models, tmp_path):
    shutil.copytree(models / "house", tmp_path / "models" / "house")
    arguments = ("--models", tmp_path / "models", "--cache-dir", tmp_path / "cache")
    with serving(tmp_path / "log", *arguments, ENSEMBLED_COMPILE="1") as server:
        server.wait_ready()
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 10
        assert "stopped" in server.text()
        assert "Traceback" not in server.text()


def test_a_body_that_does_not_come_is_answered_and_does_not_hold_the_stop(models, tmp_path):
    shutil.copytree(models / "house", tmp_path / "models" / "house")
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with serving(tmp_path / "log", "--models", tmp_path / "models", "--body-timeout", 0.5) as server:
        server.wait_ready()
        status, _, body = server.raw(head)
        assert (status, json.loads(body)) == (408, {"error": "the body did not arrive within 0.5 seconds"})
    with serving(tmp_path / "log2", "--models", tmp_path / "models", "--shutdown-timeout", 1) as server:
        server.wait_ready()
        with server.connection() as connected:
            connected.sendall(head)
            time.sleep(0.2)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 10
        assert "Traceback" not in server.text()
