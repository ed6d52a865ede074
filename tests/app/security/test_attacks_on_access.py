"""Keys, ports, addresses, pages of other sites."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil

import httpx
import pytest
from fastapi import APIRouter

from app import routes as routes_of
from app.cli import main
from app.keys import make_key
from app.middleware.authentication import OPEN
from tests.app.support import PATIENCE, command, plain_body, rows_of, until, v2_body

PATHS = ["/", "/docs", "/openapi.json", "/docs/static/swagger-ui.css", "/metrics", "/nothing", "/v2/models/stats"]


def routes() -> list[str]:
    modules = [
        importlib.import_module(f"app.routes.{module.name}") for module in pkgutil.iter_modules(routes_of.__path__)
    ]
    every = [found for module in modules for found in vars(module).values() if isinstance(found, APIRouter)]
    return sorted({r.path.format(name="house", version="1", handle="x") for router in every for r in router.routes})


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_nothing_but_health_is_open_whatever_path_or_method(fortress, method):
    """3: every route that there is, and some that there are not, on every port."""
    for base in (fortress.server.url, fortress.management, fortress.metrics):
        with httpx.Client(base_url=base, timeout=PATIENCE) as client:
            for path in [*PATHS, *routes()]:
                if path in OPEN:
                    continue
                reply = client.request(method, path)
                assert reply.status_code == 401, path
                assert reply.headers["www-authenticate"] == 'Bearer realm="ensembled"'
                if method != "HEAD":
                    assert list(reply.json()) == ["error"]
    assert httpx.get(fortress.server.url + "/v2/health/live").status_code == 200
    assert fortress.is_well()


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live/../../models/house", "/v2/health/live%2f..%2f..%2fmodels", "/v2/health/live;/../models",
     "//v2/models/house", "/v2/health/ready/%2e%2e/%2e%2e/models/house", "/V2/Models/house", "/v2/health/live?/metrics",
     "/v2/health/live%00/metrics", "http://x/v2/models/house"],
)  # fmt: skip
def test_a_path_that_looks_like_health_opens_nothing_else(fortress, path):
    """3: what is open is compared with the path that routes are looked for by, and nothing else is."""
    status, _, body = fortress.server.raw(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert status == 401 or (status == 200 and json.loads(body) == {"live": True})


def test_keys_that_are_nearly_right_open_nothing(fortress):
    """3: cut, longer, another case, its hash instead of it, several at once; and a body is not read before."""
    key = fortress.key
    near = [key[:-1], key + "A", key.swapcase(), hashlib.sha256(key.encode()).hexdigest(), make_key(), f"{key},{key}"]
    with httpx.Client(base_url=fortress.server.url, timeout=PATIENCE) as client:
        for wrong in near:
            for headers in ({"X-API-Key": wrong}, {"Authorization": f"Bearer {wrong}"}):
                reply = client.post("/predict", json=plain_body(rows_of("house", 1)), headers=headers)
                assert (reply.status_code, reply.json()) == (401, {"error": "this key opens nothing here"})
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert client.post("/predict", json=plain_body(rows_of("house", 1)), headers=headers).status_code == 200
    # Announced, not sent: the answer comes all the same.
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60000\r\n\r\n"
    assert fortress.server.raw(head)[0] == 401


def test_health_tells_those_without_the_key_no_names(fortress):
    """3, 12: a model cannot be served, and only who has the key is told which and why."""
    open_to_all = httpx.get(fortress.server.url + "/v2/health/ready")
    assert open_to_all.status_code == 503
    assert "pickled" not in open_to_all.text
    with fortress.client() as client:
        assert "pickled" in client.get("/v2/health/ready").json()["models"]


def test_management_is_off_unless_it_is_switched_on(service):
    """1: an ordinary service loads and unloads nothing for anybody."""
    for verb in ("load", "unload"):
        reply = service.post(f"/v2/repository/models/house/{verb}", json={})
        assert reply.status_code == 403
        assert "switched off" in reply.json()["error"]
    assert service.get("/v2/models/house/ready").status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": json.dumps({"url": "http://127.0.0.1:1/model"})},
        {"url": "http://127.0.0.1:1/model"},
        {"file:1/weights.safetensors": "AAAA"},
    ],
)
def test_a_model_comes_from_the_directory_only(fortress, parameters):
    """1: neither a URL nor a file in the request is loaded, even for who may manage."""
    with fortress.client(fortress.management) as client:
        reply = client.post("/v2/repository/models/house/load", json={"parameters": parameters})
    assert reply.status_code == 400
    assert "load takes no parameters" in reply.json()["error"]
    assert fortress.is_well()


@pytest.mark.parametrize(
    "name", ["http:%2f%2f127.0.0.1:1%2fmodel", "..%2felsewhere", "linked", "%2fetc", "a%20b", "nobody"]
)
def test_management_loads_nothing_that_is_not_in_the_directory(fortress, name):
    """1, 4: a URL, a path, a link out of the directory, a name that is none."""
    with fortress.client(fortress.management) as client:
        reply = client.post(f"/v2/repository/models/{name}/load", json={})
    assert reply.status_code == 404
    assert str(fortress.root.parent) not in reply.text
    assert fortress.is_well()


def test_management_and_metrics_are_on_their_own_ports_alone(fortress):
    """1, 14: who can reach the models cannot reach what is beside them, even with the key; nor the other way round."""
    asked = {
        ("POST", "/v2/repository/models/nobody/load"): fortress.management,
        ("GET", "/metrics"): fortress.metrics,
        ("GET", "/v2/models/house"): fortress.server.url,
        ("POST", "/predict"): fortress.server.url,
        ("GET", "/docs"): fortress.server.url,
        ("GET", "/openapi.json"): fortress.server.url,
    }
    for base in (fortress.server.url, fortress.management, fortress.metrics):
        with fortress.client(base) as client:
            for (method, path), right in asked.items():
                reply = client.request(method, path, json={} if method == "POST" else None)
                nowhere = reply.status_code in (404, 405) and "no such path" in reply.text
                assert nowhere == (base != right), (base, path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0"), "host '0.0.0.0' can be reached from other machines and no key guards the service"),
        (("--metrics-port", "0", "--metrics-host", "0.0.0.0"), "host '0.0.0.0' can be reached from other machines"),
        (("--host", "0.0.0.0", "--allow-public", "--management"), "management on host '0.0.0.0' needs a key"),
    ],
)
def test_nothing_is_public_without_a_key_by_accident(arguments, says):
    """2: an address that others reach needs a key or an explicit word, and management needs the key."""
    done = command("serve", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_weak_key_does_not_guard_anything():
    """3: the service does not start with a key that can be guessed, and does not show it."""
    done = command("serve", ENSEMBLED_API_KEY="hunter2hunter2")
    assert done.returncode == 2
    assert "ENSEMBLED_API_KEY: a key has 16 to 256 characters" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_typing_error_in_a_variable_does_not_pass_in_silence(monkeypatch, caplog, models):
    """3: ENSEMBLED_APIKEY guards nothing, which is said before the first request."""
    key = make_key()
    monkeypatch.setenv("ENSEMBLED_APIKEY", key)
    monkeypatch.setattr("app.logs.configure", lambda *_: None)
    monkeypatch.setattr("app.server.serve", lambda _: None)
    assert main(["serve", "--models", str(models)]) == 0
    assert "ENSEMBLED_APIKEY is no setting and does nothing; is ENSEMBLED_API_KEY meant?" in caplog.text
    assert key not in caplog.text


def test_no_answer_invites_pages_of_other_sites(fortress, service):
    """2: no CORS header, whatever a page asks for; a page that asks without being let see the answer is refused."""
    page = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site"}
    with fortress.client() as client:
        for method in ("OPTIONS", "GET", "POST"):
            reply = client.request(method, "/v2/models/house/infer", headers=page)
            assert not [name for name in reply.headers if name.startswith("access-control-")]
    # No key is needed here, so the browser's own word is what there is to go by.
    reply = service.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1)), headers=page)
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert service.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1))).status_code == 200


def test_a_page_whose_name_points_to_this_machine_reads_nothing(client):
    """2: DNS rebinding; to the browser page and service are one site, and the Host header tells them apart."""
    body = plain_body(rows_of("house", 1))
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]:1"):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/models/house/predict"), ("GET", "/nothing")):
            reply = client.request(method, path, json=body if method == "POST" else None, headers={"Host": host})
            assert (reply.status_code, list(reply.json())) == (421, ["error"])
            assert "house" not in reply.text
    for host in ("127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8000", "app.localhost"):
        assert client.request("GET", "/v1/models", headers={"Host": host}).status_code == 200


def test_keys_are_in_no_log_page_or_description(fortress):
    """3, 12: what was sent as a key, right or wrong, is found nowhere."""
    wrong = make_key()
    with fortress.client() as client:
        pages = [client.get("/openapi.json").text, client.get("/v1/models").text, client.get("/v2").text]
        client.get("/predict", headers={"X-API-Key": wrong})
        client.post("/v2/models/house/infer", json=v2_body(rows_of("house", 1)), params={"key": "in-the-query"})
    with fortress.client(fortress.metrics) as client:
        pages.append(client.get("/metrics").text)
    until(lambda: "POST /v2/models/house/infer" in fortress.server.text(), "the log has it")
    for key in (fortress.key, wrong, hashlib.sha256(fortress.key.encode()).hexdigest(), "in-the-query"):
        assert key not in fortress.server.text()
        assert not any(key in page for page in pages)
