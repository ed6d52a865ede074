"""What the service says of requests that are none of a protocol's, and how a process of it starts."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.errors import Unavailable
from app.keys import hash_line, make_key
from app.server import create_app
from app.settings import Settings
from tests.app.support import ROOT, assert_same, command, expected, plain_body, rows_of

BODY = json.dumps(plain_body(rows_of("classes", 2))).encode()


def no_secrets(text: str) -> None:
    """Neither a traceback nor a path of this machine."""
    assert "Traceback" not in text
    assert str(ROOT) not in text
    assert "site-packages" not in text
    assert ".py" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/predict/",
        "/v1/models/",
        "/v1/models/classes/predict/x",
        "/v2/models/classes/versions/2/infer/x",
        "/docs/static/../../pyproject.toml",
        "/docs/static/%2e%2e/%2e%2e/pyproject.toml",
        "/docs/static//etc/passwd",
        "/docs/static/%00",
        "/v1/models/%2e%2e/predict",
        "/v1/models/..%2f..%2fetc/predict",
        "/v1/models/classes%2f1/predict",
        "/v1/models/classes%00/predict",
        "/v1/models/cl%C3%A4sses/predict",
        "/v1/models/%ff%fe/predict",
        "/v1/models/%E2%80%AE%0d%0a/predict",
        "/v1/models/" + "a" * 3000 + "/predict",
        "/v1/models/classes/versions/%2e%2e/predict",
        "/v1/models/classes/versions/" + "1" * 5000 + "/predict",
        "/v2/models/%2e%2e%2f/infer",
    ],
)
def test_a_path_that_leads_nowhere_is_404_and_tells_nothing(service, path):
    for method in ("GET", "POST"):
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        status, headers, body = service.raw(head + BODY)
        assert status in (404, 405)
        assert headers["content-type"] == "application/json"
        assert list(json.loads(body)) == ["error"]
        assert len(body) < 600
        no_secrets(body.decode())


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/predict", "POST"),
        ("DELETE", "/predict", "POST"),
        ("PUT", "/v1/models/classes/predict", "POST"),
        ("POST", "/v2/health/live", "GET"),
        ("GET", "/v2/models/classes/infer", "POST"),
        ("PATCH", "/v2", "GET"),
        ("POST", "/metrics", "GET"),
        ("OPTIONS", "/predict", "POST"),
        ("DELETE", "/docs/static/swagger-ui.css", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(client, method, path, allow):
    reply = client.request(method, path)
    assert reply.status_code == 405
    assert set(reply.headers["Allow"].split(", ")) == set(allow.split(", "))
    assert reply.json()["error"].startswith(f"{method} is not allowed here; use ")


def test_home_leads_to_the_documentation(client):
    reply = client.get("/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate, gzip", "nonsense\x07"])
def test_a_coding_that_is_not_read_is_refused(service, encoding):
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: {encoding}\r\ncontent-length: {len(BODY)}"
    status, _, body = service.raw(f"{head}\r\n\r\n".encode() + BODY)
    assert status == (400 if "\x07" in encoding else 415)
    assert "error" in json.loads(body)


def test_a_body_that_is_announced_too_large_is_refused_unread(service):
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1048577\r\n\r\n"
    status, _, body = service.raw(head)
    assert status == 413
    assert json.loads(body) == {"error": "the body may have 1048576 bytes at most; send fewer rows at a time"}


def memory(process: int) -> int:
    """The most memory that a process ever held, bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_body_that_grows_too_large_is_refused_and_not_held(service, client, loaded):
    for _ in range(3):
        # Whatever a full body takes is taken before.
        assert client.post("/predict", content=b" " * 2**20).status_code == 400
    before = memory(service.process.pid)
    piece = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    status, _, body = service.raw(head, *[piece] * 64, b"0\r\n\r\n")
    assert status == 413
    assert "at most" in json.loads(body)["error"]
    assert memory(service.process.pid) - before < 16 * 2**20
    inputs = rows_of("classes", 2)
    assert_same(client.post("/predict", content=BODY).json()["outputs"], expected(loaded["classes"], inputs))


def test_a_body_in_pieces_is_put_together(service, loaded):
    pieces = [b"%x\r\n%s\r\n" % (len(BODY[i : i + 50]), BODY[i : i + 50]) for i in range(0, len(BODY), 50)]
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    status, _, body = service.raw(head, *pieces, b"0\r\n\r\n")
    assert status == 200
    assert_same(json.loads(body)["outputs"], expected(loaded["classes"], rows_of("classes", 2)))


