"""The Open Inference Protocol (V2): every endpoint, in JSON and in binary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.app.support import MEMBERS, askable, assert_same, expected, rows_of, v2_arrays, v2_body

LENGTH = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "INT64": "<i8"}


def binary(inputs, outputs=None, everything=True):
    """Content and headers of a binary request."""
    body = v2_body(inputs, outputs)
    for tensor, array in zip(body["inputs"], inputs.values(), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": array.nbytes}
    if everything:
        body["parameters"] = {"binary_data_output": True}
    head = json.dumps(body).encode()
    return {"content": head + b"".join(a.tobytes() for a in inputs.values()), "headers": {LENGTH: str(len(head))}}


def parsed(reply):
    """The document and the arrays of an answer in binary."""
    length = int(reply.headers[LENGTH])
    document, rest = json.loads(reply.content[:length]), reply.content[length:]
    arrays = {}
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        assert "data" not in output
        arrays[output["name"]] = np.frombuffer(rest[:size], DTYPES[output["datatype"]]).reshape(output["shape"])
        rest = rest[size:]
    assert rest == b""
    return document, arrays


@pytest.mark.parametrize("model", ["classes", "house", "weather", "pair"])
def test_binary_in_and_out_says_the_same_of_every_statistic(client, loaded, model):
    inputs = rows_of(model, 3)
    every = askable(loaded[model])
    reply = client.post(f"/v2/models/{model}/infer", **binary(inputs, every))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    assert_same(parsed(reply)[1], expected(loaded[model], inputs, every))


def test_binary_in_and_json_out(client, loaded):
    inputs = rows_of("pair", 2)
    reply = client.post("/v2/models/pair/infer", **binary(inputs, everything=False))
    assert LENGTH not in reply.headers
    assert reply.headers["content-type"] == "application/json"
    assert_same(v2_arrays(reply.json()), expected(loaded["pair"], inputs))


def test_json_and_binary_outputs_mix(client, loaded):
    inputs = rows_of("classes", 2)
    body = v2_body(inputs) | {"outputs": [{"name": "mean", "parameters": {"binary_data": True}}, {"name": "label"}]}
    reply = client.post("/v2/models/classes/infer", json=body)
    length = int(reply.headers[LENGTH])
    mean, label = json.loads(reply.content[:length])["outputs"]
    want = expected(loaded["classes"], inputs, ["mean", "label"])
    np.testing.assert_allclose(np.frombuffer(reply.content[length:], "<f4").reshape(mean["shape"]), want["mean"], 1e-5)
    assert label["data"] == want["label"].tolist()


def test_a_header_of_zero_makes_the_body_the_one_input(client, loaded):
    inputs = rows_of("classes", 1)
    reply = client.post("/v2/models/classes/infer", content=inputs["input"].tobytes(), headers={LENGTH: "0"})
    assert_same(parsed(reply)[1], expected(loaded["classes"], inputs))


def test_nan_passes_in_binary_and_comes_back(client):
    inputs = {"input": np.full((1, 4), np.nan, np.float32)}
    _, arrays = parsed(client.post("/v2/models/classes/infer", **binary(inputs, ["mean"])))
    assert np.isnan(arrays["mean"]).all()
    answer = client.post("/v2/models/classes/infer", **binary(inputs, ["mean"], everything=False)).json()
    assert answer["outputs"][0]["data"] == [None] * 3
    assert answer["outputs"][0]["parameters"] == {"non_finite": True}


@pytest.mark.parametrize("change", [-1, 1, -4])
def test_bytes_missing_or_left_over_are_refused(client, change):
    request = binary(rows_of("classes", 2))
    request["content"] = request["content"][:change] if change < 0 else request["content"] + b"x"
    reply = client.post("/v2/models/classes/infer", **request)
    assert reply.status_code == 400
    assert "error" in reply.json()


@pytest.mark.parametrize("value", ["-1", "x", "99999", "1e3", "9" * 5000, "١"])
def test_a_wrong_length_of_the_json_is_refused(client, value):
    request = binary(rows_of("classes", 2))
    request["headers"] = {LENGTH: value.encode()}
    assert client.post("/v2/models/classes/infer", **request).status_code == 400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [2, 5]}, "must have the shape [batch, 4]"),
        ({"shape": [2, 2**62]}, "product"),
        ({"shape": [-2, 4]}, "whole numbers from 0 up"),
        ({"datatype": "FP64"}, "must have datatype FP32"),
        ({"datatype": "BYTES"}, "BYTES is not served"),
        ({"data": [1.0] * 7}, "must have 8 numbers"),
        ({"name": "other"}, "must have a name that is one of 'input'"),
        ({"data": None}, "must have data"),
    ],
)
def test_a_wrong_tensor_is_told_what_would_be_right(client, change, says):
    body = v2_body(rows_of("classes", 2))
    body["inputs"][0] |= change
    reply = client.post("/v2/models/classes/infer", json=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def test_an_unknown_output_is_told_which_there_are(client, loaded):
    reply = client.post("/v2/models/pair/infer", json=v2_body(rows_of("pair", 1), ["policy.label"]))
    assert reply.status_code == 400
    for name in loaded["pair"].available_statistics():
        assert f"'{name}'" in reply.json()["error"]


def test_inputs_with_different_rows_are_refused(client):
    inputs = rows_of("pair", 3) | {"tokens": rows_of("pair", 2)["tokens"]}
    reply = client.post("/v2/models/pair/infer", json=v2_body(inputs))
    assert reply.status_code == 400
    assert "same number of rows" in reply.json()["error"]


def test_server_metadata_and_health(client):
    about = client.get("/v2").json()
    assert about["name"] == "ensembled"
    assert about["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "parameters",
        "schedule_policy",
        "statistics",
    ]
    assert about["version"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/v2/models/pair", "/v2/models/pair/versions/1"])
def test_model_metadata(client, loaded, path):
    about = client.get(path).json()
    assert (about["name"], about["versions"], about["platform"]) == ("pair", ["1"], "pytorch_ensemble")
    assert about["inputs"] == [
        {"name": "features", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "tokens", "datatype": "INT64", "shape": [-1, 2]},
    ]
    described = loaded["pair"].described_statistics()
    assert [o["name"] for o in about["outputs"]] == list(described)
    for output in about["outputs"]:
        statistic, shape = described[output["name"]]
        assert output["shape"] == [-1, *shape]
        assert output["parameters"]["default"] == statistic.default
    explained = about["parameters"].pop("request_parameters")
    assert list(explained) == [
        "members",
        "tolerance",
        "confidence_level",
        "levels",
        "timeout",
        "priority",
        "recipe",
        "seed",
    ]
    assert explained["members"].endswith(f"1 to {MEMBERS}")
    reasons = about["parameters"].pop("not_fitted")
    assert set(reasons) == {f"{head}.{name}" for head in ("policy", "value") for name in ("ood_score", "abstain")}
    assert {"recipe", "seed", "members", "scale"} <= set(about["parameters"].pop("perturbation_parameters"))
    assert about["parameters"] == {"members": MEMBERS, "seed": 0, "task": "raw"}


def test_the_metadata_is_true_of_the_answers(client, loaded):
    for model in loaded:
        about = {o["name"]: o for o in client.get(f"/v2/models/{model}").json()["outputs"]}
        assert list(about) == list(loaded[model].available_statistics())
        names = askable(loaded[model])
        answer = client.post(f"/v2/models/{model}/infer", json=v2_body(rows_of(model, 3), names)).json()
        for output in answer["outputs"]:
            stated = about[output["name"]]
            assert output["datatype"] == stated["datatype"]
            assert len(output["shape"]) == len(stated["shape"])
            assert all(want in (-1, got) for got, want in zip(output["shape"], stated["shape"], strict=True))


@pytest.mark.parametrize("path", ["/v2/models/classes/ready", "/v2/models/classes/versions/2/ready"])
def test_a_models_readiness(client, path):
    assert client.get(path).json() == {"name": "classes", "version": "2", "ready": True}


def test_the_index_of_the_repository(client):
    index = client.post("/v2/repository/index").json()
    assert {"name": "house", "version": "1", "state": "READY", "reason": ""} in index
    assert len(index) == 4


@pytest.mark.parametrize("tail", ["", "/ready", "/infer"])
@pytest.mark.parametrize("model", ["nobody", "classes/versions/1", "classes/versions/02", "classes/versions/x"])
def test_unknown_models_and_versions(client, model, tail):
    reply = client.request("POST" if tail == "/infer" else "GET", f"/v2/models/{model}{tail}")
    assert reply.status_code == 404
    assert list(reply.json()) == ["error"]


def test_an_infer_with_a_version(client, loaded):
    inputs = rows_of("classes", 2)
    answer = client.post("/v2/models/classes/versions/2/infer", json=v2_body(inputs)).json()
    assert answer["model_version"] == "2"
    assert_same(v2_arrays(answer), expected(loaded["classes"], inputs))
