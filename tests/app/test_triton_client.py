"""Triton's own client, unmodified, against the real service: the synchronous one and asyncio's."""

from __future__ import annotations

import asyncio
import gc
import shutil
import warnings

import numpy as np
import pytest
import torch

from tests.app.support import MEMBERS, assert_same, expected, rows_of, serving

http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")

Failure = pytest.importorskip("tritonclient.utils").InferenceServerException
BOTH = pytest.mark.parametrize("kind", ["sync", "aio"])
CODINGS = [None, "gzip", "deflate"]


class Calls:
    """One way to write the tests for both clients: each call is made, and its answer waited for."""

    def __init__(self, kind: str, port: int) -> None:
        self._kind, self._url = kind, f"127.0.0.1:{port}"

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if self._kind == "sync":
                with http.InferenceServerClient(self._url, network_timeout=60, connection_timeout=60) as client:
                    return getattr(client, name)(*args, **kwargs)

            async def asked():
                async with aio.InferenceServerClient(self._url) as client:
                    return await getattr(client, name)(*args, **kwargs)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                answer = asyncio.run(asked())
                if name.startswith("is_"):
                    # Those leave the answer unread and their connection to the collector, which would warn later.
                    gc.collect()
            return answer

        return call


@pytest.fixture
def triton(service, kind):
    return Calls(kind, service.port)


def tensors(inputs, binary=True):
    """Its inputs."""
    made = []
    for name, array in inputs.items():
        tensor = http.InferInput(name, array.shape, "INT64" if array.dtype == np.int64 else "FP32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


def arrays(result, names):
    return {name: result.as_numpy(name) for name in names}


@BOTH
def test_health_and_metadata(triton):
    assert triton.is_server_live() is True
    assert triton.is_server_ready() is True
    assert triton.is_model_ready("classes") is triton.is_model_ready("classes", "2") is True
    assert triton.is_model_ready("classes", "7") is triton.is_model_ready("nobody") is False
    server = triton.get_server_metadata()
    assert server["name"] == "ensembled"
    about = triton.get_model_metadata("pair")
    assert [tensor["name"] for tensor in about["inputs"]] == ["features", "tokens"]
    assert triton.get_model_metadata("classes", "2")["versions"] == ["2"]
    config = triton.get_model_config("pair", "1")
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    index = triton.get_model_repository_index()
    assert {"name": "house", "version": "1", "state": "READY", "reason": ""} in index


@BOTH
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["classes", "house", "weather", "pair"])
def test_an_inference(triton, loaded, model, binary):
    """No outputs are named: the default ones come back, in binary."""
    inputs = rows_of(model, 3)
    want = expected(loaded[model], inputs)
    result = triton.infer(model, tensors(inputs, binary), request_id="a-1")
    assert_same(arrays(result, want), want)
    about = result.get_response()
    assert (about["model_name"], about["id"]) == (model, "a-1")
    assert about["parameters"]["members"] == MEMBERS
    assert all("binary_data_size" in output["parameters"] for output in about["outputs"])


@BOTH
def test_selected_outputs_come_as_they_are_asked_for(triton, loaded):
    inputs = rows_of("classes", 4)
    outputs = [
        http.InferRequestedOutput("label", binary_data=False),
        http.InferRequestedOutput("members", binary_data=True),
        http.InferRequestedOutput("mean", binary_data=False),
    ]
    result = triton.infer("classes", tensors(inputs), model_version="2", outputs=outputs)
    names = ["label", "members", "mean"]
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    assert ["data" in output for output in result.get_response()["outputs"]] == [True, False, True]
    assert_same(arrays(result, names), expected(loaded["classes"], inputs, names))


@BOTH
@pytest.mark.parametrize("response", CODINGS)
@pytest.mark.parametrize("request_", CODINGS)
@pytest.mark.parametrize("binary", [True, False])
def test_compression_both_ways(triton, loaded, request_, response, binary):
    inputs = rows_of("classes", 300)
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("mean", "label")]
    result = triton.infer(
        "classes",
        tensors(inputs, binary),
        outputs=outputs,
        request_compression_algorithm=request_,
        response_compression_algorithm=response,
    )
    assert_same(arrays(result, ["mean", "label"]), expected(loaded["classes"], inputs, ["mean", "label"]))


@BOTH
def test_parameters_with_a_meaning(triton, loaded):
    inputs = rows_of("classes", 2)
    result = triton.infer(
        "classes", tensors(inputs), timeout=60_000_000, priority=1, parameters={"members": 3, "custom": "passed over"}
    )
    assert result.get_response()["parameters"]["members"] == 3
    three = loaded["classes"].predict(torch.from_numpy(inputs["input"]), statistics=["mean"], members=3)
    np.testing.assert_allclose(result.as_numpy("mean"), three.flat()["mean"].numpy(), rtol=1e-5, atol=1e-6)


