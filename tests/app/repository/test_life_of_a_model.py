"""Models come, change and go at a real service while it is asked all the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from app.server import _Server, create_app
from app.settings import Settings
from tests.app.repository.lives import build, damage, exchange, mean, rows
from tests.app.support import PATIENCE, plain_body, read_answer, serving, until, v2_arrays, v2_body

RELOADS = 100
# Wide enough that models that are not given back are seen: the members of one have 0.5 MiB.
HIDDEN = 4_000
ROW = rows(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return {seed: build(root / str(seed), seed, HIDDEN) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def right(saved):
    """The answer of each, by its seed."""
    return {seed: mean(path, ROW) for seed, path in saved.items()}


def put(root: Path, name: str, new: Path) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    exchange(root / name, new)


@contextlib.contextmanager
def asked_all_the_time(url: str, path: str, right: dict[int, np.ndarray], clients: int = 2) -> Iterator[Counter[Any]]:
    """Clients that ask one after the other until the block ends; every answer must be that of who it says it is."""
    ended, answers, lock = threading.Event(), Counter(), threading.Lock()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            # A pause, since the machine has to load models too.
            while not ended.wait(0.005):
                reply = client.post(path, json=v2_body({"input": ROW}, ["mean"]))
                assert reply.status_code == 200, reply.text
                answer = reply.json()
                seed = answer["parameters"]["seed"]
                np.testing.assert_allclose(v2_arrays(answer)["mean"], right[seed], rtol=1e-5, atol=1e-6)
                with lock:
                    answers[answer["model_version"], seed] += 1

    with ThreadPoolExecutor(clients) as threads:
        asking = [threads.submit(ask) for _ in range(clients)]
        try:
            until(lambda: len(answers), "the first answer")
            yield answers
        finally:
            ended.set()
        for one in asking:
            one.result(PATIENCE)


def memory(process: int) -> int:
    """Bytes that a process has in memory now."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_hundred_reloads_under_load_lose_no_request_and_no_memory(saved, right, tmp_path):
    root = tmp_path / "models"
    put(root, "m/1", saved[1])
    with serving(tmp_path / "log", "--models", root, "--management", "--max-batch", 1) as server:
        server.wait_ready()
        sizes = []
        with (
            asked_all_the_time(server.url, "/v2/models/m/infer", right) as answers,
            httpx.Client(base_url=server.url, timeout=PATIENCE) as operator,
        ):
            for number in range(RELOADS):
                seed = 2 if number % 2 == 0 else 1
                exchange(root / "m" / "1", saved[seed])
                reply = operator.post("/v2/repository/models/m/load", json={})
                assert (reply.status_code, reply.json()) == (200, {})
                # What was loaded answers from now on.
                before = answers["1", seed]
                until(lambda before=before, seed=seed: answers["1", seed] > before, "it answers")
                sizes.append(memory(server.process.pid))
        assert server.metric("ensembled_requests_total", route="/v2/models/{name}/infer") == answers.total()
        # One model that stays behind each time would be 0.5 MiB × 60.
        settled, end = max(sizes[20:40]), min(sizes[-10:])
        assert end - settled < 8 * 2**20, sizes
        assert server.stop() == 0
        assert "Traceback" not in server.text()


def test_versions_that_follow_each_other_answer_each_with_its_own_members(saved, right, tmp_path):
    root = tmp_path / "models"
    put(root, "m/1", saved[1])
    with serving(tmp_path / "log", "--models", root, "--management", "--max-batch", 1) as server:
        server.wait_ready()
        with asked_all_the_time(server.url, "/v2/models/m/infer", right) as answers:
            for version in range(2, 8):
                seed = 1 + (version - 1) % 3
                put(root, f"m/{version}", saved[seed])
                assert server.post("/v2/repository/models/m/load").status_code == 200
                until(lambda version=version, seed=seed: answers[str(version), seed], "the new version answers")
                gone = server.get(f"/v2/models/m/versions/{version - 1}")
                assert (gone.status_code, gone.json()["error"]) == (
                    404,
                    f"model 'm' has no version '{version - 1}'; it has {version}",
                )
            put(root, "m/8", saved[1])
            damage(root / "m" / "8")
            assert server.post("/v2/repository/models/m/load").status_code == 400
        assert {(version, seed) for version, seed in answers} == {(str(v), 1 + (v - 1) % 3) for v in range(1, 8)}
        ready = {(s["version"], s["state"]) for s in server.post("/v2/repository/index").json()}
        assert ready == {("7", "READY"), ("8", "UNAVAILABLE")}
        assert server.get("/v2/health/ready").status_code == 200


def test_polling_follows_the_directory(saved, right, tmp_path):
    root = tmp_path / "models"
    put(root, "m/1", saved[1])

    def seeds() -> dict[str, int]:
        found = {}
        for state in server.post("/v2/repository/index", json={"ready": True}).json():
            metadata = server.get(f"/v2/models/{state['name']}/versions/{state['version']}")
            if metadata.status_code == 200:
                found[f"{state['name']}/{state['version']}"] = metadata.json()["parameters"]["seed"]
        return found

    def becomes(wanted: dict[str, int]) -> None:
        until(lambda: seeds() == wanted, f"{wanted} is served")

    with serving(tmp_path / "log", "--models", root, "--poll", 0.1, "--max-batch", 1) as server:
        server.wait_ready()
        with asked_all_the_time(server.url, "/v2/models/m/infer", right, clients=1):
            put(root, "m/2", saved[2])
            becomes({"m/2": 2})
            put(root, "m/2", saved[3])
            put(root, "n/1", saved[1])
            becomes({"m/2": 3, "n/1": 1})
            shutil.rmtree(root / "m" / "2")
            becomes({"m/1": 1, "n/1": 1})
            shutil.rmtree(root / "n")
            becomes({"m/1": 1})
        assert server.post("/v1/models/n/predict", json=plain_body({"input": ROW})).status_code == 404
        # Looking is no managing.
        assert server.post("/v2/repository/models/m/load").status_code == 403
        assert server.stop() == 0
        assert "Traceback" not in server.text()


