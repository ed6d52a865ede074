"""The ASGI applications, one for each port, and the process that serves them.

Metrics and management may have a port of their own, which can be closed to those who ask the models. All ports belong
to one uvicorn server, on one event loop, and share one service and one set of keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from uvicorn.config import STARTUP_FAILURE

from app import heap, tracing
from app.connection import Limits, connections_within
from app.errors import MethodNotAllowed, NotFound, ServiceError
from app.keys import Keys, keys_of
from app.middleware import Authentication, BodyLimit, Compression, Direct, Held, Hosts, Inflation, Observation
from app.middleware.answer import error_response
from app.open_files import allow_open_files
from app.openapi import document
from app.routes import metrics, v1, v1_adapt, v2, v2_configuration, v2_repository, v2_statistics
from app.routes.common import json_response
from app.service import Service
from app.settings import PortName, Settings
from app.version import VERSION

log = logging.getLogger("app.server")

# Seconds after which a thread lets another have the interpreter. The engine's needs it for a moment around each call,
# and would wait for it while the event loop decodes: under load for longer than the call of a small model takes.
_SWITCH = 0.0005


@dataclass(frozen=True)
class Port:
    """What is served beside the models on a port of its own."""

    name: PortName
    host: str
    number: int
    app: FastAPI


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; models are loaded when it starts.

    Its state holds the `service`, and as `ports` what other ports serve.

    Raises:
        RepositoryError: there is no model to serve.
        DeviceError: the device is not there.
        KeyFileError: the file of keys cannot be used.
        TracingError: traces are asked for and cannot be sent.
    """
    traces = tracing.from_environment()
    keys = keys_of(settings)
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
    app.include_router(v1.router)
    app.include_router(v1_adapt.router)
    app.include_router(v2_repository.router)
    app.include_router(v2_statistics.router)
    app.include_router(v2.router)
    app.include_router(v2_configuration.router)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    held = Held(settings.max_bodies)
    names = settings.host_names("models")
    _complete(app, service, keys, traces, held, names, [*_inferring(v1.router), *_inferring(v2.router)])
    app.state.ports = []
    for name, router, wanted, number in _beside_the_models(settings):
        if not wanted:
            continue
        if number is None:
            app.include_router(router)
        else:
            # Nothing but what it is for, so no documentation either.
            other = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
            other.include_router(router)
            _complete(other, service, keys, traces, held, settings.host_names(name))
            app.state.ports.append(Port(name, settings.addresses[name], number, other))
    # FastAPI's own way to describe an application otherwise.
    app.openapi = lambda: document(app, service.repository)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _inferring(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute) and route.path.endswith(("/predict", "/infer")):
            yield route


def _beside_the_models(settings: Settings) -> Iterator[tuple[PortName, APIRouter, bool, int | None]]:
    """Of each: its name, what it serves, whether it is wanted, and its port; None is that of the models."""
    # It says itself that it is switched off, and how that is changed.
    yield "management", v2_repository.management, True, settings.management_port
    yield "metrics", metrics.router, settings.metrics, settings.metrics_port


def _complete(
    app: FastAPI,
    service: Service,
    keys: Keys,
    traces: tracing.Tracing | None,
    held: Held,
    names: Sequence[str] | None,
    direct: Sequence[APIRoute] = (),
) -> None:
    """What every port has in common: how errors are answered, and what a request passes on its way.

    Args:
        names: beside this machine's own that requests on it may come under; None for any.
        direct: routes of it that take the shortest way.
    """
    app.state.service = service
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    # The last one that is added is the first one that a request meets.
    app.add_middleware(Direct, routes=direct)
    app.add_middleware(Compression, endings=("/infer", "/predict", "/adapt"))
    # Outside of it stands what limits the bytes that are sent.
    app.add_middleware(Inflation, limit=service.settings.max_inflated_body, held=held)
    limits = service.settings
    app.add_middleware(BodyLimit, limit=limits.max_body, seconds=limits.body_timeout, held=held)
    app.add_middleware(Authentication, keys=keys)
    app.add_middleware(Hosts, allowed=names)
    app.add_middleware(Observation, metrics=service.metrics, tracing=traces)


async def _answer_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(request.scope, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Paths and methods that no route has."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            hint = "; GET /docs lists what there is" if request.app.openapi_url else " on this port"
            return error_response(request.scope, NotFound(f"there is no such path{hint}"))
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            text = f"{request.method} is not allowed here" + (f"; use {allowed}" if allowed else "")
            return error_response(request.scope, MethodNotAllowed(text, allow=[allowed] if allowed else []))
        case _:
            # The framework's own, whose text is the status in words.
            return json_response({"error": str(error.detail).lower()}, error.status_code, error.headers)


class _Server(uvicorn.Server):
    """Listens on several ports, says on which (port 0 leaves that open), and stops loading when it is to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, others: dict[str, uvicorn.Config]) -> None:
        super().__init__(config)
        self.service = service
        self.others = others

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        listening = {"documentation at /docs": self.servers[0]}
        for name, config in self.others.items():
            listening[name] = await self._listen(config)
        for name, server in listening.items():
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                log.info("listening on http://%s:%d (%s)", shown, port, name)

    async def _listen(self, config: uvicorn.Config) -> asyncio.Server:
        """As uvicorn listens on its one port; since the state is shared, it stops and counts for all of them."""
        config.load()
        try:
            # Ours is a subclass of uvicorn's protocols, whose annotation is asyncio's bare one.
            server: asyncio.Server = await asyncio.get_running_loop().create_server(
                lambda: config.http_protocol_class(  # type: ignore[call-arg]  # made as uvicorn makes it
                    config=config, server_state=self.server_state, app_state=self.lifespan.state
                ),
                host=config.host,
                port=config.port,
                backlog=config.backlog,
            )
        except OSError as error:
            log.error("%s", error)
            for listener in self.servers:
                listener.close()
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.servers.append(server)
        return server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # What is sent on open connections until they are closed.
        self.service.repository.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        # Accepted requests wait for the thread that loads.
        self.service.repository.stop()
        await super().shutdown(sockets)


def _configuration(app: FastAPI, host: str, port: int, settings: Settings) -> uvicorn.Config:
    service: Service = app.state.service

    def refused(reason: str) -> None:
        service.metrics.refused(None, reason)

    def ending() -> bool:
        return service.repository.draining

    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=connections_within(
            Limits(settings.max_connections, settings.head_timeout, settings.answer_timeout, refused, ending)
        ),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody's word is taken for where a request comes from.
        proxy_headers=False,
        # Annotated as a whole number; asyncio's timers, which it is for, take any.
        timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]  # uvicorn takes fractions, too
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Raises:
        RepositoryError, DeviceError, KeyFileError, TracingError: as :func:`create_app`.
        SystemExit: an address is taken, or is none of this machine's; the log says which.
    """
    app = create_app(settings)
    # A connection is an open file, and systems allow few unless they are asked.
    allow_open_files(settings.max_connections * (1 + len(app.state.ports)))
    server = _Server(
        _configuration(app, settings.host, settings.port, settings),
        app.state.service,
        {port.name: _configuration(port.app, port.host, port.number, settings) for port in app.state.ports},
    )
    sys.setswitchinterval(_SWITCH)
    heap.look_seldom()
    # uvicorn raises the signal again once it has stopped; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    if app.state.service.busy:
        # Everything has been answered; the interpreter's own end would trip over the thread that is left behind.
        logging.shutdown()
        os._exit(0)
