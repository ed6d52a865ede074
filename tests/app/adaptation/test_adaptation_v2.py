"""Adaptation over V2, asked by Triton's own client and by bodies: the same answers as of the plain API."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch

import ensemble
from tests.app.support import MEMBERS, assert_same, rows_of, v2_arrays

LOSS = {"classes": "cross_entropy", "house": "mse", "weather": "gaussian_nll", "pair": "mse"}
SHOTS, ROWS, STEPS, RATE = 5, 3, 3, 0.05


def task(model: str, seed: int = 0):
    """Inputs of examples, their targets by prediction, and queries."""
    generator = np.random.default_rng(seed)
    targets = {
        "classes": {"": generator.integers(0, 3, SHOTS)},
        "house": {"": generator.normal(size=(SHOTS, 2)).astype(np.float32)},
        "weather": {"": generator.normal(size=SHOTS).astype(np.float32)},
        "pair": {
            "policy": generator.normal(size=(SHOTS, 3)).astype(np.float32),
            "value": generator.normal(size=SHOTS).astype(np.float32),
        },
    }[model]
    return rows_of(model, SHOTS, seed), targets, rows_of(model, ROWS, seed + 1000)


def tensors_of(support, targets, queries):
    named = {f"support.{name}": array for name, array in support.items()}
    named |= {f"support.targets.{name}" if name else "support.targets": array for name, array in targets.items()}
    return named | queries


def wanted(made, model: str, support, targets, queries, **choice):
    """What the library says."""

    def one_task(arrays):
        return {name: torch.as_tensor(array)[None] for name, array in arrays.items()}

    named = one_task(targets)
    adapted = ensemble.adapt(
        made, ((one_task(support),), named.get("", named)), LOSS[model], STEPS, RATE, **choice
    )  # fmt: skip
    prediction = adapted.predict(one_task(queries))
    return {name: tensor[0].numpy() for name, tensor in prediction.flat().items()}, adapted.losses[0].mean(0)


def body(named, **parameters):
    """In JSON."""
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": "INT64" if array.dtype == np.int64 else "FP32",
                "data": array.ravel().tolist(),
            }
            for name, array in named.items()
        ],
        "parameters": {"steps": STEPS, "learning_rate": RATE, **parameters},
    }


def infer(server, model, document, version=""):
    return server.post(f"/v2/models/{model}{version}/infer", json=document)


@pytest.mark.parametrize("model", LOSS)
def test_examples_are_inputs_more(server, loaded, model):
    support, targets, queries = task(model)
    want, losses = wanted(loaded[model], model, support, targets, queries)
    reply = infer(server, model, body(tensors_of(support, targets, queries), loss=LOSS[model]))
    assert reply.status_code == 200, reply.text
    assert_same(v2_arrays(reply.json()), want)
    said = reply.json()["parameters"]
    assert (said["steps"], said["learning_rate"], said["loss"], said["members"]) == (STEPS, RATE, LOSS[model], MEMBERS)
    assert said["loss_before"] == pytest.approx(losses[0].item(), rel=1e-5)
    assert said["loss_after"] == pytest.approx(losses[-1].item(), rel=1e-5)
    assert all(not isinstance(value, dict | list) for value in said.values())
    plain = {
        "support": {
            "inputs": {name: array.tolist() for name, array in support.items()},
            "targets": targets[""].tolist() if "" in targets else {n: array.tolist() for n, array in targets.items()},
        },
        "queries": {name: array.tolist() for name, array in queries.items()},
        "steps": STEPS,
        "learning_rate": RATE,
    }
    assert_same(server.post(f"/v1/models/{model}/adapt", json=plain | {"loss": LOSS[model]}).json()["outputs"], want)


def test_only_some_predictions_have_targets(server, loaded):
    support, targets, queries = task("pair")
    del targets["policy"]
    want, _ = wanted(loaded["pair"], "pair", support, targets, queries)
    assert_same(v2_arrays(infer(server, "pair", body(tensors_of(support, targets, queries))).json()), want)
    plain = {"support": {"inputs": {n: a.tolist() for n, a in support.items()}}, "keep_seconds": 1}
    for wrong, problem in {
        (): "support.targets must be an object with a list of rows for some of 'policy', 'value'",
        ("reward",): "must be named among 'policy', 'value', however: 'reward'",
    }.items():
        plain["support"]["targets"] = {name: [1] for name in wrong}
        reply = server.post("/v1/models/pair/adapt", json=plain)
        assert (reply.status_code, problem in reply.json()["error"]) == (400, True), reply.text


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_adapts_keeps_and_asks(server, loaded, binary):
    http = pytest.importorskip("tritonclient.http")
    support, targets, queries = task("house", 1)
    want, _ = wanted(loaded["house"], "house", support, targets, queries, weights=["2.*"])

    def tensors(named):
        made = []
        for name, array in named.items():
            made.append(http.InferInput(name, array.shape, "FP32"))
            made[-1].set_data_from_numpy(array, binary_data=binary)
        return made

    wishes = {"steps": STEPS, "learning_rate": RATE, "weights": "2.*"}
    with http.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60) as client:
        about = client.get_model_metadata("house")["parameters"]["adaptation"]
        assert [spec["name"] for spec in about["support_inputs"]] == ["support.input", "support.targets"]
        result = client.infer("house", tensors(tensors_of(support, targets, queries)), parameters=wishes)
        assert_same({name: result.as_numpy(name) for name in want}, want)
        # Only kept, since there are no queries.
        alone = tensors(tensors_of(support, targets, {}))
        kept = client.infer("house", alone, parameters=wishes | {"keep_seconds": 60}).get_response()
        assert kept["outputs"] == []
        handle = kept["parameters"]["adapted"]
        assert 0 < kept["parameters"]["expires_in_seconds"] <= 60
        result = client.infer("house", tensors(queries), parameters={"adapted": handle}, model_version="1")
        assert_same({name: result.as_numpy(name) for name in want}, want)
        assert result.get_response()["parameters"]["adapted"] == handle
    # It is the one of the plain API.
    rows = {"inputs": {name: array.tolist() for name, array in queries.items()}}
    assert_same(server.post(f"/v1/adapted/{handle}/predict", json=rows).json()["outputs"], want)
    assert httpx.delete(f"{server.url}/v1/adapted/{handle}").status_code == 200
    reply = infer(server, "house", body(queries, adapted=handle))
    assert (reply.status_code, "it was deleted" in reply.json()["error"]) == (410, True)


WRONG = {
    "examples must have targets, as input 'support.targets'": {"support.targets": None},
    "all inputs of the model, however: 'support.input' missing": {"support.input": None},
    "support.targets must have 5 rows, as support.inputs have, however: 4": {"support.targets": np.ones((4, 2), "f")},
    "input 'support.input' must have the shape [batch, 5]": {"support.input": np.ones((5, 4), "f")},
    "input 'support.targets' must have datatype FP32, however: the text 'INT64'": {
        "support.targets": np.ones((5, 2), int)
    },
    "however: the text 'support.more'": {"support.more": np.ones(5, "f")},
    "or keep_seconds to keep": {"input": None},
    "examples at most, however: 13": {"support.input": np.ones((13, 5), "f")},
    "parameters.steps must be a whole number from 1 to 8, however: 9": {"steps": 9},
    "parameters.learning_rate must be a number above 0": {"learning_rate": -1},
    "parameters.loss must be one of 'mse'": {"loss": "hinge"},
    "parameters.weights must be names": {"weights": 3},
    "matches none of this model's weights": {"weights": "9.*,2.*"},
    "parameters.factors must be true or false": {"factors": "yes"},
    "parameters.keep_seconds must be a number above 0 and up to 100": {"keep_seconds": 1000},
    "parameters.adapted must be the handle": {"adapted": 3},
    "bring examples or name an adapted model, however: both": {"adapted": "a"},
    "adapted members or for a perturbation, however: both": {"seed": 3},
    "tolerance cannot be used": {"tolerance": 0.1},
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_said(server, problem):
    named, parameters = tensors_of(*task("house")), {}
    for name, value in WRONG[problem].items():
        if isinstance(value, np.ndarray):
            named[name] = value
        elif value is None:
            del named[name]
        else:
            parameters[name] = value
    reply = infer(server, "house", body(named, **parameters))
    assert (reply.status_code, problem in reply.json()["error"]) == (400, True), reply.text


@pytest.mark.parametrize("name", ["support.input", "support.targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bytes_that_are_no_numbers_are_refused(server, name, value):
    http = pytest.importorskip("tritonclient.http")
    named = tensors_of(*task("house"))
    named[name] = named[name].copy()
    named[name][2, 1] = value
    made = [http.InferInput(key, array.shape, "FP32") for key, array in named.items()]
    for tensor, array in zip(made, named.values(), strict=True):
        tensor.set_data_from_numpy(array)
    failure = pytest.importorskip("tritonclient.utils").InferenceServerException
    refused = pytest.raises(failure, match=r"support.* must hold finite numbers")
    with http.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60) as client, refused:
        client.infer("house", made)


def test_a_handle_is_asked_where_it_was_made(server):
    support, targets, queries = task("classes")
    handle = infer(server, "classes", body(tensors_of(support, targets, {}), keep_seconds=30)).json()["parameters"][
        "adapted"
    ]
    assert infer(server, "classes", body(queries, adapted=handle), "/versions/2").status_code == 200
    reply = infer(server, "house", body(task("house")[2], adapted=handle))
    assert (reply.status_code, "of version 2 of model 'classes'" in reply.json()["error"]) == (400, True)
    assert infer(server, "classes", body(queries, adapted="0" * 48)).status_code == 404
    assert httpx.delete(f"{server.url}/v1/adapted/{handle}").status_code == 200


def test_a_service_that_does_not_adapt_says_so(service):
    support, targets, queries = task("house")
    for document in (body(tensors_of(support, targets, queries)), body(queries, adapted="a")):
        reply = infer(service, "house", document)
        assert (reply.status_code, "--adaptation" in reply.json()["error"]) == (403, True)
    about = service.get("/v2/models/house").json()["parameters"]
    assert "adaptation" not in about
    assert "steps" not in about["request_parameters"]
    # Parameters alone mean nothing, as others that are not known.
    assert infer(service, "house", body(queries)).status_code == 200