def test_sigterm_while_a_model_is_replaced_finishes_what_was_accepted(saved, right, tmp_path):
    root, gate = tmp_path / "models", tmp_path / "gate"
    gate.mkdir()
    put(root, "m/1", saved[1])
    arguments = ("--models", root, "--management", "--max-batch", 1, "--shutdown-timeout", PATIENCE)
    with serving(tmp_path / "log", *arguments, gate=gate) as server, ThreadPoolExecutor(2) as threads:
        server.wait_ready()
        (gate / "load-m").touch()
        put(root, "m/1", saved[2])
        loading = threads.submit(server.post, "/v2/repository/models/m/load")
        until(lambda: "being replaced: waiting for the test" in server.get("/v1/models").text, "it is being replaced")
        # The service goes on answering, and says that it is ready.
        assert server.get("/v2/health/ready").status_code == 200
        body = json.dumps(v2_body({"input": ROW}, ["mean"])).encode()
        assert server.post("/v2/models/m/infer", content=body).json()["parameters"]["seed"] == 1

        (gate / "hold").touch()
        with server.connection() as waits:
            head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
            waits.sendall(head + body)
            until(lambda: (gate / "held").exists(), "the request is in its call")
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            # Who asked for the replacement is told at once, while the call is still running.
            reply = loading.result(PATIENCE)
            assert reply.status_code == 503
            assert reply.json() == {"error": "the service is shutting down"}
            assert server.process.poll() is None
            (gate / "hold").unlink()
            status, _, answer = read_answer(waits)
            assert status == 200
            np.testing.assert_allclose(v2_arrays(json.loads(answer))["mean"], right[1], rtol=1e-5, atol=1e-6)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - begun < 20
        assert "Traceback" not in server.text()
        assert "stopped" in server.text().splitlines()[-1]


def test_who_is_asked_while_it_shuts_down_says_so(saved, tmp_path, running):
    put(tmp_path, "m/1", saved[1])

    async def main() -> None:
        async with running(models=tmp_path, management=True, max_batch=1) as client:
            body = v2_body({"input": ROW}, ["mean"])
            assert (await client.post("/v2/models/m/infer", json=body)).status_code == 200
            client.service.repository.drain()
            ready = await client.get("/v2/health/ready")
            assert (ready.status_code, ready.json()["error"]) == (503, "the service is shutting down")
            for path in ("/v2/models/m/ready", "/v2/models/m/versions/1/ready"):
                assert (await client.get(path)).status_code == 503
            for path in ("/v2/models/m/infer", "/v1/models/m/predict", "/v2/repository/models/m/load"):
                refused = await client.post(path, json=body if path.endswith("infer") else {})
                assert refused.status_code == 503
                assert "the service is shutting down" in refused.json()["error"]
            assert (await client.get("/v2/health/live")).status_code == 200

    asyncio.run(main())


def test_a_request_under_way_finishes_on_the_old_model_which_then_goes(saved, right, tmp_path, running):
    """Nothing that a request passes on its way keeps a model: neither batcher nor engine, metrics or documentation."""
    put(tmp_path, "m/1", saved[1])

    async def main() -> None:
        async with running(models=tmp_path, management=True, max_batch=1) as client:
            service = client.service

            async def ask() -> dict[str, Any]:
                return (await client.post("/v2/models/m/infer", json=v2_body({"input": ROW}, ["mean"]))).json()

            for path in ("/openapi.json", "/v1/models/m", "/v2/models/m", "/v2/models/stats", "/metrics"):
                assert (await client.get(path)).status_code == 200
            assert (await client.post("/v1/models/m/predict", json=plain_body({"input": ROW}))).status_code == 200
            made = service.repository.ready_model("m").ensemble
            parts = [weakref.ref(part) for part in (made, made.program, *made.members.stacked.values())]
            del made
            busy = threading.Event()
            holding = asyncio.create_task(service.engine.run(busy.wait, PATIENCE))
            under_way = [asyncio.create_task(ask()) for _ in range(5)]
            # Until they wait for the engine.
            while service.metrics.text().decode().count("ensembled_queued_rows 0.0"):
                await asyncio.sleep(0.01)
            exchange(tmp_path / "m" / "1", saved[2])
            assert (await client.post("/v2/repository/models/m/load")).status_code == 200
            assert all(part() is not None for part in parts)
            late = asyncio.create_task(ask())
            busy.set()
            await holding
            for asked, seed in [*((asked, 1) for asked in under_way), (late, 2)]:
                answer = await asked
                assert answer["parameters"]["seed"] == seed
                np.testing.assert_allclose(v2_arrays(answer)["mean"], right[seed], rtol=1e-5, atol=1e-6)
            await service.engine.run(lambda: None)
            del under_way, asked, answer
            assert [part() for part in parts if part() is not None] == []

    asyncio.run(main())


def test_a_signal_ends_readiness_at_once(saved, tmp_path):
    """uvicorn looks at what a signal asked for ten times a second; who asks in between is told already."""
    put(tmp_path, "m/1", saved[1])
    app = create_app(Settings(models=tmp_path, compile=False))
    service = app.state.service
    server = _Server(uvicorn.Config(app), service, {})
    assert not service.repository.draining
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert service.repository.draining
    assert not service.repository.ready
    service.engine.close()
