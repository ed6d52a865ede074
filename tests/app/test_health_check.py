"""The image's health check, and the one that the operators' page gives for readiness, asked of real services."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys

import pytest

from tests.app.support import PATIENCE, ROOT, clean_environment, serving

yaml = pytest.importorskip("yaml")


def of_the_image() -> str:
    """Its program."""
    command = re.search(r"^HEALTHCHECK (?:--\S+ )*CMD (\[.*?\])$", (ROOT / "Dockerfile").read_text(), re.M | re.S)[1]
    python, flag, program = json.loads(command.replace("\\\n", ""))
    assert (python, flag) == ("python", "-c")
    return program


def of_readiness() -> str:
    page = (ROOT / "docs" / "operations.md").read_text()
    command, python, flag, program = yaml.safe_load(
        re.search(r"^    healthcheck:\n(?:     .*\n)+", page, re.MULTILINE)[0]
    )["healthcheck"]["test"]
    assert (command, python, flag) == ("CMD", "python", "-c")
    return program


def status(program: str, **environment: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(**environment), timeout=PATIENCE, check=False
    )
    return run.returncode


def test_a_service_that_loads_is_healthy_though_it_is_not_ready(models, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    (gate / "load-house").touch()
    with serving(tmp_path / "log", "--models", models, gate=gate) as server:
        at = str(server.port)
        assert status(of_the_image(), ENSEMBLED_PORT=at) == 0
        assert status(of_readiness().replace("8000", at)) == 1
        (gate / "load-house").unlink()
        server.wait_ready()
        assert status(of_the_image(), ENSEMBLED_PORT=at, HTTP_PROXY="http://127.0.0.1:9") == 0
        assert status(of_readiness().replace("8000", at)) == 0
        server.stop()
    assert status(of_the_image(), ENSEMBLED_PORT=at) != 0


@pytest.mark.parametrize(("given", "port"), [(None, 8000), ("", 8000), ("9000", 9000)])
def test_it_asks_the_port_that_the_service_listens_on(given, port, monkeypatch):
    """Compose passes a variable that is not set as empty text, which is no setting."""
    asked = []

    class Connection:
        def __init__(self, host, number, timeout):
            asked.append((host, number))

        def request(self, method, path):
            asked.append((method, path))

        def getresponse(self):
            self.status = 503
            return self

    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    monkeypatch.delenv("ENSEMBLED_PORT", raising=False)
    if given is not None:
        monkeypatch.setenv("ENSEMBLED_PORT", given)
    with pytest.raises(SystemExit) as end:
        exec(of_the_image(), {})
    assert end.value.code == 1
    assert asked == [("127.0.0.1", port), ("GET", "/v2/health/live")]