def test_a_client_that_goes_in_the_middle_harms_nobody(service, client):
    for _ in range(5):
        with service.connection() as connected:
            connected.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        with service.connection() as connected:
            connected.sendall(
                b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
            )
    assert client.post("/predict", content=BODY).status_code == 200


def test_the_application_answers_without_a_server_too(models, loaded, running):
    async def main():
        async with running(models=models, default_model="house") as client:
            answer = (await client.post("/predict", json=plain_body(rows_of("house", 3)))).json()
            assert_same(answer["outputs"], expected(loaded["house"], rows_of("house", 3)))
            service = client.service
            model = service.repository.ready_model("house")
        # What comes after the end is told so.
        with pytest.raises(Unavailable, match=r"shutting down"):
            service.repository.ready_model("house")
        with pytest.raises(Unavailable, match=r"shutting down"):
            await service.batcher.submit(model, {"input": np.zeros((1, 5), np.float32)}, ("mean",), 1)

    asyncio.run(main())


def test_an_error_of_the_service_itself_tells_the_log_and_not_the_client(models, running, caplog):
    async def main():
        async with running(models=models) as client:

            async def broken(*_, **__):
                raise RuntimeError("the secret of /work")

            client.service.batcher.submit = broken
            reply = await client.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1)))
            assert reply.status_code == 500
            number = reply.headers["X-Request-ID"]
            assert reply.json() == {"error": f"internal error; the server's log explains it under request id {number}"}
            metrics = (await client.get("/metrics")).text
            assert 'route="/v1/models/{name}/predict",status="500"} 1.0' in metrics

    asyncio.run(main())
    assert "the secret of /work" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--models", "no/such/directory"), "ensembled serve: There is no directory no/such/directory. Make a model"),
        (("--models", "{empty}"), "holds no model. A model is a directory NAME/VERSION with a manifest.json"),
        (("--models", "{models}", "--default-model", "nobody"), "The default model 'nobody' is not in"),
        (("--models", "{models}", "--device", "cuda:77"), "ensembled serve: device 'cuda:77' is not there: PyTorch"),
    ],
)
def test_what_cannot_be_served_ends_with_status_2_and_one_line(models, tmp_path, arguments, says):
    done = command("serve", *(a.format(models=models, empty=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_status_2_and_says_so(models, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("serve", "--models", models, "--port", 0, flag, port)
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stderr


def paths(app) -> set[str]:
    return set(app.openapi()["paths"])


def test_metrics_and_management_are_where_the_settings_say(models):
    load = "/v2/repository/models/{name}/load"
    app = create_app(Settings(models=models))
    assert {"/metrics", load, "/predict"} <= paths(app)
    assert app.state.ports == []
    app = create_app(Settings(models=models, metrics=False))
    assert "/metrics" not in paths(app)
    app = create_app(Settings(models=models, metrics=False, metrics_port=7, management_port=0, management_host="::1"))
    assert not {"/metrics", load} & paths(app)
    (port,) = app.state.ports
    assert (port.name, port.host, port.number) == ("management", "::1", 0)
    assert paths(port.app) == {load, load.replace("/load", "/unload")}
    assert (port.app.docs_url, port.app.openapi_url) == (None, None)


def test_all_ports_share_one_service_and_one_set_of_keys(models, tmp_path):
    key = make_key()
    (tmp_path / "keys").write_text(hash_line(key))
    app = create_app(Settings(models=models, api_keys_file=tmp_path / "keys", metrics_port=0))
    (port,) = app.state.ports
    assert port.app.state.service is app.state.service

    async def main():
        for asked, path in ((app, "/v2"), (port.app, "/metrics")):
            transport = httpx.ASGITransport(asked)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                assert (await client.get(path)).status_code == 401
                assert (await client.get(path, headers={"X-API-Key": key})).status_code == 200

    asyncio.run(main())


def test_keys_that_cannot_be_read_end_with_status_2_and_one_line(models, tmp_path):
    (tmp_path / "keys").write_text("a-key-in-clear")
    done = command("serve", "--models", models, "--api-keys-file", tmp_path / "keys")
    assert done.returncode == 2
    assert re.fullmatch(r"ensembled serve: the file of keys \S+, line 1: a line is the SHA-256 .*\n", done.stderr)
    assert "in-clear" not in done.stderr
