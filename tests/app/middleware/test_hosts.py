"""Which host names get past, without a server."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest

from app.keys import make_key
from app.middleware import Hosts
from app.server import create_app
from app.settings import PREFIX, Settings
from tests.app.repository.lives import touch
from tests.app.support import ROOT

VARIABLE = f"{PREFIX}ALLOWED_HOSTS"


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


KEY = make_key()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"models": ()}),
        ({"host": "::1", "allowed_hosts": "a.example, *.b ,"}, {"models": ("a.example", "*.b")}),
        ({"api_key": KEY}, {"models": None}),
        ({"api_key": KEY, "allowed_hosts": "a.example"}, {"models": ("a.example",)}),
        ({"host": "0.0.0.0", "allow_public": True}, {"models": None}),
        ({"host": "0.0.0.0", "allow_public": True, "allowed_hosts": "a.example"}, {"models": ("a.example",)}),
        # A port that others reach opens no other one.
        (
            {"metrics_port": 1, "metrics_host": "0.0.0.0", "management_port": 2, "allow_public": True},
            {"models": (), "metrics": None, "management": ()},
        ),
        (
            {"host": "0.0.0.0", "allow_public": True, "management_port": 2, "management_host": "::1"},
            {"models": None, "management": ()},
        ),
        # What others ask the models under is no name of a port that nothing but the address guards.
        (
            {"allowed_hosts": "a.example", "management_port": 2, "metrics_port": 1},
            {"models": ("a.example",), "metrics": ("a.example",), "management": ()},
        ),
        (
            {"allowed_hosts": "a.example", "management_port": 2, "api_key": KEY},
            {"models": ("a.example",), "management": ("a.example",)},
        ),
        ({"metrics": False, "metrics_port": 1}, {"models": ()}),
    ],
)
def test_names_are_checked_on_each_port_where_a_browser_could_be_made_to_ask(settings, names):
    made = Settings(**settings)
    assert {port: made.host_names(port) for port in made.addresses} == names


def test_a_port_of_this_machine_alone_is_asked_under_its_names_though_another_port_is_public(tmp_path):
    touch(tmp_path, "m/1")
    public = {"host": "0.0.0.0", "allow_public": True, "metrics_port": 0, "metrics_host": "127.0.0.1"}
    app = create_app(Settings(models=tmp_path, management=True, management_port=0, management_host="::1", **public))
    ports = {port.name: port.app for port in app.state.ports}

    async def status(app, host: str, method: str, path: str) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.request(method, path)).status_code

    async def main() -> None:
        unload = ("POST", "/v2/repository/models/m/unload")
        assert await status(ports["management"], "evil.example:9000", *unload) == 421
        assert await status(ports["management"], "localhost:9000", *unload) == 200
        assert await status(ports["metrics"], "evil.example", "GET", "/metrics") == 421
        assert await status(ports["metrics"], "127.0.0.1", "GET", "/metrics") == 200
        assert await status(app, "models.example.com", "GET", "/v1/models") == 200

    asyncio.run(main())


def test_in_compose_it_is_asked_under_the_names_that_lead_to_it_there_and_no_other():
    """In its container it listens beyond loopback, so that no names are checked unless they are given."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    unless_set = re.fullmatch(r"\$\{ENSEMBLED_ALLOWED_HOSTS:-(.+)\}", services["ensembled"]["environment"][VARIABLE])
    scraped = yaml.safe_load((ROOT / "docs" / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    names = Settings(host="0.0.0.0", allow_public=True, allowed_hosts=unless_set[1]).host_names("models")
    prometheus = scraped[0]["static_configs"][0]["targets"]
    published = [port.rsplit(":", 1)[0] for port in services["ensembled"]["ports"]]
    for host in ("ensembled", "cuda", "localhost:8000", *prometheus, *published):
        assert ask(names, host), host
    for host in ("evil.example", "ensembled.evil.example", "prometheus", "0.0.0.0:8000"):
        assert not ask(names, host), host
