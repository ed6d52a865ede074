"""What a program that asks the service has to load."""

from __future__ import annotations

import subprocess
import sys

import app.client as package
from app.client import errors
from tests.app.support import ROOT, clean_environment


def test_the_client_needs_neither_pytorch_nor_the_server():
    program = (
        "import sys, app.client\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "assert not found & {'torch', 'fastapi', 'starlette', 'uvicorn', 'pydantic', 'ensemble', 'prometheus_client'}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def test_all_lists_both_clients_and_every_error():
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ClientError)
    }
    assert set(package.__all__) == tree | {"Client", "AsyncClient", "Result", "Retry"}
    assert all(hasattr(package, name) for name in package.__all__)


def test_both_clients_have_the_same_calls():
    def calls(kind: type) -> dict[str, object]:
        import inspect

        public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
        return {name: str(inspect.signature(value)) for name, value in public.items()}

    assert calls(package.Client) == calls(package.AsyncClient)
