"""`ensembled serve` before it serves. What it serves is tested at the real process."""

from __future__ import annotations

import pytest

from app.settings import PREFIX
from tests.app.support import command
from tests.app.test_cli import run


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0"), "host '0.0.0.0' can be reached from other machines and no key guards the service"),
        (("--host", "example.org", "--no-allow-public"), "say --allow-public (ENSEMBLED_ALLOW_PUBLIC=1)"),
        (("--port", "http"), "--port: input should be a valid integer"),
        (("--device", "gpu"), "--device: must be cpu, cuda, cuda:N or auto, however: 'gpu'"),
        (("--shutdown-timeout", "inf"), "--shutdown-timeout: input should be less than or equal to 86400"),
        (("--config", "no/such.toml"), "the settings file no/such.toml cannot be read: No such file or directory"),
    ],
)
def test_a_setting_that_cannot_be_used_is_status_2_and_one_line(capsys, arguments, says):
    status, out, err = run(capsys, "serve", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ensembled serve: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_setting_from_the_environment_that_cannot_be_used(capsys, monkeypatch):
    monkeypatch.setenv("ENSEMBLED_MAX_BATCH", "many")
    status, _, err = run(capsys, "serve")
    assert status == 2
    assert "ENSEMBLED_MAX_BATCH: input should be a valid integer" in err


def test_cuda_without_cuda_is_one_line_and_status_2(models):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    done = command("serve", "--models", models, ENSEMBLED_DEVICE="cuda")
    assert done.returncode == 2
    assert done.stderr.startswith("ensembled serve: device 'cuda' is not there: PyTorch ")
    assert len(done.stderr.splitlines()) == 1


def test_the_key_is_taken_out_of_the_environment_before_anything_else_is_started(monkeypatch, models):
    """Compilers are started with this process's environment."""
    import os

    from app import logs, server
    from app.cli import main

    seen = []
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setattr(server, "serve", lambda settings: seen.append((settings.api_key, dict(os.environ))))
    key = "0123456789abcdef-mine"
    monkeypatch.setenv("ENSEMBLED_API_KEY", key)
    assert main(["serve", "--models", str(models)]) == 0
    ((kept, environment),) = seen
    assert kept.get_secret_value() == key
    assert key not in environment.values()
