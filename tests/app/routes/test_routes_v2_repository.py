"""The protocol's extension ``model_repository`` at a real service."""

from __future__ import annotations

import shutil

import httpx
import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.app.repository.lives import build, damage, exchange, rows
from tests.app.support import serving, v2_body


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return {seed: build(root / str(seed), seed) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory, saved):
    """m/1 and m/2 are served, of seeds 1 and 2; n/1 comes and goes with the tests."""
    root = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        (root / "m").mkdir(exist_ok=True)
        exchange(root / "m" / str(version), saved[version])
    return root


@pytest.fixture(scope="module")
def managed(root, tmp_path_factory):
    """A service whose models may be loaded and unloaded; all versions of m, and the latest of others."""
    log = tmp_path_factory.mktemp("managed") / "log"
    settings = ("--versions", "latest; m=all", "--default-model", "m", "--max-batch", 1)
    with serving(log, "--models", root, "--management", *settings) as server:
        yield server.wait_ready()


@pytest.fixture
def http(managed):
    with httpx.Client(base_url=managed.url, timeout=60) as connected:
        yield connected


@pytest.fixture
def triton(managed):
    with InferenceServerClient(managed.url.removeprefix("http://"), network_timeout=60, connection_timeout=60) as made:
        yield made


@pytest.fixture
def n(root, saved, http):
    """Where n/1 is, of seed 3 and loaded; it is gone afterwards."""
    (root / "n").mkdir(exist_ok=True)
    exchange(root / "n" / "1", saved[3])
    assert http.post("/v2/repository/models/n/load").status_code == 200
    yield root / "n" / "1"
    http.post("/v2/repository/models/n/unload")
    shutil.rmtree(root / "n")


READY = {"state": "READY", "reason": ""}
BOTH = [{"name": "m", "version": "1", **READY}, {"name": "m", "version": "2", **READY}]


def index(http, **body):
    return [s for s in http.post("/v2/repository/index", json=body).json() if s["name"] != "n" or s["state"] == "READY"]


def test_versions_beside_each_other_answer_for_themselves_and_the_latest_for_all(http):
    assert http.get("/v2/models/m").json()["versions"] == ["1", "2"]
    assert http.get("/v2/models/m/versions/1").json()["versions"] == ["1", "2"]
    for version, path in (("1", "/versions/1"), ("2", "/versions/2"), ("2", "")):
        answer = http.post(f"/v2/models/m{path}/infer", json=v2_body({"input": rows(0)})).json()
        assert (answer["model_version"], answer["parameters"]["seed"]) == (version, int(version))
        answer = http.post(f"/v1/models/m{path}/predict", json={"inputs": rows(0).tolist()}).json()
        assert (answer["version"], answer["seed"]) == (version, int(version))
        assert http.get(f"/v2/models/m{path}/ready").json() == {"name": "m", "version": version, "ready": True}
    missing = http.post("/v2/models/m/versions/3/infer", json=v2_body({"input": rows(0)}))
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'm' has no version '3'; it has 1, 2"})


def test_the_index_lists_each_version_with_its_state(http):
    assert index(http) == BOTH
    assert http.post("/v2/repository/index").json() == http.post("/v2/repository/index", json={}).json()
    assert http.get("/v1/models").json()["models"] == http.post("/v2/repository/index").json()


def test_the_index_of_what_is_ready(http, n):
    assert http.post("/v2/repository/models/n/unload").json() == {}
    gone = {"name": "n", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    for body in ({}, {"ready": False}, {"ready": None}):
        assert http.post("/v2/repository/index", json=body).json() == [*BOTH, gone]
    assert http.post("/v2/repository/index", json={"ready": True}).json() == BOTH


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b" \t\n", b'{"ready": 1}', b'{"ready": "true"}', b"\xff", b"[" * 200 + b"]" * 200]
)
def test_an_index_that_is_asked_for_wrongly(http, body):
    reply = http.post("/v2/repository/index", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]


def test_loading_replacing_and_unloading(http, n, saved):
    def seed() -> int:
        return http.post("/v1/models/n/predict", json={"inputs": rows(0).tolist()}).json()["seed"]

    assert seed() == 3
    exchange(n, saved[1])
    assert seed() == 3
    reply = http.post("/v2/repository/models/n/load", json={})
    assert (reply.status_code, reply.json()) == (200, {})
    assert seed() == 1
    reply = http.post("/v2/repository/models/n/unload", json={"parameters": {"unload_dependents": True}})
    assert (reply.status_code, reply.json()) == (200, {})
    refused = http.post("/v1/models/n/predict", json={"inputs": rows(0).tolist()})
    assert (refused.status_code, refused.json()) == (503, {"error": "model 'n' is not ready: unloaded"})
    assert "Retry-After" not in refused.headers
    assert http.get("/v2/models/n/ready").status_code == 503
    # What somebody unloaded on purpose is not missed.
    assert http.get("/v2/health/ready").status_code == 200


