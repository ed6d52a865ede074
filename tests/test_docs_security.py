"""The security section of docs/operations.md is true: its settings exist, and its commands do what it says."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil

import httpx

from app.metrics import REASONS
from app.middleware.authentication import OPEN
from app.server import create_app
from app.settings import Settings
from tests.app.support import ROOT, command

SECTION = (ROOT / "docs" / "operations.md").read_text().split("\n## Security\n")[1].split("\n## ")[0]


def test_every_setting_that_it_names_exists():
    flags = set(re.findall(r"`?--([a-z-]+)", SECTION)) - {"stdin"}
    assert {flag.removeprefix("no-").replace("-", "_") for flag in flags} <= Settings.model_fields.keys()
    assert "ENSEMBLED_API_KEY" in SECTION
    assert set(re.findall(r"`(/v2/health/\w+)`", SECTION)) == OPEN
    counted = SECTION.split("`ensembled_rejected_total` counts")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", counted)) <= REASONS.keys()


def test_its_commands_make_keys_that_open_the_service(saved, tmp_path, monkeypatch):
    lines = re.findall(r"^\$ ensembled key (.*)$", SECTION, re.MULTILINE)
    alice, bob = (shlex.split(line.split("<")[0]) for line in lines)
    key, line = command("key", *alice).stdout.splitlines()
    own = "bobs-own-key-0123456789"
    bobs = command("key", *bob, stdin=own + "\n").stdout
    file = tmp_path / "keys"
    file.write_text(f"{line}\n{bobs}")
    shutil.copytree(saved / "mlp", tmp_path / "models" / "mlp" / "1")
    monkeypatch.setattr("app.keys._LOOK_EVERY", 0.0)
    app = create_app(Settings(models=tmp_path / "models", api_keys_file=file))

    async def statuses(path: str, *headers: dict[str, str]) -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get(path, headers=each)).status_code for each in headers]

    async def main():
        ways = [{"X-API-Key": key}, {"Authorization": f"Bearer {key}"}, {"X-API-Key": own}, {}]
        assert await statuses("/v2", *ways) == [200, 200, 200, 401]
        # Alice's is taken away, without a restart.
        file.write_text(bobs)
        assert await statuses("/v2", *ways) == [401, 401, 200, 401]
        assert await statuses("/v2/health/live", {}) == [200]

    asyncio.run(main())
