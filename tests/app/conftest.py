"""What the service's tests share: models that are built once, one real service, and one whose calls can be held."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

import ensemble
from app.server import create_app
from app.settings import Settings
from tests.app.support import Server, build_models, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with classes/1, classes/2, house/1, weather/1 and pair/1. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("models")
    build_models(root)
    return root


@pytest.fixture(scope="session")
def loaded(models: Path) -> dict[str, ensemble.Ensemble]:
    """The same ensembles in this process, by name; classes is the version that is served."""
    versions = {"classes": "2", "house": "1", "weather": "1", "pair": "1"}
    return {name: ensemble.load(models / name / version) for name, version in versions.items()}


@pytest.fixture(scope="session")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service on all models; its default model is classes, its log is JSON, its cap on bodies 1 MiB."""
    log = tmp_path_factory.mktemp("service") / "log"
    settings = ("--default-model", "classes", "--log-format", "json", "--max-body", 2**20)
    with serving(log, "--models", models, *settings) as server:
        yield server.wait_ready()


@pytest.fixture
def client(service: Server) -> Iterator[httpx.Client]:
    """A client of the real service."""
    with httpx.Client(base_url=service.url, timeout=60) as connected:
        yield connected


Running = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def running() -> Running:
    """The application in this process, without HTTP: `async with running(models=...) as client`."""

    @contextlib.asynccontextmanager
    async def run(*, wait: bool = True, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
        # A call that is compiled beside other tests would be in the way of what they capture.
        app = create_app(Settings(**{"compile": False, **settings}))
        async with app.router.lifespan_context(app):
            if wait:
                await app.state.service._loading
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                client.service = app.state.service
                yield client

    return run