def test_a_replacement_that_fails_is_told_and_changes_nothing(http, n, saved, root):
    exchange(n, saved[2])
    damage(n)
    reply = http.post("/v2/repository/models/n/load")
    assert reply.status_code == 400
    assert reply.json()["error"].startswith("model 'n' version 1 cannot be served: weights.safetensors is not what")
    assert reply.json()["error"].endswith("; version 1 goes on answering")
    assert str(root) not in reply.text
    state = http.post("/v2/repository/index").json()[-1]
    assert state["state"] == "READY"
    assert state["reason"].startswith("its replacement cannot be served: weights.safetensors is not what")
    assert http.post("/v1/models/n/predict", json={"inputs": rows(0).tolist()}).json()["seed"] == 3
    assert http.get("/v2/health/ready").status_code == 200


def test_the_default_model_can_be_unloaded_and_says_so(http):
    assert http.post("/v2/repository/models/m/unload").status_code == 200
    try:
        refused = http.post("/predict", json={"inputs": rows(0).tolist()})
        assert (refused.status_code, refused.json()) == (503, {"error": "model 'm' is not ready: unloaded"})
        assert http.get("/v2/health/ready").status_code == 200
        assert http.get("/openapi.json").status_code == 200
    finally:
        assert http.post("/v2/repository/models/m/load").status_code == 200
    assert http.post("/predict", json={"inputs": rows(0).tolist()}).json()["version"] == "2"


@pytest.mark.parametrize("what", ["load", "unload"])
@pytest.mark.parametrize("name", ["nobody", "..", "%2e%2e", "m%2f1", "%00", "-", "M" * 500])
def test_a_model_that_is_not_there(http, what, name):
    reply = http.post(f"/v2/repository/models/{name}/{what}")
    assert reply.status_code == 404
    assert len(reply.json()["error"]) < 300


@pytest.mark.parametrize(
    ("what", "body", "says"),
    [
        ("load", {"parameters": {"config": "{}"}}, "load takes no parameters, however: 'config'"),
        ("load", {"parameters": {"file:1/model.pt": "gASV"}}, "load takes no parameters, however: 'file:1/model.pt'"),
        ("load", {"parameters": []}, "parameters must be an object, however: an empty list"),
        ("load", [], "the body must be a JSON object"),
        ("unload", {"parameters": {"config": ""}}, "unload_dependents only, however: 'config'"),
        ("unload", {"parameters": 1}, "parameters must be an object, however: 1"),
    ],
)
def test_what_would_bring_files_or_settings_is_refused(http, what, body, says):
    reply = http.post(f"/v2/repository/models/m/{what}", json=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]
    assert index(http) == BOTH


def test_tritons_own_client_manages_models(triton, n, saved):
    assert [m["version"] for m in triton.get_model_repository_index() if m["name"] == "m"] == ["1", "2"]
    assert "model_repository" in triton.get_server_metadata()["extensions"]
    exchange(n, saved[2])
    triton.load_model("n")
    assert triton.is_model_ready("n", "1")
    triton.unload_model("n", unload_dependents=True)
    assert not triton.is_model_ready("n")
    triton.load_model("n")
    assert triton.get_model_metadata("n")["parameters"]["seed"] == 2
    with pytest.raises(InferenceServerException, match=r"load takes no parameters, however: 'config'"):
        triton.load_model("n", config='{"max_batch_size": 4}')
    with pytest.raises(InferenceServerException, match=r"load takes no parameters, however: 'file:1/model.pt'"):
        triton.load_model("n", files={"file:1/model.pt": b"code"})
    with pytest.raises(InferenceServerException, match=r"there is no model 'nobody'"):
        triton.load_model("nobody")


@pytest.mark.parametrize("what", ["load", "unload"])
@pytest.mark.parametrize("name", ["classes", "nobody"])
def test_it_is_off_unless_it_was_switched_on_and_the_index_is_not(client, what, name):
    before = client.post("/v2/repository/index").json()
    reply = client.post(f"/v2/repository/models/{name}/{what}", json={"parameters": {"config": "x"}})
    assert reply.status_code == 403
    assert "--management (ENSEMBLED_MANAGEMENT=1)" in reply.json()["error"]
    assert client.post("/v2/repository/index").json() == before
    assert client.get(f"/v2/repository/models/classes/{what}").status_code == 405
