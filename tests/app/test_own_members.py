"""Requests that bring members of their own, through the real service: each gets what the library says of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch

import ensemble
from app.client import AsyncClient, Client, InputError
from tests.app.support import assert_same, expected, plain_body, rows_of, serving, until, v2_arrays, v2_body

NAMES = {
    "classes": ["mean", "label", "members"],
    "house": ["mean", "std", "members"],
    "pair": ["policy.mean", "value.std"],
}
LIMITS = ("--allow-weights", "--max-perturbed-members", 12, "--max-perturbed-bytes", 20_000, "--max-weights", 30_000)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("own-gate")


@pytest.fixture(scope="module")
def service(models, gate):
    with serving(gate / "log", "--models", models, "--default-model", "classes", *LIMITS, gate=gate) as server:
        yield server.wait_ready()


def perturbation(seed, recipe="low_rank", scale=0.4, members=5, **settings):
    return {"recipe": recipe, "scale": scale, "seed": seed, "members": members, **settings}


def drawn(made, given):
    settings = {name: value for name, value in given.items() if name not in ("recipe", "seed", "members")}
    recipe = ensemble.Recipe.known[given["recipe"]](**settings)
    return made.perturbed(recipe, members=given["members"], seed=given["seed"])


def weights_of(model, number, members=3):
    """Weights that a request may bring."""
    generator = np.random.default_rng(number)

    def some(*shape):
        return generator.normal(size=shape).astype(np.float32)

    bias, matrix, sizes = {
        "classes": ("0.bias", "2.weight", (16, 3, 16)),
        "house": ("2.bias", "0.weight", (2, 8, 5)),
    }[model]
    return {
        bias: some(members, sizes[0]),
        f"{matrix}.left": some(members, sizes[1], 2),
        f"{matrix}.right": some(sizes[2], 2),
    }


def with_weights(body, weights):
    body["inputs"] += [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
        for name, array in weights.items()
    ]
    return body


def given(made, weights):
    return made.with_weights({name: torch.from_numpy(array) for name, array in weights.items()})


@pytest.mark.parametrize("model", ["classes", "house", "pair"])
@pytest.mark.parametrize("recipe", ["low_rank", "gaussian", "rank1"])
def test_a_perturbation_in_a_request_is_what_the_library_makes_of_the_same_values(service, loaded, model, recipe):
    asked, inputs = perturbation(9, recipe), rows_of(model, 3)
    want = expected(drawn(loaded[model], asked), inputs, NAMES[model])
    body = plain_body(inputs, NAMES[model]) | {"parameters": {"perturbation": asked}}
    answer = service.post(f"/v1/models/{model}/predict", json=body).json()
    assert_same(answer["outputs"], want)
    assert answer["perturbation"] == asked
    assert (answer["members"], answer["seed"]) == (5, 9)
    body = v2_body(inputs, NAMES[model]) | {"parameters": asked}
    answer = service.post(f"/v2/models/{model}/infer", json=body).json()
    assert_same(v2_arrays(answer), want)
    assert answer["parameters"] == asked


def test_what_an_answer_says_replays_it(service, loaded):
    inputs = rows_of("classes", 2)
    first = service.post("/predict", json=plain_body(inputs) | {"parameters": {"perturbation": {"seed": 3}}}).json()
    # What is left out is as in the model's own recipe.
    assert first["perturbation"] == {"recipe": "gaussian", "scale": 0.2, "seed": 3, "members": 6}
    told = {"parameters": {"perturbation": first["perturbation"]}}
    assert service.post("/predict", json=plain_body(inputs) | told).json()["outputs"] == first["outputs"]
    own = {"parameters": {"perturbation": {"seed": 2}}}
    assert_same(
        service.post("/predict", json=plain_body(inputs) | own).json()["outputs"], expected(loaded["classes"], inputs)
    )


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("model", ["classes", "house"])
def test_weights_in_a_request_take_the_place_of_the_trained_ones(service, loaded, model, members):
    weights, inputs = weights_of(model, 4, members), rows_of(model, 2)
    want = expected(given(loaded[model], weights), inputs, NAMES[model])
    body = with_weights(v2_body(inputs, NAMES[model]), weights)
    answer = service.post(f"/v2/models/{model}/infer", json=body).json()
    assert_same(v2_arrays(answer), want)
    assert answer["parameters"] == {"members": members, "weights": "request"}


def test_weights_without_members_are_one_network(service, loaded):
    inputs, bias = rows_of("classes", 2), np.array([3, -1, 0.5], np.float32)
    answer = service.post("/v2/models/classes/infer", json=with_weights(v2_body(inputs), {"2.bias": bias})).json()
    assert answer["parameters"]["members"] == 1
    assert_same(v2_arrays(answer), expected(given(loaded["classes"], {"2.bias": bias}), inputs))


def test_many_at_once_get_each_what_they_get_alone(service, loaded):
    """Perturbations of several kinds, weights of several kinds, bad ones, and requests that bring nothing."""
    asked = []
    for number in range(96):
        rows = 1 + number % 3
        model = ("classes", "house")[number % 2]
        inputs, made, names = rows_of(model, rows, number), loaded[model], NAMES[model]
        body, status = v2_body(inputs, names), 200
        match number // 2 % 6:
            case 0 | 1:
                # Some of them ask for the same.
                own = perturbation(number % 7, scale=0.1 * (1 + number % 3))
                body["parameters"], made = own, drawn(made, own)
            case 2:
                own = perturbation(number, "gaussian")
                body["parameters"], made = own, drawn(made, own)
            case 3:
                weights = weights_of(model, number)
                body, made = with_weights(body, weights), given(made, weights)
            case 4:
                bad = weights_of(model, number)
                # Of no weight of the model.
                body = with_weights(body, {name + "x": array for name, array in bad.items()})
                status = 400
        asked.append((model, body, None if status == 400 else expected(made, inputs, names), status))
    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda ask: client.post(f"/v2/models/{ask[0]}/infer", json=ask[1]), asked))
    for (_, _, want, status), answer in zip(asked, answers, strict=True):
        assert answer.status_code == status, answer.text
        if want is not None:
            assert_same(v2_arrays(answer.json()), want)


def test_requests_that_wait_share_a_call_by_kind_and_bad_numbers_fail_alone(service, gate, loaded):
    """Eight keys, four sets of weights of which one holds NaN: three calls, whatever they are of."""
    inputs = rows_of("house", 1)

    def calls():
        (stats,) = service.get("/v2/models/house/stats").json()["model_stats"]
        return stats["execution_count"]

    bodies = [v2_body(inputs, ["mean"]) | {"parameters": perturbation(number % 8)} for number in range(12)]
    wanted = [expected(drawn(loaded["house"], body["parameters"]), inputs, ["mean"]) for body in bodies]
    sets = [weights_of("house", number) for number in range(4)]
    requests = [("/v2/models/house/infer", json.dumps(body).encode(), {}) for body in bodies]
    for number, weights in enumerate(sets):
        if number == 2:
            weights["2.bias"][1, 0] = np.nan
        tensors = {**inputs, **weights}
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": list(array.shape),
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": array.nbytes},
                    }
                    for name, array in tensors.items()
                ],
                "outputs": [{"name": "mean"}],
            }
        ).encode()
        body = head + b"".join(array.tobytes() for array in tensors.values())
        requests.append(("/v2/models/house/infer", body, {"Inference-Header-Content-Length": str(len(head))}))
        wanted.append(None if number == 2 else expected(given(loaded["house"], weights), inputs, ["mean"]))
    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(24) as threads:
        (gate / "hold").touch()
        try:
            first = threads.submit(client.post, "/v2/models/house/infer", json=v2_body(inputs))
            until((gate / "held").exists, "a call is held")
            before = calls()
            asked = [threads.submit(client.post, path, content=body, headers=more) for path, body, more in requests]
            until(lambda: service.metric("ensembled_queued_requests") >= len(requests) - 1, "all others wait")
        finally:
            (gate / "hold").unlink()
        answers = [each.result() for each in asked]
        assert first.result().status_code == 200
    for answer, want in zip(answers, wanted, strict=True):
        if want is None:
            assert answer.status_code == 400
            assert answer.json()["error"] == (
                "the weights cannot be used: The weight '2.bias' must hold finite numbers of float32."
            )
        else:
            assert_same(v2_arrays(answer.json()), want)
    # The one that was held, and one for each kind.
    assert calls() - before == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "nothing"}, "recipe must be one of .*gaussian, low_rank.*, however: 'nothing'"),
        ({"recipe": "low_rank"}, "the recipe 'low_rank' needs scale"),
        ({"recipe": "low_rank", "scale": -1}, "scale must be a finite number ≥ 0, however: -1"),
        ({"recipe": "low_rank", "scale": 1, "rank": 1.5}, "rank must be an integer between 1 and 256, however: 1.5"),
        (
            {"recipe": "gaussian", "rank": 2},
            "the recipe 'gaussian' has no setting rank; it has scale, include, exclude",
        ),
        ({"recipe": "gaussian", "scale": 1, "include": "9.*"}, "'9.*' matches none of this model's weights"),
        ({"recipe": "gaussian", "scale": 1, "members": 13}, "members must be a whole number from 1 to 12, however: 13"),
        (
            {"recipe": "low_rank", "scale": 1, "rank": 64, "members": 12},
            "KiB are permitted: ask for .* at most",
        ),
        ({"recipe": "low_rank", "scale": 1, "tolerance": 0.1}, "tolerance is for the model's own members"),
    ],
)
def test_what_cannot_be_is_refused_and_the_text_says_what_would_be_right(service, parameters, message):
    body = v2_body(rows_of("classes", 1)) | {"parameters": parameters}
    answer = service.post("/v2/models/classes/infer", json=body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]), answer.text


def test_weights_that_cannot_be_are_refused(service):
    inputs = rows_of("classes", 1)

    def ask(weights, **parameters):
        body = with_weights(v2_body(inputs), weights) | ({"parameters": parameters} if parameters else {})
        answer = service.post("/v2/models/classes/infer", json=body)
        return answer.status_code, answer.json()["error"]

    bias = np.zeros(3, np.float32)
    assert ask({"2.weight.left": np.zeros((3, 1), np.float32)}) == (
        400,
        "the weights cannot be used: '2.weight.left' must come with '2.weight.right' of the same rank.",
    )
    assert ask({"2.bias": np.zeros((13, 3), np.float32)})[1] == "weights may be of 12 members at most, however: 13"
    assert ask({"2.bias": bias}, seed=3)[1] == "a request may bring a perturbation or weights, however: both"
    assert ask({"2.bias": bias}, members=2)[1].startswith("members is for the model's own members")
    status, error = ask({"0.weight": np.zeros((125, 16, 4), np.float32)})
    assert status == 413
    assert error == "the weights of a request may have 30000 bytes at most; with weight '0.weight' they have 32000"


def test_a_service_permits_weights_only_where_it_is_told_to_and_perturbations_unless_it_is_told_not_to(
    running, models, saved, tmp_path
):
    shutil.copytree(models / "classes" / "1", tmp_path / "classes" / "1")
    shutil.copytree(saved / "stacked", tmp_path / "stacked" / "1")

    async def ask(**settings):
        inputs, bias = rows_of("classes", 1), {"2.bias": np.zeros(3, np.float32)}
        async with running(models=tmp_path, **settings) as client:
            answers = [
                await client.post("/v2/models/classes/infer", json=with_weights(v2_body(inputs), bias)),
                await client.post("/v2/models/classes/infer", json=v2_body(inputs) | {"parameters": {"seed": 1}}),
                await client.post(
                    "/v2/models/stacked/infer",
                    json=v2_body({"input": np.zeros((1, 6), np.float32)}) | {"parameters": perturbation(1)},
                ),
            ]
            about = (await client.get("/v1/models/classes")).json()
        return [(answer.status_code, answer.json().get("error", "")) for answer in answers], about

    (weights, seeded, stacked), about = asyncio.run(ask())
    assert weights[0] == 400
    assert weights[1].endswith("this service permits no weights in requests (--allow-weights)")
    assert seeded == (200, "")
    assert stacked[0] == 400
    assert "no trained weights that all of them come from" in stacked[1]
    assert "weight_inputs" not in about["parameters"]
    assert "an object with recipe, seed" in about["parameters"]["request_parameters"]["perturbation"]
    kept = about["kept_perturbations"]
    assert kept.pop("bytes") > about["weight_bytes"]
    assert kept == {"count": 1, "hits": 0, "misses": 1}
    (weights, seeded, _), about = asyncio.run(ask(max_perturbed_members=0, allow_weights=True))
    assert seeded == (400, "this service permits no perturbations in requests (--max-perturbed-members is 0)")
    assert weights[0] == 400
    assert "perturbation" not in about["parameters"]["request_parameters"]
    assert {"name": "2.bias", "datatype": "FP32", "shape": [3]} in about["parameters"]["weight_inputs"]
    # Whoever reads what must be sent does not find them there.
    assert [tensor["name"] for tensor in about["inputs"]] == ["input"]


def test_a_model_that_is_unloaded_or_replaced_leaves_nothing_and_what_waits_is_answered(running, models, tmp_path):
    for version in ("1", "2"):
        shutil.copytree(models / "classes" / version, tmp_path / "classes" / version)

    async def go():
        inputs = rows_of("classes", 1)
        body = v2_body(inputs) | {"parameters": perturbation(3)}
        async with running(models=tmp_path, versions="all") as client:
            service = client.service
            for version in (1, 2):
                await client.post(f"/v2/models/classes/versions/{version}/infer", json=body)
            assert len(service.variants) == 2
            model = service.repository.ready_model("classes", "2")
            kept = service.variants.of(model).kept
            assert (len(kept), kept.misses) == (1, 1)
            assert kept.nbytes > 0
            first = (await client.post("/v2/models/classes/infer", json=body)).json()
            assert (kept.hits, kept.misses) == (1, 1)
            under_way = asyncio.create_task(client.post("/v2/models/classes/infer", json=body))
            await asyncio.sleep(0)
            await service.repository.unload("classes")
            assert (await under_way).status_code in (200, 503)
            del model, kept
            await asyncio.sleep(0.05)
            gc.collect()
            assert len(service.variants) == 0
            await service.repository.load("classes")
            again = (await client.post("/v2/models/classes/infer", json=body)).json()
            assert again == first

    asyncio.run(go())


def test_the_client_asks_for_both_and_says_what_the_service_does_not_know(service, loaded):
    inputs, made = rows_of("house", 3), loaded["house"]
    asked, weights = perturbation(5, members=4), weights_of("house", 1)
    wanted = [expected(drawn(made, asked), inputs), expected(given(made, weights), inputs)]

    def check(results):
        for result, want in zip(results, wanted, strict=True):
            assert_same(dict(result.outputs), want)
        assert (results[0].members, results[0].seed) == (4, 5)
        assert results[0].parameters == {"recipe": "low_rank", "scale": 0.4}
        assert (results[1].members, results[1].seed) == (3, None)

    for binary in (True, False):
        with Client(service.url, model="house", binary=binary) as client:
            check([client.infer(inputs, perturbation=asked), client.predict(inputs, weights=weights)])

    async def ask():
        async with AsyncClient(service.url, model="house") as client:
            return await asyncio.gather(client.infer(inputs, perturbation=asked), client.infer(inputs, weights=weights))

    check(asyncio.run(ask()))
    with Client(service.url, model="house") as client:
        with pytest.raises(InputError, match=r"may hold 'recipe', 'seed', 'members', .* however: 'sead'"):
            client.infer(inputs, perturbation={"sead": 5})
        with pytest.raises(InputError, match="members belongs into the perturbation"):
            client.infer(inputs, perturbation=asked, members=3)
        with pytest.raises(InputError, match=r"has the weights '0\.weight', .* however: 'nothing'"):
            client.infer(inputs, weights={"nothing": np.zeros(3)})
