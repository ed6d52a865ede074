"""The plain API: what is asked, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import json
import shutil

import numpy as np
import pytest
import torch

from tests.app.support import MEMBERS, assert_same, expected, plain_body, rows_of

ROW = [[0.5, -1.0, 2.0, 0.25]]


def test_the_default_model_is_the_one_that_the_settings_name(client, loaded):
    inputs = rows_of("classes", 3)
    answer = client.post("/predict", json=plain_body(inputs)).json()
    assert answer["model"] == "classes"
    assert_same(answer["outputs"], expected(loaded["classes"], inputs))


def test_the_default_model_is_the_only_one(models, loaded, running, tmp_path):
    shutil.copytree(models / "house", tmp_path / "house")

    async def main():
        async with running(models=tmp_path) as client:
            answer = (await client.post("/predict", json=plain_body(rows_of("house", 2)))).json()
            assert answer["model"] == "house"
            assert_same(answer["outputs"], expected(loaded["house"], rows_of("house", 2)))

    asyncio.run(main())


def test_without_a_default_model_the_answer_says_what_to_do(models, running):
    async def main():
        async with running(models=models) as client:
            reply = await client.post("/predict", json={"inputs": ROW})
            assert reply.status_code == 404
            text = reply.json()["error"]
            assert text.startswith("there is no default model among classes, house, pair, weather")
            assert "/v1/models/NAME/predict" in text
            assert "--default-model" in text

    asyncio.run(main())


def test_several_named_inputs(client, loaded):
    inputs = rows_of("pair", 4)
    body = {"inputs": {name: array.tolist() for name, array in reversed(inputs.items())}}
    assert_same(client.post("/v1/models/pair/predict", json=body).json()["outputs"], expected(loaded["pair"], inputs))


def test_one_input_may_be_named_too(client, loaded):
    inputs = rows_of("weather", 2)
    answer = client.post("/v1/models/weather/predict", json={"inputs": {"x": inputs["x"].tolist()}}).json()
    assert_same(answer["outputs"], expected(loaded["weather"], inputs))


@pytest.mark.parametrize("path", ["/v1/models/classes/predict", "/v1/models/classes/versions/2/predict"])
def test_a_version_may_be_named(client, path):
    assert client.post(path, json={"inputs": ROW}).json()["version"] == "2"


def test_a_version_that_is_not_served_is_unknown_and_the_query_chooses_none(client):
    reply = client.post("/v1/models/classes/versions/1/predict", json={"inputs": ROW})
    assert (reply.status_code, reply.json()) == (404, {"error": "model 'classes' has no version '1'; it has 2"})
    assert client.post("/v1/models/classes/predict?version=1", json={"inputs": ROW}).status_code == 200


def test_an_unknown_model_is_told_which_there_are(client):
    reply = client.post("/v1/models/nobody/predict", json={"inputs": ROW})
    assert reply.status_code == 404
    assert reply.json() == {"error": "unknown model 'nobody'; there are classes, house, pair, weather"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"inputs": [[1, 2, 3]]}, "must have the shape [batch, 4], however: [1, 3]"),
        ({"inputs": [1, 2, 3, 4]}, "a single row is a batch of one"),
        ({"inputs": [[1, 2, 3, "x"]]}, "element [0][3] is the text 'x'"),
        ({"inputs": [[1, 2, 3, None]]}, "element [0][3] is null"),
        ({"inputs": [[1, 2, 3, True]]}, "element [0][3] is true"),
        ({"inputs": [[1, 2, 3, 1e300]]}, "finite numbers"),
        ({"inputs": [[1, 2, 3, 4], [1, 2]]}, "lists of equal length"),
        ({"inputs": []}, "at least one row"),
        ({"inputs": ROW, "outputs": ["nothing"]}, "output must be one of 'label', 'mean'"),
        ({"inputs": ROW, "outputs": ["mean", "mean"]}, "only once"),
        ({"inputs": ROW, "output": ["mean"]}, "keys must be among"),
        ({"inputs": {"other": ROW}}, "inputs must be named among 'input'"),
        ({}, "inputs must be a list of rows"),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_request_is_told_what_would_be_right(client, body, says):
    reply = client.post("/predict", json=body)
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    assert says in reply.json()["error"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the body is empty"),
        (b"inputs=1", "not JSON at line 1, column 1"),
        (b'{"inputs": [[NaN, 1, 2, 3]]}', "JSON has no NaN"),
        (b'{"inputs": [[Infinity, 1, 2, 3]]}', "JSON has no NaN or infinity"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 5000, "deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "at most 100 deep"),
    ],
)
def test_a_body_that_is_not_json_is_told_where(client, content, says):
    reply = client.post("/predict", content=content)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def test_values_that_the_model_cannot_take_are_the_clients_fault_and_nobody_elses(client, loaded):
    inputs = rows_of("pair", 2)
    body = plain_body(inputs)
    body["inputs"]["tokens"][1][0] = 10
    reply = client.post("/v1/models/pair/predict", json=body)
    assert reply.status_code == 400
    assert "an index beyond the model's table" in reply.json()["error"]
    body["inputs"]["tokens"][1][0] = 3.5
    assert "element [1][0] is 3.5" in client.post("/v1/models/pair/predict", json=body).json()["error"]
    good = client.post("/v1/models/pair/predict", json=plain_body(inputs)).json()
    assert_same(good["outputs"], expected(loaded["pair"], inputs))


def test_the_list_of_models_and_all_that_is_known_of_one(client, loaded):
    about = client.get("/v1/models").json()
    listed = about["models"]
    assert about["default"] == "classes"
    assert [(m["name"], m["version"], m["state"], m["reason"]) for m in listed] == [
        ("classes", "2", "READY", ""),
        ("house", "1", "READY", ""),
        ("pair", "1", "READY", ""),
        ("weather", "1", "READY", ""),
    ]
    about = client.get("/v1/models/classes").json()
    assert about["recipe"]["name"] == "gaussian"
    assert about["recipe"]["scale"] == 0.2
    assert about["metadata"] == loaded["classes"].metadata
    assert about["weight_bytes"] == loaded["classes"].members.nbytes
    assert about["checked_against_loop"]["relative_error"] < 1e-4
    explained = about["parameters"].pop("request_parameters")
    assert list(explained) == [
        "members",
        "tolerance",
        "confidence_level",
        "levels",
        "timeout_seconds",
        "priority",
        "perturbation",
    ]
    assert explained["members"].endswith(f"1 to {MEMBERS}")
    assert about["parameters"].pop("targets") == [
        {"name": "target", "datatype": "INT64", "shape": [-1], "output": "log_prob"}
    ]
    reasons = about["parameters"].pop("not_fitted")
    assert list(reasons) == ["prediction_set", "ood_score", "abstain"]
    assert all("ensembled build --data" in reason for reason in reasons.values())
    assert {"recipe", "seed", "members", "scale"} <= set(about["parameters"].pop("perturbation_parameters"))
    assert about["parameters"] == {"members": MEMBERS, "seed": 2, "task": "classification"}
    assert client.get("/v1/models/nobody").status_code == 404
    assert json.dumps(about)


def test_a_parameter_that_does_nothing_is_refused(client):
    body = {"inputs": [[0, 0, 0, 0]], "parameters": {"memebrs": 3}}
    reply = client.post("/predict", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"].endswith("'priority', 'perturbation', however: 'memebrs'")


def test_fewer_members_are_used_and_said(client, loaded):
    inputs = rows_of("classes", 2)
    body = plain_body(inputs, ["mean"]) | {"parameters": {"members": 3, "priority": 1, "timeout_seconds": 60}}
    answer = client.post("/predict", json=body, headers={"X-Request-Timeout": "60"}).json()
    assert answer["members"] == 3
    three = loaded["classes"].predict(torch.from_numpy(inputs["input"]), statistics=["mean"], members=3)
    np.testing.assert_allclose(answer["outputs"]["mean"], three.flat()["mean"].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "headers"), [({"timeout_seconds": 1e-6}, {}), ({}, {"X-Request-Timeout": "0.000001"})]
)
def test_what_comes_after_its_deadline_is_told_so(client, parameters, headers):
    body = plain_body(rows_of("classes", 1)) | {"parameters": parameters}
    reply = client.post("/predict", json=body, headers=headers)
    assert reply.status_code == 504
    assert "deadline" in reply.json()["error"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e3", "99999999"])
def test_a_deadline_that_is_none_is_refused(client, value):
    reply = client.post("/predict", json=plain_body(rows_of("classes", 1)), headers={"X-Request-Timeout": value})
    assert reply.status_code == 400
    assert "X-Request-Timeout must be seconds" in reply.json()["error"]


def test_a_balancer_may_ask_with_head(client):
    assert client.head("/v2/health/live").status_code == 200
    assert client.head("/v2/health/ready").status_code == 200
