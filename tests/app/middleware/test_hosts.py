"""Which host names get past, without a server."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.keys import make_key
from app.middleware import Hosts
from app.settings import Settings


def ask(allowed, *hosts: str, kind: str = "http"):
    """Whether the application was reached; the error that was sent, if any."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": "/", "headers": [(b"host", host.encode()) for host in hosts]}
    asyncio.run(Hosts(app, allowed)(scope, None, send))
    if sent:
        assert (sent[0]["status"], bool(reached)) == (421, False)
        assert "--allowed-hosts" in json.loads(sent[1]["body"])["error"]
    return bool(reached)


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("localhost", True),
        ("127.0.0.1:80", True),
        ("[::1]", True),
        ("a.localhost", True),
        ("models.example.com", True),
        ("Models.Example.COM:8000", True),
        ("one.internal", True),
        ("one.two.internal:1", True),
        ("internal", False),
        ("example.com", False),
        ("evilmodels.example.com", False),
        ("models.example.com.evil.example", False),
        ("[::2]", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_names_of_this_machine_and_those_that_are_named_pass(host, passes):
    assert ask(("models.example.com", "*.internal"), host) is passes


def test_every_host_header_counts():
    assert not ask((), "localhost", "evil.example")
    assert ask(())


def test_what_is_no_http_and_services_that_allow_every_name_are_let_be():
    assert ask((), "evil.example", kind="lifespan")
    assert ask(None, "evil.example")


def test_names_are_checked_where_a_browser_could_be_made_to_ask():
    assert Settings().host_names == ()
    assert Settings(host="::1", allowed_hosts="a.example, *.b ,").host_names == ("a.example", "*.b")
    assert Settings(api_key=make_key()).host_names is None
    assert Settings(host="0.0.0.0", allow_public=True).host_names is None
    assert Settings(metrics_port=1, metrics_host="0.0.0.0", allow_public=True).host_names is None
    assert Settings(host="0.0.0.0", allow_public=True, allowed_hosts="a.example").host_names == ("a.example",)
