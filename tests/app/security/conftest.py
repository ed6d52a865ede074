"""One real service, set up as on the open internet: keys, ports of their own, little patience, traps for models."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.keys import hash_line, make_key
from tests.app.support import PATIENCE, Server, rows_of, serving, until, v2_body
from tests.tampering import replace

HEAD, IDLE, BODY, ANSWER = 1.0, 1.5, 1.0, 1.0
CONNECTIONS = 24
MAX_BODY, MAX_INFLATED, MAX_BODIES = 2**16, 2**18, 2**20
# Few enough that what exceeds them is a small body.
ROWS, STEPS, EXAMPLES, KEPT, OWN_MEMBERS, OWN_BYTES, BROUGHT_BYTES = 500, 8, 12, 2, 12, 2048, 1024


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, owned: Path) -> None:
        self.owned = owned

    def __reduce__(self):
        return os.system, (f"touch {self.owned}",)


@dataclass
class Fortress:
    """The service and what its owner knows."""

    server: Server
    key: str
    management: str
    metrics: str
    root: Path
    owned: Path
    gate: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}

    def client(self, base: str | None = None, **headers: str) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=base or self.server.url, headers=self.headers | headers, timeout=PATIENCE)

    def head(self, line: str = "POST /v2/models/house/infer HTTP/1.1", **headers: object) -> bytes:
        """The head of a request with the key, but for its last line."""
        fields = {"host": "x", "x-api-key": self.key} | {n.replace("_", "-"): v for n, v in headers.items()}
        return "".join([line, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items())]).encode()

    def is_well(self) -> bool:
        """It answers as if nothing had been."""
        with self.client() as client:
            reply = client.post("/v2/models/house/infer", json=v2_body(rows_of("house", 2)))
        return reply.status_code == 200 and len(reply.json()["outputs"][0]["data"]) > 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Calls do not end before the block does, so that requests wait in memory."""
        hold = self.gate / "hold"
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()


@pytest.fixture(scope="session")
def fortress(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    home = tmp_path_factory.mktemp("fortress")
    root, owned, gate = home / "models", home / "owned", home / "gate"
    gate.mkdir()
    shutil.copytree(models / "house", root / "house")
    shutil.copytree(models / "house", root / "pickled")
    replace(root / "pickled" / "1", "weights.safetensors", pickle.dumps(Trap(owned)))
    # A model as good as any, but elsewhere; and names that are none.
    shutil.copytree(models / "house", home / "elsewhere" / "1")
    (root / "linked").symlink_to(home / "elsewhere")
    for name in ("a b", ".hidden", "x" * 65, "-x"):
        shutil.copytree(models / "house", root / name)
    shutil.copytree(models / "house" / "1", root / "house" / "01")
    key = make_key()
    (home / "keys").write_text(f"{hash_line(make_key(), 'somebody')}\n{hash_line(key, 'owner')}\n")
    arguments = (
        "--models", root, "--api-keys-file", home / "keys", "--management", "--management-port", 0, "--metrics-port", 0,
        "--head-timeout", HEAD, "--idle-timeout", IDLE, "--body-timeout", BODY, "--answer-timeout", ANSWER,
        "--max-connections", CONNECTIONS, "--max-body", MAX_BODY, "--max-inflated-body", MAX_INFLATED,
        "--max-bodies", MAX_BODIES, "--log-format", "json", "--max-queue", ROWS, "--allow-weights",
        "--max-perturbed-members", OWN_MEMBERS, "--max-perturbed-bytes", OWN_BYTES, "--max-weights", BROUGHT_BYTES,
        "--adaptation", "--adaptation-steps", STEPS, "--adaptation-examples", EXAMPLES, "--adapted-models", KEPT,
    )  # fmt: skip
    with serving(home / "log", *arguments, gate=gate) as server:

        def port(name: str) -> str:
            return until(lambda: re.search(rf"(http://127\.0\.0\.1:\d+) \({name}\)", server.text()), name)[1]

        until(lambda: "model ready" in server.text() and "cannot be served" in server.text(), "models are loaded")
        yield Fortress(server, key, port("management"), port("metrics"), root, owned, gate)
        # It ends as it should, on every port, whoever is still connected.
        for base in (server.url, *(port(name) for name in ("management", "metrics"))):
            httpx.get(base + "/v2", headers={"X-API-Key": key})
        idle = [server.connection() for _ in range(3)]
        assert server.stop() == 0
        for connected in idle:
            connected.close()
        assert not owned.exists()
        assert key not in server.text()
        logged = [json.loads(line) for line in server.text().splitlines()]
        assert not [line for line in logged if "exception" in line], "no attack is an exception of the service"
