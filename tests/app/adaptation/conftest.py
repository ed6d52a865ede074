"""One real service that adapts, with small limits."""

from __future__ import annotations

import pytest

from tests.app.support import serving

LIMITS = ("--adaptation-steps", 8, "--adaptation-examples", 12, "--adapted-models", 6, "--adapted-seconds", 100)


@pytest.fixture(scope="package")
def gate(tmp_path_factory):
    """While there is a file `hold` in it, calls wait."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="package")
def server(models, tmp_path_factory, gate):
    log = tmp_path_factory.mktemp("adapting") / "log"
    with serving(log, "--models", models, "--default-model", "classes", "--adaptation", *LIMITS, gate=gate) as running:
        yield running.wait_ready()
        assert "Traceback" not in running.text()
