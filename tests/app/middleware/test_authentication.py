"""Who gets past the key, without a server."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.keys import Keys, make_key
from app.middleware import Authentication
from app.middleware.authentication import OPEN

KEY = make_key()


def ask(keys: Keys, path: str = "/predict", method: str = "POST", headers=(), kind: str = "http"):
    """Status, headers and document of the answer, and whether the application was reached."""
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope)
        seen = str(scope.get("state", {}).get("may_ask")).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-may-ask", seen)]})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        raise AssertionError("nothing is read of a request that is refused")

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Authentication(app, keys)(scope, receive, send))
    assert bool(reached) == (sent[0]["status"] == 200)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"authorization", b"bearer  " + KEY.encode() + b" "),
        (b"x-api-key", KEY.encode()),
        (b"x-api-key", b" " + KEY.encode()),
    ],
)
def test_a_key_opens_in_either_header(header):
    assert ask(Keys(KEY), headers=[header])[0] == 200


def test_one_right_key_among_several_headers_is_enough():
    headers = [(b"authorization", b"Basic x"), (b"authorization", b"Bearer x"), (b"x-api-key", KEY.encode())]
    assert ask(Keys(KEY), headers=headers)[0] == 200


def test_only_so_many_keys_are_tried():
    headers = [(b"x-api-key", b"wrong")] * 4 + [(b"x-api-key", KEY.encode())]
    assert ask(Keys(KEY), headers=headers)[0] == 401


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([], "a key is needed: send it as Authorization: Bearer KEY, or as X-API-Key: KEY"),
        ([(b"authorization", b"")], "a key is needed"),
        ([(b"authorization", b"Bearer")], "a key is needed"),
        ([(b"authorization", b"Bearer ")], "a key is needed"),
        ([(b"authorization", b"Basic " + KEY.encode())], "a key is needed"),
        ([(b"authorization", KEY.encode())], "a key is needed"),
        ([(b"x-api-key", b"")], "a key is needed"),
        ([(b"authorization", b"Bearer wrong")], "this key opens nothing here"),
        ([(b"x-api-key", KEY.encode()[:-1])], "this key opens nothing here"),
        ([(b"x-api-key", b"\xff\xfe")], "this key opens nothing here"),
        ([(b"x-api-key", KEY.encode() + b"," + KEY.encode())], "this key opens nothing here"),
        ([(b"cookie", b"key=" + KEY.encode())], "a key is needed"),
    ],
)
def test_without_the_key_the_answer_is_401_and_how_to_send_one(headers, says):
    status, answered, document = ask(Keys(KEY), headers=headers)
    assert (status, answered[b"www-authenticate"]) == (401, b'Bearer realm="ensembled"')
    assert document["error"].startswith(says)
    assert KEY not in json.dumps(document)


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_is_open_and_knows_who_may_ask(path):
    assert ask(Keys(KEY), path, "GET") == (200, {b"x-may-ask": b"False"}, {})
    assert ask(Keys(KEY), path, "GET", [(b"x-api-key", b"wrong")])[1] == {b"x-may-ask": b"False"}
    assert ask(Keys(KEY), path, "GET", [(b"x-api-key", KEY.encode())])[1] == {b"x-may-ask": b"True"}
    assert ask(Keys(), path, "GET")[1] == {b"x-may-ask": b"True"}


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/metrics", "/openapi.json", "/v2", "/v2/health", "/v2/health/live/", "/v2/health/live/x",
     "//v2/health/live", "/v2/health/../models", "/V2/health/live", "/v2/health/ready\x00", "", "/nothing"],
)  # fmt: skip
def test_everything_else_is_closed_whether_it_is_there_or_not(path):
    assert ask(Keys(KEY), path, "GET")[0] == 401


def test_without_keys_everybody_may_ask():
    assert ask(Keys())[0] == 200


def test_what_is_not_http_passes_by():
    assert ask(Keys(KEY), kind="other")[0] == 200


@pytest.mark.parametrize(
    ("method", "site", "status"),
    [
        ("POST", b"cross-site", 403),
        ("DELETE", b"cross-site", 403),
        ("GET", b"cross-site", 200),
        ("POST", b"same-origin", 200),
        ("POST", b"none", 200),
    ],
)
def test_pages_of_other_sites_do_nothing_where_there_is_no_key(method, site, status):
    assert ask(Keys(), method=method, headers=[(b"sec-fetch-site", site)])[0] == status


def test_pages_that_have_the_key_may_be_of_any_site():
    headers = [(b"sec-fetch-site", b"cross-site"), (b"x-api-key", KEY.encode())]
    assert ask(Keys(KEY), headers=headers)[0] == 200
