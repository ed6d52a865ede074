"""Adaptation over HTTP, asked of a real service and compared with what the library gives."""

from __future__ import annotations

import asyncio
import contextlib
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch

import ensemble
from app.client import AsyncClient, BadRequest, Client, InputError, NotFound
from tests.app.support import MEMBERS, assert_same, metric, rows_of, until

LOSS = {"classes": "cross_entropy", "house": "mse", "weather": "gaussian_nll"}


@contextlib.contextmanager
def engine_held(server, gate, waiting):
    """A pool for requests that all come while the engine is busy; so many of them wait before it goes on."""
    (gate / "hold").touch()
    with ThreadPoolExecutor(waiting + 1) as pool:
        pool.submit(server.post, "/predict", json={"inputs": rows_of("classes", 1)["input"].tolist()})
        until((gate / "held").exists, "the engine is busy")

        def go():
            until(lambda: server.metric("ensembled_queued_requests") >= waiting, "they wait")
            (gate / "hold").unlink()

        try:
            yield pool, go
        finally:
            (gate / "hold").unlink(missing_ok=True)


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as connected:
        yield connected


def examples(model: str, count: int, seed: int):
    """Inputs and targets of a task."""
    (name, inputs), *_ = rows_of(model, count, seed).items()
    generator = np.random.default_rng(seed)
    targets = {
        "classes": generator.integers(0, 3, count),
        "house": generator.normal(size=(count, 2)).astype(np.float32),
        "weather": generator.normal(size=count).astype(np.float32),
    }[model]
    return name, inputs, targets


def body(model: str, seed: int = 0, shots: int = 5, rows: int = 3, **more):
    _, inputs, targets = examples(model, shots, seed)
    queries = next(iter(rows_of(model, rows, seed + 1000).values()))
    wishes = {"steps": 3, "learning_rate": 0.05}
    support = {"inputs": inputs.tolist(), "targets": targets.tolist()}
    return {"support": support, "queries": queries.tolist(), **wishes, **more}


def wanted(made, model: str, asked, statistics=None, **choice):
    """What the library says."""
    support = asked["support"]
    targets = torch.as_tensor(support["targets"])[None]
    adapted = ensemble.adapt(
        made, (torch.as_tensor(support["inputs"])[None], targets), LOSS[model], asked["steps"], asked["learning_rate"],
        **choice,
    )  # fmt: skip
    prediction = adapted.predict(torch.as_tensor(asked["queries"])[None], statistics=statistics)
    return {name: tensor[0].numpy() for name, tensor in prediction.flat().items()}, adapted.losses[0].mean(0)


@pytest.mark.parametrize("model", LOSS)
def test_queries_are_answered_by_the_members_that_adapted_to_the_examples(http, loaded, model):
    asked = body(model)
    reply = http.post(f"/v1/models/{model}/adapt", json=asked)
    answer = reply.json()
    assert reply.status_code == 200, answer
    want, losses = wanted(loaded[model], model, asked)
    assert_same(answer["outputs"], want)
    told = answer["adaptation"]
    assert (told["loss"], told["steps"], told["learning_rate"]) == (LOSS[model], 3, 0.05)
    assert told["loss_before"] == pytest.approx(losses[0].item(), rel=1e-5)
    assert told["loss_after"] == pytest.approx(losses[-1].item(), rel=1e-5)
    assert (answer["model"], answer["members"], answer["seed"]) == (model, MEMBERS, loaded[model].origin.seed)
    assert "adapted" not in answer
    assert re.search("infer;dur=", reply.headers["server-timing"])
    # The model itself is as it was.
    plain = http.post(f"/v1/models/{model}/predict", json={"inputs": asked["queries"]}).json()["outputs"]
    assert np.abs(np.array(plain["mean"]) - want["mean"]).max() > 1e-3


def test_a_version_fewer_members_and_some_weights(http, models):
    made = ensemble.load(models / "classes" / "2")
    asked = body("classes", outputs=["mean", "members"], weights=["2.*"], parameters={"members": 3}, id="a-1")
    answer = http.post("/v1/models/classes/versions/2/adapt", json=asked).json()
    want, _ = wanted(made, "classes", asked, ["members"], weights=["2.*"])
    assert np.array(answer["outputs"]["members"]).shape == (3, 3, 3)
    np.testing.assert_allclose(answer["outputs"]["members"], want["members"][:, :3], atol=1e-6)
    assert (answer["version"], answer["members"], answer["id"]) == ("2", 3, "a-1")


