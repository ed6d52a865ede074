"""Requests that wait, on the real service: deadlines, clients that go away, pieces, fewer members, a call that hangs.

Its calls are held by a file, so that what happens while one runs is no race.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ensemble
from tests.app.support import Server, assert_same, expected, plain_body, rows_of, serving, until, v2_arrays, v2_body

MANY = 96


@pytest.fixture(scope="module")
def many() -> ensemble.Ensemble:
    """A classifier of many members."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return ensemble.perturb(
        model, ensemble.Gaussian(scale=0.3), members=MANY, example=torch.randn(4, 4), task="classification"
    )


class Held:
    """A service whose calls can be held."""

    def __init__(self, server: Server, gate) -> None:
        self.server, self._gate = server, gate
        self._threads = concurrent.futures.ThreadPoolExecutor(16)

    def ask(self, model: str, inputs, outputs=None, *, headers=None, **parameters: Any) -> Callable[[], Any]:
        """Ask in the background; what it gives waits for the answer."""
        body = plain_body(inputs, outputs) | ({"parameters": parameters} if parameters else {})
        return self._threads.submit(
            self.server.post, f"/v1/models/{model}/predict", json=body, headers=headers or {}
        ).result

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], Any]]:
        """A call of one row runs until the block ends; what it gives waits for its answer."""
        (self._gate / "hold").touch()
        try:
            first = self.ask("house", rows_of("house", 1))
            until((self._gate / "held").exists, "the first is in its call")
            yield first
        finally:
            (self._gate / "hold").unlink()

    def queued(self) -> float:
        return self.server.metric("ensembled_queued_rows")

    def counts(self, model: str) -> tuple[float, float]:
        """Calls of a model, and their rows."""
        return (
            self.server.metric("ensembled_batch_rows_count", model=model),
            self.server.metric("ensembled_batch_rows_sum", model=model),
        )

    def rejected(self, reason: str) -> float:
        return self.server.metric("ensembled_rejected_total", reason=reason)


@pytest.fixture(scope="module")
def held(models, many, tmp_path_factory) -> Iterator[Held]:
    root, gate = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("gate")
    shutil.copytree(models / "house", root / "house")
    many.save(root / "many" / "1")
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(log, "--models", root, "--engine-timeout", 30, gate=gate) as server:
        yield Held(server.wait_ready(), gate)


def points(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"input": rows_of("classes", rows, seed)["input"]}


def test_what_is_past_its_deadline_is_answered_504_while_the_engine_is_busy_and_never_computed(held, loaded):
    calls, rows = held.counts("house")
    late = held.rejected("deadline")
    inputs = rows_of("house", 2)
    with held.held() as first:
        by_header = held.ask("house", inputs, headers={"X-Request-Timeout": "0.05"})
        by_parameter = held.ask("house", inputs, timeout_seconds=0.05)
        v2 = held.server.post("/v2/models/house/infer", json=v2_body(inputs) | {"parameters": {"timeout": 50_000}})
        for answer in (by_header(), by_parameter(), v2):
            assert answer.status_code == 504
            assert "deadline passed" in answer.json()["error"]
            # All that time it waited for its call.
            spent = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
            assert float(spent["infer"]) == 0 < float(spent["queue"]) <= float(spent["total"])
        stays = held.ask("house", inputs, timeout_seconds=60)
        until(lambda: held.queued() == 2, "the one with time waits, and the others do not")
    assert first().status_code == 200
    assert_same(stays().json()["outputs"], expected(loaded["house"], inputs))
    assert held.counts("house") == (calls + 2, rows + 3)
    assert held.rejected("deadline") == late + 3