@BOTH
def test_statistics_count_what_was_asked(triton):
    def count():
        (found,) = triton.get_inference_statistics("weather", "1")["model_stats"]
        return found["inference_count"]

    before = count()
    triton.infer("weather", tensors(rows_of("weather", 5)))
    assert count() == before + 5
    every = triton.get_inference_statistics()["model_stats"]
    assert {state["name"] for state in every} == {"classes", "house", "weather", "pair"}


@BOTH
@pytest.mark.parametrize(
    ("model", "change", "status", "says"),
    [
        ("nobody", {}, "404", "unknown model 'nobody'"),
        ("classes", {"model_version": "7"}, "404", "has no version '7'"),
        ("classes", {"outputs": [http.InferRequestedOutput("nothing")]}, "400", "however: 'nothing'"),
        ("classes", {"outputs": [http.InferRequestedOutput("mean", class_count=3)]}, "400", "without classification"),
        ("classes", {"timeout": -1}, "400", "parameters.timeout must be a whole number of microseconds from 1"),
        ("classes", {"timeout": 1}, "504", "the request's deadline passed before it was answered"),
        ("classes", {"priority": 10}, "400", "parameters.priority must be a whole number from 0 to 9"),
        ("classes", {"parameters": {"members": 7}}, "400", "parameters.members must be a whole number from 1 to 6"),
        ("classes", {"sequence_id": 4, "sequence_start": True}, "400", "no state is kept between requests"),
        ("classes", {"request_id": "a b"}, "400", "id must be 1 to 128 of the characters"),
    ],
)
def test_errors_reach_whoever_asked(triton, model, change, status, says):
    with pytest.raises(Failure) as failure:
        triton.infer(model, tensors(rows_of("classes", 1)), **change)
    assert says in failure.value.message()
    assert failure.value.status() == status


@BOTH
def test_wrong_tensors_are_explained(triton):
    for inputs, says in (
        ({"input": np.zeros((2, 5), np.float32)}, "must have the shape [batch, 4]"),
        ({"other": np.zeros((2, 4), np.float32)}, "must have a name that is one of 'input'"),
        ({"input": np.zeros((2, 4), np.int64)}, "must have datatype FP32"),
    ):
        with pytest.raises(Failure) as failure:
            triton.infer("classes", tensors(inputs))
        assert says in failure.value.message()


def test_many_at_once(service, loaded):
    """The synchronous client's own way to ask without waiting."""
    with http.InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=8) as client:
        waiting = [client.async_infer("house", tensors(rows_of("house", 2, seed))) for seed in range(20)]
        for seed, request in enumerate(waiting):
            want = expected(loaded["house"], rows_of("house", 2, seed))
            assert_same(arrays(request.get_result(), want), want)


@pytest.fixture(scope="module")
def managed(models, tmp_path_factory):
    """A service of its own whose models may be loaded and unloaded."""
    root = tmp_path_factory.mktemp("managed")
    shutil.copytree(models / "house", root / "house")
    shutil.copytree(models / "weather", root / "weather")
    with serving(tmp_path_factory.mktemp("log") / "log", "--models", root, "--management") as server:
        yield server.wait_ready()


@BOTH
def test_models_are_unloaded_and_loaded(managed, kind, loaded):
    triton = Calls(kind, managed.port)
    triton.unload_model("house")
    assert triton.is_model_ready("house") is False
    states = {entry["name"]: entry["state"] for entry in triton.get_model_repository_index()}
    assert states == {"house": "UNAVAILABLE", "weather": "READY"}
    with pytest.raises(Failure):
        triton.infer("house", tensors(rows_of("house", 1)))
    triton.load_model("house")
    assert triton.is_model_ready("house") is True
    inputs = rows_of("house", 2)
    want = expected(loaded["house"], inputs)
    assert_same(arrays(triton.infer("house", tensors(inputs)), want), want)
    with pytest.raises(Failure) as failure:
        triton.load_model("nobody")
    assert failure.value.status() == "404"
    with pytest.raises(Failure) as failure:
        triton.load_model("house", config='{"max_batch_size": 4}')
    assert failure.value.status() == "400"


def test_whoever_may_not_manage_is_told_how_it_would_be_allowed(service):
    with http.InferenceServerClient(f"127.0.0.1:{service.port}") as client, pytest.raises(Failure) as failure:
        client.unload_model("house")
    assert failure.value.status() == "403"
    assert "--management" in failure.value.message()
