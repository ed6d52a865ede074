"""The security section of docs/operations.md is true: its settings exist, and its commands do what it says."""

from __future__ import annotations

import re
import shlex
import shutil

import httpx

from app.metrics import REASONS
from app.middleware.authentication import OPEN
from app.settings import Settings
from tests.app.support import ROOT, command, serving, until

SECTION = (ROOT / "docs" / "operations.md").read_text().split("\n## Security\n")[1].split("\n## ")[0]


def test_every_setting_that_it_names_exists():
    flags = set(re.findall(r"`?--([a-z-]+)", SECTION)) - {"stdin"}
    assert {flag.removeprefix("no-").replace("-", "_") for flag in flags} <= Settings.model_fields.keys()
    assert "ENSEMBLED_API_KEY" in SECTION
    assert set(re.findall(r"`(/v2/health/\w+)`", SECTION)) == OPEN
    counted = SECTION.split("`ensembled_rejected_total` counts")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", counted)) <= REASONS.keys()


def test_its_commands_make_keys_that_open_the_service(saved, tmp_path):
    lines = re.findall(r"^\$ ensembled key (.*)$", SECTION, re.MULTILINE)
    alice, bob = (shlex.split(line.split("<")[0]) for line in lines)
    key, line = command("key", *alice).stdout.splitlines()
    own = "bobs-own-key-0123456789"
    (tmp_path / "keys").write_text(f"{line}\n" + command("key", *bob, stdin=own + "\n").stdout)
    # The keys are asked for from the first moment on, whatever is being loaded.
    shutil.copytree(saved / "mlp", tmp_path / "models" / "mlp" / "1")
    with serving(tmp_path / "log", "--models", tmp_path / "models", "--api-keys-file", tmp_path / "keys") as server:
        for opens in (key, own):
            for headers in ({"X-API-Key": opens}, {"Authorization": f"Bearer {opens}"}):
                assert server.get("/v2", headers=headers).status_code == 200
        assert server.get("/v2").status_code == 401
        # Alice's is taken away, without a restart.
        (tmp_path / "keys").write_text(command("key", *bob, stdin=own + "\n").stdout)
        until(lambda: server.get("/v2", headers={"X-API-Key": key}).status_code == 401, "it is taken away")
        assert server.get("/v2", headers={"X-API-Key": own}).status_code == 200
        assert httpx.get(server.url + "/v2/health/live").status_code == 200