def test_a_client_that_leaves_in_the_middle_of_its_body_counts_as_gone(held):
    def gone() -> float:
        return held.server.metric("ensembled_requests_total", model="house", status="499")

    before = gone()
    with held.server.connection() as connected:
        connected.sendall(b"POST /v1/models/house/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        until(lambda: held.server.metric("ensembled_requests_in_progress") > 1, "its head was read")
    until(lambda: gone() == before + 1, "it is counted")


def test_a_client_that_has_gone_is_not_computed_for(held):
    calls, rows = held.counts("house")
    gone = held.rejected("gone")
    body = json.dumps(plain_body(rows_of("house", 5))).encode()
    head = b"POST /v1/models/house/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with held.held() as first:
        with held.server.connection() as connected:
            connected.sendall(head + body)
            until(lambda: held.queued() == 5, "its rows wait")
        until(lambda: held.queued() == 0, "its rows wait no more")
        assert held.rejected("gone") == gone + 1
    assert first().status_code == 200
    assert held.counts("house") == (calls + 1, rows + 1)
    assert "Traceback" not in held.server.text()


def test_a_request_larger_than_a_call_goes_in_pieces_and_others_do_not_wait_for_all_of_it(held, loaded):
    calls, rows = held.counts("house")
    large, small = rows_of("house", 100), rows_of("house", 2)
    with held.held() as first:
        whole = held.ask("house", large, ["mean", "members"])
        until(lambda: held.queued() == 100, "it waits")
        other = held.ask("house", small, ["mean"])
        until(lambda: held.queued() == 102, "both wait")
    assert first().status_code == 200
    assert_same(other().json()["outputs"], expected(loaded["house"], small, ["mean"]))
    assert_same(whole().json()["outputs"], expected(loaded["house"], large, ["mean", "members"]))
    # A call of the server has 16 rows: ⌈102 / 16⌉ of them, and the one that was held.
    assert held.counts("house") == (calls + 8, rows + 103)


def test_a_request_may_ask_for_fewer_members(held, many):
    inputs = points(3)
    prediction = many.predict(torch.from_numpy(inputs["input"]), members=10)
    want = {name: tensor.numpy() for name, tensor in prediction.flat().items()}
    plain = held.ask("many", inputs, members=10)().json()
    assert plain["members"] == 10
    assert_same(plain["outputs"], want)
    v2 = held.server.post("/v2/models/many/infer", json=v2_body(inputs) | {"parameters": {"members": 10}}).json()
    assert v2["parameters"]["members"] == 10
    assert_same(v2_arrays(v2), want)
    assert held.ask("many", inputs, members=MANY)().json()["members"] == MANY
    refused = held.ask("many", inputs, members=MANY + 1)()
    assert refused.status_code == 400
    assert f"from 1 to {MANY}" in refused.json()["error"]


def test_with_a_tolerance_members_stop_once_the_mean_is_known_and_neighbours_change_nothing(held, many):
    outputs = ["mean", "standard_error", "mutual_information"]
    every = [points(n % 3 + 1, n) for n in range(12)]
    errors = many.predict(torch.from_numpy(points(50)["input"]), statistics=["standard_error"], members=24)
    tolerance = float(errors.standard_error.amax(1).quantile(0.8))
    alone = [held.ask("many", inputs, outputs, tolerance=tolerance)().json() for inputs in every]
    assert len({answer["members"] for answer in alone}) > 2
    assert min(answer["members"] for answer in alone) < MANY / 2
    for inputs, answer in zip(every, alone, strict=True):
        prediction = many.predict(torch.from_numpy(inputs["input"]), statistics=outputs, tolerance=tolerance)
        assert answer["members"] == prediction.count
        assert_same(answer["outputs"], {name: tensor.numpy() for name, tensor in prediction.flat().items()})
        if answer["members"] < MANY:
            assert np.max(answer["outputs"]["standard_error"]) <= tolerance * (1 + 1e-6)
    calls, _ = held.counts("many")
    with held.held():
        asked = [held.ask("many", inputs, outputs, tolerance=tolerance) for inputs in every]
        others = held.ask("many", every[0], outputs, tolerance=tolerance / 2)
        until(lambda: held.queued() == 25, "all wait")
    for answer, before in zip((ask().json() for ask in asked), alone, strict=True):
        assert answer["members"] == before["members"]
        assert_same(answer["outputs"], {name: np.array(values) for name, values in before["outputs"].items()})
    assert others().json()["members"] > alone[0]["members"]
    # 24 rows in two calls, and one of another tolerance.
    assert held.counts("many")[0] == calls + 3


def test_every_members_output_cannot_be_had_with_a_tolerance(held):
    refused = held.ask("many", points(1), ["members"], tolerance=0.1)()
    assert refused.status_code == 400
    assert refused.json()["error"] == "output 'members' cannot be asked for with a tolerance; ask for it with members"


def test_the_more_urgent_is_answered_first(held, many):
    with held.held():
        patient = [held.ask("many", points(16, n)) for n in range(3)]
        until(lambda: held.queued() == 48, "they wait")
        urgent = held.ask("many", points(16, 9), priority=1)
        until(lambda: held.queued() == 64, "all wait")
    waits = [
        float(answer.headers["Server-Timing"].split("queue;dur=")[1].split(",")[0].split(";")[0])
        for answer in (urgent(), *(ask() for ask in patient))
    ]
    assert waits[0] == min(waits)


def test_a_call_that_hangs_turns_liveness_false_until_it_comes_back_and_does_not_hold_the_stop(
    models, loaded, tmp_path
):
    shutil.copytree(models / "house", tmp_path / "models" / "house")
    (tmp_path / "gate").mkdir()
    arguments = ("--models", tmp_path / "models", "--engine-timeout", 0.2, "--shutdown-timeout", 1)
    with serving(tmp_path / "log", *arguments, gate=tmp_path / "gate") as server:
        held = Held(server.wait_ready(), tmp_path / "gate")
        assert server.get("/v2/health/live").status_code == 200
        with held.held() as first:
            # With no deadline of its own, it must not wait for what may never end.
            waiting = held.ask("house", rows_of("house", 3))
            until(lambda: server.get("/v2/health/live").status_code == 503, "it is not alive")
            assert waiting().status_code == 503
            refused = held.ask("house", rows_of("house", 1))()
            assert refused.status_code == 503
            assert "does not answer" in refused.json()["error"]
            assert server.metric("ensembled_live") == 0
            assert server.metric("ensembled_rejected_total", reason="stuck") == 2
        assert_same(first().json()["outputs"], expected(loaded["house"], rows_of("house", 1)))
        until(lambda: server.get("/v2/health/live").json() == {"live": True}, "it is alive again")
        assert held.ask("house", rows_of("house", 1))().status_code == 200
        assert "takes longer than 0.2 s" in server.text()
        assert "has come back" in server.text()
        with held.held() as first:
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 20
            assert first().status_code == 503
        assert "left behind" in server.text()
