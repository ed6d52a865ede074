"""The ASGI application, and the process that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse

from app import metrics, tracing
from app.connection import Connection
from app.errors import MethodNotAllowed, NotFound, ServiceError
from app.middleware import BodyLimit, Compression, Inflation, Observation
from app.middleware.answer import error_response
from app.openapi import document
from app.routes import v1, v2, v2_configuration, v2_repository, v2_statistics
from app.routes.common import json_response
from app.service import Service
from app.settings import Settings
from app.version import VERSION

log = logging.getLogger("app.server")


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; models are loaded when it starts.

    Raises:
        RepositoryError: there is no model to serve.
        DeviceError: the device is not there.
    """
    traces = tracing.from_environment()
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    # The pages' scripts come from the package, so they work without the internet.
    app = FastAPIOffline(
        title="ensembled",
        version=VERSION,
        redoc_url=None,
        lifespan=lifespan,
        static_url="/docs/static",
        # A redirect names the host that the client named, and few clients follow one with a body.
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(v1.router)
    app.include_router(v2_repository.router)
    app.include_router(v2_repository.management)
    app.include_router(v2_statistics.router)
    app.include_router(v2.router)
    app.include_router(v2_configuration.router)

    @app.get("/metrics", summary="Prometheus metrics", tags=["Operation"], response_class=PlainTextResponse)
    async def metrics_page() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(Compression, endings=("/infer", "/predict"))
    # Outside of it stands what limits the bytes that are sent, so the last one added sees them first.
    app.add_middleware(Inflation, limit=settings.max_inflated_body)
    app.add_middleware(BodyLimit, limit=settings.max_body, seconds=settings.body_timeout)
    app.add_middleware(Observation, metrics=service.metrics, tracing=traces)
    # FastAPI's own way to describe an application otherwise.
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
            # The framework's own, whose text is the status in words.
            return json_response({"error": str(error.detail).lower()}, error.status_code, error.headers)


class _Server(uvicorn.Server):
    """Says where it listens, which port 0 leaves open until then; and stops loading at once when it is to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else []:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                log.info("listening on http://%s:%d (documentation at /docs)", shown, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # What is sent on open connections until they are closed.
        self.service.repository.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        # Accepted requests wait for the thread that loads.
        self.service.repository.stop()
        await super().shutdown(sockets)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Raises:
        RepositoryError, DeviceError: as :func:`create_app`.
        SystemExit: the address is taken, or is none of this machine's; the log says which.
    """
    app = create_app(settings)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        ),
        app.state.service,
    )
    # uvicorn raises the signal again once it has stopped; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    if app.state.service.busy:
        # Everything has been answered; the interpreter's own end would trip over the thread that is left behind.
        logging.shutdown()
        os._exit(0)
