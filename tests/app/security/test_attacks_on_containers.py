"""What the image and the compose file leave to whoever breaks in."""

from __future__ import annotations

import re

import pytest

from tests.app.support import ROOT

yaml = pytest.importorskip("yaml")

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def ours() -> dict[str, dict]:
    """The services that run this image, with what they inherit."""
    found = {}
    for name, service in SERVICES.items():
        whole = {**SERVICES.get(service.get("extends", {}).get("service"), {}), **service}
        if str(whole.get("image", "")).startswith("ensembled"):
            found[name] = whole
    return found


def test_the_image_runs_as_a_user_without_rights():
    """15: the last stage ends as a numbered user who is not root, owns nothing, and has no shell."""
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    users = re.findall(r"^USER (.+)$", last, re.MULTILINE)
    assert users == ["10001:10001"]
    assert last.index("USER 10001") < last.index("ENTRYPOINT")
    assert "/usr/sbin/nologin" in last
    assert not re.search(r"chmod|chown|sudo|setcap|ADD http|curl|--privileged", last)


def test_every_service_is_read_only_without_capabilities_and_reads_models_only():
    """15: no capability, no new privilege, a read-only file system, models that cannot be changed, loopback outside."""
    assert {"ensembled", "cuda"} <= ours().keys()
    for name, service in ours().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        assert not service.get("cap_add"), name
        models = [volume for volume in service["volumes"] if ":/models" in volume]
        assert models, name
        assert all(volume.endswith(":ro") for volume in models), name
        assert all(re.search(r"noexec.*nosuid.*nodev", mount) for mount in service["tmpfs"]), name
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name


def test_nothing_of_the_repository_but_the_packages_is_in_the_image():
    """15: neither keys, nor the history, nor what lies about in the working tree."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert set(copied) <= {"pyproject.toml", "README.md", "ensemble", "app", "docs/examples"}
    assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|SECRET|PASSWORD)", DOCKERFILE, re.MULTILINE | re.IGNORECASE)
