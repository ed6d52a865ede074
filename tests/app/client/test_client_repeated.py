"""What must not be done twice, and what is done already when it is asked for again."""

from __future__ import annotations

import httpx
import pytest

from app.client import Client, ClientError, ConnectionFailed, DeadlineExceeded, NotFound, Unavailable
from tests.app.client.conftest import BUSY, HALF, LOADING, QUICK, RESET, answer

KEPT = answer(
    200, b'{"model": "m", "version": "1", "outputs": {}, "adapted": {"handle": "h-1"}, "adaptation": {"steps": 1}}'
)
DONE = answer(204, b"")
UNKNOWN = answer(404, b'{"error": "no adapted model"}')
ENDED = answer(410, b'{"error": "it was deleted"}')


def adapt(client, **rest):
    return client.adapt(([[1.0]], [[2.0]]), **({"model": "m", "steps": 1, "keep_seconds": 9} | rest))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RESET, ConnectionFailed),
        (HALF, ConnectionFailed),
        (answer(502), Unavailable),
        (answer(504), DeadlineExceeded),
    ],
)
def test_a_model_that_may_be_kept_already_is_not_adapted_again(scripted, connect, fault, kind):
    server = scripted(fault, KEPT)
    with pytest.raises(kind):
        adapt(connect(server.url, retry=QUICK))
    assert len(server.requests) == 1
    # What is not kept may be adapted twice.
    server = scripted(fault, KEPT)
    assert adapt(connect(server.url, retry=QUICK), queries=[[1.0]], keep_seconds=None).model == "m"
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [BUSY, LOADING])
def test_a_model_that_is_not_kept_for_sure_is_adapted_again(scripted, connect, fault):
    server = scripted(fault, fault, KEPT)
    assert adapt(connect(server.url, retry=QUICK)).parameters["adapted"]["handle"] == "h-1"
    assert len(server.requests) == 3


def test_the_only_model_is_looked_for_as_often_as_ever(scripted, connect):
    server = scripted(RESET, answer(200, b'[{"name": "m"}]'), KEPT)
    assert adapt(connect(server.url, retry=QUICK), model=None).model == "m"
    assert len(server.requests) == 3


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("none within 5 seconds")])
def test_where_there_was_no_connection_nothing_was_done(connect, error):
    asked = []

    def handle(request):
        asked.append(request)
        if len(asked) < 3:
            raise error
        return httpx.Response(200, json={"model": "m", "version": "1", "outputs": {}, "adapted": {"handle": "h-1"}})

    client = connect("http://127.0.0.1:1", transport=httpx.MockTransport(handle), retry=QUICK)
    assert adapt(client).parameters["adapted"]["handle"] == "h-1"
    assert len(asked) == 3


@pytest.mark.parametrize("fault", [RESET, HALF, answer(502), answer(504)])
@pytest.mark.parametrize("then", [DONE, UNKNOWN, ENDED])
def test_what_was_forgotten_at_an_attempt_without_an_answer_is_forgotten(scripted, connect, fault, then):
    server = scripted(fault, BUSY, then)
    assert connect(server.url, retry=QUICK).forget_adapted("h-1") is None
    assert len(server.requests) == 3
    assert server.requests[2].startswith(b"DELETE /v1/adapted/h-1 ")


@pytest.mark.parametrize("script", [(), (BUSY,), (LOADING, BUSY)])
@pytest.mark.parametrize("then", [UNKNOWN, ENDED])
def test_what_nobody_has_forgotten_is_not_found(scripted, connect, script, then):
    server = scripted(*script, then)
    client = connect(server.url, retry=QUICK)
    with pytest.raises(NotFound):
        client.forget_adapted("h-1")
    assert len(server.requests) == len(script) + 1


def test_doubt_is_of_one_call(scripted):
    with Client(scripted(RESET, UNKNOWN).url, retry=QUICK) as client:
        client.forget_adapted("h-1")
        with pytest.raises(NotFound):
            client.forget_adapted("h-1")


@pytest.mark.parametrize(
    ("fault", "unprocessed"),
    [(BUSY, True), (LOADING, True), (answer(502), False), (answer(504), False), (RESET, False)],
)
def test_an_error_says_whether_nothing_was_done(scripted, connect, fault, unprocessed):
    client = connect(scripted(fault).url, retry=QUICK, timeout=5)
    with pytest.raises(ClientError) as failed:
        client.models()
    assert failed.value.unprocessed is unprocessed
    with pytest.raises(ConnectionFailed) as failed:
        connect("http://127.0.0.1:1", retry=QUICK).models()
    assert failed.value.unprocessed
