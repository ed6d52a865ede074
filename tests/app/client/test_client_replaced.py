"""A model that was replaced since the client looked up what it takes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from app.client import BadRequest, InputError, NotFound
from tests.app.client.conftest import METADATA, QUICK, RESULT, answer, metadata
from tests.app.support import assert_same, expected, rows_of, serving

WRONG = answer(400, b'{"error": "wrong"}')
GONE = answer(404, b'{"error": "unknown model"}')


@pytest.fixture
def asked(scripted, connect):
    """A server of a script, and a client of it that knows what its model takes."""

    def make(*script):
        server = scripted(METADATA, RESULT, *script)
        client = connect(server.url, model="m", retry=QUICK)
        client.infer({"x": [[1]]})
        return server, client

    return make


def paths(server):
    """The last parts of the paths that were asked for after the first inference."""
    return [request.split(b" ", 2)[1].rsplit(b"/", 1)[1].decode() for request in server.requests[2:]]


@pytest.mark.parametrize("binary", [True, False])
def test_a_replaced_model_is_asked_as_it_is_now(models, loaded, connect, tmp_path_factory, binary):
    home = tmp_path_factory.mktemp("replaced")

    def put(name):
        shutil.rmtree(home / "models" / "m", ignore_errors=True)
        shutil.copytree(models / name, home / "new")
        (home / "models").mkdir(exist_ok=True)
        (home / "new").rename(home / "models" / "m")

    put("house")
    with serving(home / "log", "--models", home / "models", "--management") as server:
        server.wait_ready()
        client, manager = connect(server.url, model="m", binary=binary), connect(server.url)
        for name in ("house", "weather", "pair"):
            put(name)
            manager.load("m")
            rows = rows_of(name, 3)
            assert_same(client.infer(rows).outputs, expected(loaded[name], rows))


def test_other_names_are_looked_up_before_they_are_refused(asked):
    server, client = asked(metadata(y="FP32"), RESULT, RESULT)
    assert client.infer({"y": [[1]]})["mean"] == [2]
    assert client.infer({"y": [[1]]})["mean"] == [2]
    assert paths(server) == ["m", "infer", "infer"]


def test_another_datatype_is_looked_up_when_the_service_refuses(asked):
    server, client = asked(WRONG, metadata(x="INT64"), RESULT)
    assert client.infer([[3]])["mean"] == [2]
    assert paths(server) == ["infer", "m", "infer"]
    head, _, body = server.requests[-1].partition(b"\r\n\r\n")
    assert body.endswith(np.int64(3).tobytes())
    assert b'"datatype":"INT64"' in body
    assert head.startswith(b"POST")


def test_what_the_service_permits_by_now_is_looked_up(asked):
    permits = {"weight_inputs": [{"name": "w", "datatype": "FP32"}], "perturbation_parameters": ["seed"]}
    document = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32"}], "parameters": permits}
    now = answer(200, json.dumps(document).encode())
    for wish in ({"weights": {"w": [1.0]}}, {"perturbation": {"seed": 3}}):
        server, client = asked(now, RESULT)
        assert client.infer([[1]], **wish)["mean"] == [2]
        assert paths(server) == ["m", "infer"]


@pytest.mark.parametrize(("refusal", "kind"), [(WRONG, BadRequest), (GONE, NotFound)])
def test_a_refusal_of_a_model_that_is_the_same_stands(asked, refusal, kind):
    server, client = asked(refusal, METADATA, RESULT)
    with pytest.raises(kind, match=r"wrong|unknown"):
        client.infer([[1]])
    client.infer([[1]])
    assert paths(server) == ["infer", "m", "infer"]


def test_inputs_that_the_same_model_does_not_take_are_not_sent(asked):
    server, client = asked(METADATA, RESULT)
    with pytest.raises(InputError, match="model 'm' takes 'x', however: 'y'"):
        client.infer({"y": [[1]]})
    assert paths(server) == ["m"]


@pytest.mark.parametrize("lookup", [GONE, answer(500), b"nonsense\r\n\r\n", answer(200, b"{}")])
def test_where_it_cannot_be_looked_up_the_first_error_stands(asked, lookup):
    server, client = asked(
        WRONG, *[lookup] * (QUICK.attempts if lookup.startswith(b"nonsense") else 1), METADATA, RESULT
    )
    with pytest.raises(BadRequest, match="wrong"):
        client.infer([[1]])
    # Nothing is remembered any more.
    assert client.infer([[1]])["mean"] == [2]
    assert paths(server)[-2:] == ["m", "infer"]


def test_it_is_looked_up_once(asked):
    server, client = asked(WRONG, metadata(x="FP64"), GONE)
    with pytest.raises(NotFound):
        client.infer([[1]])
    assert paths(server) == ["infer", "m", "infer"]


def test_what_was_looked_up_for_this_call_is_believed(scripted, connect):
    server = scripted(METADATA, WRONG)
    client = connect(server.url, model="m", retry=QUICK)
    with pytest.raises(InputError):
        client.infer({"y": [[1]]})
    assert len(server.requests) == 1
    server = scripted(METADATA, WRONG)
    with pytest.raises(BadRequest):
        connect(server.url, model="m", retry=QUICK).infer([[1]])
    assert len(server.requests) == 2
