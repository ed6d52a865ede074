"""The extension model_configuration, and all else that perf_analyzer reads before it sends anything."""

from __future__ import annotations

import pytest

from tests.app.support import MEMBERS

FULL = [
    {"name": "features", "data_type": "TYPE_FP32", "dims": [4]},
    {"name": "tokens", "data_type": "TYPE_INT64", "dims": [2]},
]


@pytest.mark.parametrize("path", ["/v2/models/pair/config", "/v2/models/pair/versions/1/config"])
def test_the_configuration_of_a_model(client, loaded, path):
    config = client.get(path).json()
    assert (config["name"], config["platform"], config["backend"]) == ("pair", "pytorch_ensemble", "ensembled")
    assert config["version_policy"] == {"specific": {"versions": [1]}}
    # As the service of the tests is started.
    assert config["max_batch_size"] == 16
    batching = config["dynamic_batching"]
    assert batching["preferred_batch_size"] == [1, 2, 4, 8, 16]
    assert batching["max_queue_delay_microseconds"] == 0
    assert (batching["priority_levels"], batching["default_priority_level"]) == (9, 5)
    assert [{key: entry[key] for key in want} for entry, want in zip(config["input"], FULL, strict=True)] == FULL
    described = loaded["pair"].described_statistics()
    assert [output["name"] for output in config["output"]] == list(described)
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["response_cache"] == {"enable": False}
    assert config["parameters"]["members"] == {"string_value": str(MEMBERS)}
    assert config["parameters"]["task"] == {"string_value": "raw"}
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_the_configuration_says_the_same_as_the_metadata(client, loaded):
    for model in loaded:
        config, about = client.get(f"/v2/models/{model}/config").json(), client.get(f"/v2/models/{model}").json()
        for ours, theirs in (("input", "inputs"), ("output", "outputs")):
            assert len(config[ours]) == len(about[theirs])
            for entry, tensor in zip(config[ours], about[theirs], strict=True):
                assert entry["name"] == tensor["name"]
                assert entry["data_type"] == f"TYPE_{tensor['datatype']}"
                shape = entry["reshape"]["shape"] if "reshape" in entry else entry["dims"]
                assert [-1, *shape] == tensor["shape"]
                # Triton knows no tensor without a dimension of its own.
                assert entry["dims"]


@pytest.mark.parametrize("model", ["nobody", "classes/versions/7", "classes/versions/x"])
def test_the_configuration_of_none(client, model):
    reply = client.get(f"/v2/models/{model}/config")
    assert (reply.status_code, list(reply.json())) == (404, ["error"])


@pytest.mark.parametrize("model", ["classes", "house", "pair"])
def test_what_perf_analyzer_reads(client, model):
    """Its order, fields and types: server metadata, model metadata, configuration, statistics."""
    server = client.get("/v2").json()
    assert isinstance(server["name"], str)
    extensions = set(server["extensions"])
    assert extensions >= {"binary_tensor_data", "model_configuration", "statistics", "schedule_policy", "parameters"}
    about, config = client.get(f"/v2/models/{model}").json(), client.get(f"/v2/models/{model}/config").json()
    assert type(config["max_batch_size"]) is int
    assert config["max_batch_size"] > 0
    # With a largest batch, the first dimension of the metadata is the batch and is left out.
    assert all(tensor["shape"][0] == -1 for tensor in [*about["inputs"], *about["outputs"]])
    # Else the model is taken for a pipeline, or for one that keeps state between requests.
    assert "ensemble_scheduling" not in config
    assert config["platform"] != "ensemble"
    assert "sequence_batching" not in config
    assert isinstance(config["dynamic_batching"], dict)
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["response_cache"]["enable"] is False
    for kind in ("input", "output"):
        names = {tensor["name"] for tensor in about[f"{kind}s"]}
        for entry in config[kind]:
            assert entry["name"] in names
            assert entry["is_shape_tensor"] is False
            assert entry.get("optional", False) is False
    for path in ("/v2/models/stats", f"/v2/models/{model}/stats"):
        found = {state["name"]: state for state in client.get(path).json()["model_stats"]}[model]
        assert found["version"] in about["versions"]
        assert type(found["inference_count"]) is type(found["execution_count"]) is int
        for kind in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
            assert set(found["inference_stats"][kind]) == {"count", "ns"}
            assert all(type(value) is int for value in found["inference_stats"][kind].values())
