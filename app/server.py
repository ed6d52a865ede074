"""The ASGI application, and the process that serves it."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from app import metrics
from app.errors import MethodNotAllowed, NotFound, ServiceError
from app.middleware import BodyLimit, Observation
from app.middleware.answer import error_response
from app.openapi import document
from app.routes import v1, v2
from app.service import Service
from app.settings import Settings
from app.version import VERSION

log = logging.getLogger("app.server")


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; models are loaded when it starts.

    Raises:
        RepositoryError: there is no model to serve.
        RuntimeError: the device is not there.
    """
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    # The pages' scripts come from the package, so they work without the internet.
    app = FastAPIOffline(
        title="ensembled", version=VERSION, redoc_url=None, lifespan=lifespan, static_url="/docs/static"
    )
    app.state.service = service
    app.include_router(v1.router)
    app.include_router(v2.router)

    @app.get("/metrics", summary="Prometheus metrics", tags=["Operation"])
    async def metrics_page() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(BodyLimit, limit=settings.max_body)
    app.add_middleware(Observation, metrics=service.metrics)
    app.openapi = lambda: document(app, service.repository)  # type: ignore[method-assign]
    return app


async def _answer_service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Paths and methods that no route has."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return error_response(NotFound("there is no such path; GET /docs lists what there is"))
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            text = f"{request.method} is not allowed here" + (f"; use {allowed}" if allowed else "")
            return error_response(MethodNotAllowed(text, allow=[allowed] if allowed else []))
        case _:
            return Response(status_code=error.status_code, headers=error.headers)


class _Server(uvicorn.Server):
    """Says where it listens, which port 0 leaves open until then."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else []:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                log.info("listening on http://%s:%d (documentation at /docs)", shown, port)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Raises:
        RepositoryError, RuntimeError: as :func:`create_app`.
        OSError: the address is taken, or is none of this machine's.
    """
    app = create_app(settings)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
    )
    # uvicorn raises the signal again once it has stopped; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