def test_many_at_once_get_each_what_they_get_alone(server, loaded, gate):
    """They wait for one another, so that they adapt in one call."""
    asked = [body("house", seed) for seed in range(12)]
    before = server.metric("ensembled_batch_rows_count", model="house")
    with engine_held(server, gate, len(asked)) as (pool, go):
        waiting = [pool.submit(server.post, "/v1/models/house/adapt", json=one) for one in asked]
        go()
        replies = [one.result() for one in waiting]
    for one, reply in zip(asked, replies, strict=True):
        assert reply.status_code == 200, reply.text
        assert_same(reply.json()["outputs"], wanted(loaded["house"], "house", one)[0])
    assert server.metric("ensembled_batch_rows_count", model="house") - before == 1


def test_a_loss_that_diverges_is_that_requests_fault_alone(server, loaded, gate):
    good, bad = body("house", 1), body("house", 2)
    bad["support"]["targets"] = (np.array(bad["support"]["targets"]) * 1e30).tolist()
    with engine_held(server, gate, 3) as (pool, go):
        waiting = [pool.submit(server.post, "/v1/models/house/adapt", json=one) for one in (good, bad, good)]
        go()
        replies = [one.result() for one in waiting]
    assert [reply.status_code for reply in replies] == [200, 400, 200]
    assert "the loss diverges: before the first step" in replies[1].json()["error"]
    assert "6 of 6 members; the examples hold numbers that are too large" in replies[1].json()["error"]
    for reply in (replies[0], replies[2]):
        assert_same(reply.json()["outputs"], wanted(loaded["house"], "house", good)[0])


def test_adapted_weights_are_kept_asked_and_deleted(http, loaded):
    asked = body("house", 3, keep_seconds=60)
    answer = http.post("/v1/models/house/adapt", json=asked).json()
    want, _ = wanted(loaded["house"], "house", asked)
    handle = answer["adapted"]["handle"]
    assert len(handle) >= 32
    assert answer["adapted"]["bytes"] == MEMBERS * 4 * (5 * 8 + 8 + 8 * 2 + 2)
    again = http.post(f"/v1/adapted/{handle}/predict", json={"inputs": asked["queries"]})
    assert_same(again.json()["outputs"], want)
    assert again.json()["adapted"]["handle"] == handle
    assert 0 < again.json()["adapted"]["expires_in_seconds"] <= 60
    about = http.get(f"/v1/adapted/{handle}").json()
    assert (about["model"], about["version"], about["handle"]) == ("house", "1", handle)
    assert http.delete(f"/v1/adapted/{handle}").json() == {}
    for reply in (
        http.post(f"/v1/adapted/{handle}/predict", json={"inputs": asked["queries"]}),
        http.get(f"/v1/adapted/{handle}"),
        http.delete(f"/v1/adapted/{handle}"),
    ):
        assert reply.status_code == 410
        assert "it was deleted" in reply.json()["error"]
    assert http.get("/v1/adapted/nothing").status_code == 404


def test_several_kept_models_are_asked_in_one_call_each_its_own_rows(server, http, loaded, gate):
    tasks = [body("house", seed, rows=seed - 9, keep_seconds=50) for seed in (10, 11, 12)]
    handles = []
    for task in tasks:
        kept = http.post("/v1/models/house/adapt", json={k: task[k] for k in task if k != "queries"}).json()
        assert kept["outputs"] == {}
        handles.append(kept["adapted"]["handle"])
    with engine_held(server, gate, 6) as (pool, go):
        waiting = [
            pool.submit(server.post, f"/v1/adapted/{handle}/predict", json={"inputs": task["queries"]})
            for handle, task in 2 * list(zip(handles, tasks, strict=True))
        ]
        go()
        replies = [one.result().json() for one in waiting]
    for reply, task in zip(replies, 2 * tasks, strict=True):
        assert_same(reply["outputs"], wanted(loaded["house"], "house", task)[0])
    for handle in handles:
        assert http.delete(f"/v1/adapted/{handle}").status_code == 200


