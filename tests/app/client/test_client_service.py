"""Both clients against the real service."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import shutil
import ssl

import httpx
import numpy as np
import pytest
import trustme

from app.client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    InputError,
    InvalidAnswer,
    NotFound,
    Retry,
    Unauthorized,
    calls,
)
from app.keys import make_key
from tests.app.client.conftest import answer
from tests.app.support import MEMBERS, assert_same, command, expected, rows_of, serving, until


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("model", ["classes", "house", "weather", "pair"])
def test_it_says_what_the_library_says(service, connect, loaded, model, binary, compress):
    rows = rows_of(model, 200)
    client = connect(service.url, model=model, binary=binary, compress=compress)
    for given in (rows, {name: array.astype(np.float64) if array.dtype == np.float32 else array
                         for name, array in rows.items()}):  # fmt: skip
        result = client.infer(given)
        assert_same(result.outputs, expected(loaded[model], rows))
        assert (result.model, result.members, result.seed) == (model, MEMBERS, loaded[model].origin.seed)
        assert result.version == ("2" if model == "classes" else "1")
    assert result.request_id
    assert {"queue", "infer", "total"} <= result.timings.keys()
    assert all(0 <= seconds < 60 for seconds in result.timings.values())


def test_outputs_version_members_and_id_are_those_that_were_asked_for(service, connect, loaded):
    client = connect(service.url)
    rows = rows_of("classes", 3)["input"]
    result = client.predict(rows, ["members", "label"], model="classes", version="2", members=3, request_id="mine-7")
    assert list(result.outputs) == ["members", "label"]
    assert result["members"].shape == (3, 3, 3)
    want = loaded["classes"].predict(rows_tensor(rows), statistics=["members"]).flat()["members"].numpy()
    np.testing.assert_allclose(result["members"], want[:, :3] if want.shape[1] == MEMBERS else want[:3], rtol=1e-5)
    assert (result.members, result.request_id) == (3, "mine-7")
    until(lambda: "mine-7" in service.text(), "the service's log has the id")


def rows_tensor(rows):
    import torch

    return torch.from_numpy(rows)


def test_lists_will_do_and_a_tolerance_is_passed_on(service, connect):
    client = connect(service.url, model="house")
    few = client.infer([[1, 2, 3, 4, 5]], tolerance=1e6)
    assert few["mean"].shape == (1, 2)
    assert few.members <= MEMBERS


def test_what_there_is(service, connect):
    client = connect(service.url)
    assert client.live()
    assert client.ready()
    assert client.ready("house")
    assert client.ready("house", "1")
    assert {model["name"] for model in client.models()} == {"classes", "house", "weather", "pair"}
    about = client.metadata("pair")
    assert [spec["name"] for spec in about["inputs"]] == ["features", "tokens"]
    assert client.metadata("classes", "2")["versions"] == ["2"]


def test_errors_say_what_the_service_says(service, connect):
    client = connect(service.url)
    with pytest.raises(NotFound, match=r"name a model: there are classes, house, pair, weather"):
        client.infer([[1.0]])
    with pytest.raises(NotFound, match=r"unknown model 'nobody'") as unknown:
        client.infer([[1.0]], model="nobody")
    assert unknown.value.status == 404
    assert unknown.value.request_id in str(unknown.value)
    with pytest.raises(NotFound):
        client.ready("nobody")
    with pytest.raises(BadRequest, match=r"input 'input' must have the shape \[batch, 5\]"):
        client.infer([[1.0]], model="house")
    with pytest.raises(BadRequest, match="output must be one of"):
        client.infer([[1.0] * 5], ["nothing"], model="house")
    with pytest.raises(BadRequest, match="members"):
        client.infer([[1.0] * 5], model="house", members=10**6)
    with pytest.raises(BadRequest, match="at most"):
        client.infer(np.zeros((10**5, 5), np.float32), model="house")
    with pytest.raises(InputError, match="takes 'features', 'tokens'"):
        client.infer([[1.0]], model="pair")
    with pytest.raises(ValueError, match="request_id must be"):
        client.infer([[1.0] * 5], model="house", request_id="a b")
    with pytest.raises(ValueError, match="timeout must be above 0"):
        client.infer([[1.0] * 5], model="house", timeout=0)
    with pytest.raises(Unauthorized, match="switched off"):
        client.unload("house")


def test_a_base_that_is_no_service_says_so(service, connect):
    with pytest.raises(NotFound):
        connect(service.url + "/docs").models()
    page = httpx.get(service.url + "/docs")
    with pytest.raises(InvalidAnswer, match="text/html"):
        calls.document_of(page)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "", "http://[::1"])
def test_a_url_that_is_none_is_refused(connect, url):
    with pytest.raises(ValueError, match=r"^url must "):
        connect(url)


@pytest.mark.parametrize("key", ["", "with space", "ümlaut", "line\nbreak"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(connect, key):
    with pytest.raises(ValueError, match=r"^key must be printable ASCII") as refused:
        connect("http://127.0.0.1:1", key=key)
    assert not key or key not in str(refused.value)


def test_nobody_there(connect):
    client = connect("http://127.0.0.1:1", retry=Retry(attempts=2, first=0.0))
    assert not client.live()
    assert not client.ready()
    with pytest.raises(ConnectionFailed, match="there is no connection"):
        client.models()


@pytest.fixture(scope="module")
def guarded(models, tmp_path_factory):
    """A service with a key and management, and its key."""
    key = make_key()
    home = tmp_path_factory.mktemp("guarded")
    shutil.copytree(models / "house", home / "models" / "house")
    arguments = ("--models", home / "models", "--management")
    with serving(home / "log", *arguments, ENSEMBLED_API_KEY=key) as server:
        yield server, key


def test_with_a_key_and_management(guarded, connect):
    server, key = guarded
    client = connect(server.url, key=key)
    assert key not in repr(client)
    until(client.ready, "models are loaded")
    assert client.infer(rows_of("house", 2))["mean"].shape == (2, 2)
    client.unload("house")
    assert not client.ready("house")
    client.load("house")
    assert client.ready("house")
    assert client.infer(rows_of("house", 2))["mean"].shape == (2, 2)
    for wrong in (None, make_key()):
        stranger = connect(server.url, key=wrong, model="house")
        assert stranger.live()
        with pytest.raises(Unauthorized, match=r"key") as refused:
            stranger.infer(rows_of("house", 2))
        assert refused.value.status == 401


def test_commands_send_the_key_of_the_environment(guarded, connect):
    server, key = guarded
    until(connect(server.url, key=key).ready, "models are loaded")
    rows = json.dumps(rows_of("house", 2)["input"].tolist())
    done = command("predict", server.url, "-", "--json", stdin=rows, ENSEMBLED_API_KEY=key)
    assert np.shape(json.loads(done.stdout)["outputs"]["mean"]) == (2, 2)
    done = command("predict", server.url, "-", "--json", stdin=rows)
    assert (done.returncode, "answered 401: a key is needed" in done.stderr) == (1, True)
    load = ("loadtest", server.url, "--concurrency", 1, "--duration", 0.5, "--warmup", 0)
    assert command(*load, ENSEMBLED_API_KEY=key).returncode == 0
    done = command(*load)
    assert done.returncode != 0
    assert "401" in done.stderr + done.stdout


def test_threads_share_a_client(service, loaded):
    rows = [rows_of("house", 3, seed) for seed in range(64)]
    with (
        Client(service.url, model="house", connections=8) as client,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        for given, result in zip(rows, pool.map(client.infer, rows), strict=True):
            assert_same(result.outputs, expected(loaded["house"], given))
        assert len(client._transport._idle) <= 8


def test_tasks_share_a_client_and_one_that_is_given_up_harms_no_other(service, loaded):
    rows = [rows_of("house", 3, seed) for seed in range(64)]

    async def main():
        async with AsyncClient(service.url, model="house", connections=16) as client:
            await client.metadata()
            given_up = [asyncio.create_task(client.infer(each)) for each in rows[:8]]
            kept = [asyncio.create_task(client.infer(each)) for each in rows]
            await asyncio.sleep(0)
            for task in given_up[::2]:
                task.cancel()
            results = await asyncio.gather(*kept)
            await asyncio.gather(*given_up, return_exceptions=True)
            assert len(client._transport._idle) <= 16
            return results

    for given, result in zip(rows, asyncio.run(main()), strict=True):
        assert_same(result.outputs, expected(loaded["house"], given))


def test_a_transport_of_ones_own(running, models, loaded):
    async def main():
        async with running(models=models) as inside:
            transport = httpx.ASGITransport(inside._transport.app)
            async with AsyncClient("http://localhost", model="house", transport=transport) as client:
                return await client.infer(rows_of("house", 2))

    assert_same(asyncio.run(main()).outputs, expected(loaded["house"], rows_of("house", 2)))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(authority, scripted):
    """A server of a script, behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return scripted(answer(200, b'[{"name": "m"}]'), tls=context)


def test_https_with_a_certificate_that_is_trusted(authority, secure, connect):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    client = connect(secure.url, tls=trusting)
    for _ in range(3):
        assert client.models() == [{"name": "m"}]
    # All on one connection: the one that listens, what it accepted, and that in TLS.
    assert len(secure._open) == 3


@pytest.mark.parametrize("tls", [None, "another authority"])
def test_https_with_a_certificate_that_is_not_trusted_is_no_connection(secure, connect, tls):
    context = ssl.create_default_context()
    if tls is not None:
        trustme.CA().configure_trust(context)
    client = connect(
        secure.url, key="a-key-that-must-not-be-sent", tls=context if tls else None, retry=Retry(attempts=1)
    )
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        client.models()
    assert secure.requests == []