def test_what_is_kept_ends_with_its_time_and_its_number_is_bounded(http):
    task = body("house", 4, keep_seconds=0.3)
    short = http.post("/v1/models/house/adapt", json=task).json()["adapted"]["handle"]
    reply = until(lambda: (r := http.get(f"/v1/adapted/{short}")).status_code == 410 and r, "it ends")
    assert "its time was over" in reply.json()["error"]
    task["keep_seconds"] = 50
    handles = [http.post("/v1/models/house/adapt", json=task).json()["adapted"]["handle"] for _ in range(6)]
    page = http.get("/metrics").text
    assert metric(page, "ensembled_adapted_models") == 6
    assert metric(page, "ensembled_adapted_bytes") == 6 * MEMBERS * 4 * 66
    refused = http.post("/v1/models/house/adapt", json=task)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 30
    assert "6 adapted models" in refused.json()["error"]
    for handle in handles:
        assert http.delete(f"/v1/adapted/{handle}").status_code == 200
    assert http.post("/v1/models/house/adapt", json=body("house", 4)).status_code == 200


WRONG = {
    "support must be there": {"support": None},
    "support's keys must be among": {"support": {"x": []}},
    "support.inputs must be a list of rows": {"support": {"targets": [[1, 2]]}},
    "support input 'input' must have the shape [batch, 5], however: [2, 4]": {
        "support": {"inputs": [[1, 2, 3, 4]] * 2, "targets": [[1, 2]] * 2}
    },
    "support.targets must have the shape [batch, 2], however: [2, 3]": {
        "support": {"inputs": [[0] * 5] * 2, "targets": [[1, 2, 3]] * 2}
    },
    "support.targets must have 2 rows": {"support": {"inputs": [[0] * 5] * 2, "targets": [[1, 2]]}},
    "support must have 12 examples at most, however: 13": {
        "support": {"inputs": [[0] * 5] * 13, "targets": [[1, 2]] * 13}
    },
    "support.targets must hold FP32 values": {"support": {"inputs": [[0] * 5], "targets": [["a", 2]]}},
    "steps must be a whole number from 1 to 8, however: 9": {"steps": 9},
    "steps must be a whole number from 1 to 8, however: 0": {"steps": 0},
    "learning_rate must be a number above 0": {"learning_rate": -1},
    "loss must be one of 'mse' for this model": {"loss": "cross_entropy"},
    "weights must be names or patterns": {"weights": [3]},
    "matches none of this model's weights": {"weights": ["nothing.*"]},
    "factors must be true or false": {"factors": 1},
    "no factors": {"factors": True},
    "keep_seconds must be a number above 0 and up to 100, however: 101": {"keep_seconds": 101},
    "must have queries to answer": {"queries": None},
    "input 'input' must have the shape [batch, 5]": {"queries": [[1]]},
    "output must be one of 'mean'": {"outputs": ["label"]},
    "tolerance cannot be used": {"parameters": {"tolerance": 0.1}},
    "parameters.members must be a whole number from 1 to 6": {"parameters": {"members": 7}},
    "the body's keys must be among": {"suport": {}},
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_said(http, problem):
    reply = http.post("/v1/models/house/adapt", json=body("house") | WRONG[problem])
    assert reply.status_code == 400
    assert problem in reply.json()["error"]


def test_other_refusals(http, service):
    classes = body("classes")
    classes["support"]["targets"][1] = 3
    reply = http.post("/v1/models/classes/adapt", json=classes)
    assert (reply.status_code, "classes from 0 to 2" in reply.json()["error"]) == (400, True)
    not_finite = b'{"support": {"inputs": [[NaN, 0, 0, 0, 0]], "targets": [[1, 2]]}, "queries": [[0, 0, 0, 0, 0]]}'
    assert http.post("/v1/models/house/adapt", content=not_finite).status_code == 400
    assert http.post("/v1/models/none/adapt", json=body("house")).status_code == 404
    for method, path in (
        ("POST", "/v1/models/house/adapt"),
        ("POST", "/v1/adapted/a/predict"),
        ("GET", "/v1/adapted/a"),
        ("DELETE", "/v1/adapted/a"),
    ):
        reply = service.get(path) if method == "GET" else httpx.request(method, service.url + path, json={})
        assert (reply.status_code, "--adaptation" in reply.json()["error"]) == (403, True)


def test_one_number_a_row_may_be_written_without_its_own_list(models, running, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    made = ensemble.perturb(net, ensemble.LowRank(0.2), members=3, example=torch.randn(2, 1), task="regression")
    made.save(tmp_path / "curve" / "1")
    task = {"support": {"inputs": [[0.5], [1.0]], "targets": [1, 2]}, "queries": [[0.7]]}

    async def ask():
        async with running(models=tmp_path, adaptation=True, management=True, adaptation_memory=2**20) as client:
            flat = await client.post("/v1/models/curve/adapt", json=task)
            task["support"]["targets"] = [[1], [2]]
            nested = await client.post("/v1/models/curve/adapt", json=task)
            assert flat.json() == nested.json()
            factors = (await client.post("/v1/models/curve/adapt", json=task | {"factors": True})).json()
            assert factors["outputs"] != flat.json()["outputs"]
            # What is kept ends with its version.
            kept = await client.post("/v1/models/curve/adapt", json=task | {"keep_seconds": 60, "factors": True})
            handle = kept.json()["adapted"]["handle"]
            asked = await client.post(f"/v1/adapted/{handle}/predict", json={"inputs": task["queries"]})
            assert asked.json()["outputs"] == factors["outputs"]
            assert (await client.post("/v2/repository/models/curve/unload", json={})).status_code == 200
            assert (await client.post("/v2/repository/models/curve/load", json={})).status_code == 200
            gone = await client.get(f"/v1/adapted/{handle}")
            assert (gone.status_code, "not served any more" in gone.json()["error"]) == (410, True)
            assert len(client.service.adaptation.store) == 0

    asyncio.run(ask())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_client_adapts_asks_and_forgets(server, loaded, asynchronous):
    _, inputs, targets = examples("house", 5, 21)
    queries = rows_of("house", 2, 22)["input"]
    asked = {"support": {"inputs": inputs, "targets": targets}, "queries": queries, "steps": 3, "learning_rate": 0.05}
    want, _ = wanted(loaded["house"], "house", asked, ["mean", "quantiles"])
    wishes = {"steps": 3, "learning_rate": 0.05, "model": "house"}

    async def over(client):
        async def done(value):
            return await value if asynchronous else value

        once = await done(client.adapt((inputs, targets), queries, ["mean", "quantiles"], **wishes))
        assert_same(once.outputs, want)
        assert once["mean"].dtype == np.float32
        assert once.parameters["adaptation"]["loss_after"] < once.parameters["adaptation"]["loss_before"]
        kept = await done(client.adapt(({"input": inputs}, targets), keep_seconds=30, request_id="k-1", **wishes))
        assert (kept.model, kept.request_id, dict(kept.outputs)) == ("house", "k-1", {})
        handle = kept.parameters["adapted"]["handle"]
        again = await done(client.ask_adapted(handle, queries, ["mean", "quantiles"]))
        assert_same(again.outputs, want)
        levels = await done(client.ask_adapted(handle, queries, ["quantiles"], levels=[0.5]))
        assert levels["quantiles"].shape == (2, 2, 1)
        await done(client.forget_adapted(handle))
        with pytest.raises(NotFound, match="it was deleted"):
            await done(client.ask_adapted(handle, queries))
        with pytest.raises(BadRequest, match="steps must be"):
            await done(client.adapt((inputs, targets), queries, model="house", steps=9))
        for wrong in (inputs, (inputs, targets * np.nan), (inputs, np.array(["a"]))):
            with pytest.raises(InputError):
                await done(client.adapt(wrong, queries, model="house"))

    async def run():
        if asynchronous:
            async with AsyncClient(server.url) as client:
                await over(client)
        else:
            with Client(server.url) as client:
                await over(client)

    asyncio.run(run())


def test_memory_and_time_are_bounded(models, running):
    async def ask():
        async with running(models=models, default_model="house", adaptation=True, adaptation_memory=4096) as client:
            reply = await client.post("/v1/models/house/adapt", json=body("house"))
            assert reply.status_code == 400
            assert "4 KiB is the limit. What would fit: parameters.members of" in reply.json()["error"]
        async with running(
            models=models, default_model="house", adaptation=True, adaptation_seconds=1e-6, adapted_memory=100
        ) as client:
            reply = await client.post("/v1/models/house/adapt", json=body("house"))
            assert reply.status_code == 400
            assert "more than the 1e-06 s that it may" in reply.json()["error"]
            reply = await client.post("/v1/models/house/adapt", json=body("house", keep_seconds=5))
            assert (reply.status_code, "100 B can be kept" in reply.json()["error"]) == (400, True)

    asyncio.run(ask())
