"""The shortest way to the handlers of inference.

FastAPI's routing and resolving of parameters take about as long as everything else that the event loop does for a small
request, and these handlers need none of it: they take the request and what their path names, and give a response. The
routes stay FastAPI's, which describes them, and answers them too wherever this class does not know the path.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ServiceError
from app.middleware.answer import send_error


class Direct:
    """Calls the handlers of some routes by itself.

    Args:
        routes: their handlers are coroutines that take ``request`` and the path's own parameters, all of them text.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute]) -> None:
        self.app = app
        self.routes = list(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Mounted below a path of another application, this one's paths begin elsewhere.
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            for route in self.routes:
                if found := route.path_regex.match(scope["path"]):
                    scope["route"] = route
                    await self._answer(route, found.groupdict(), scope, receive, send)
                    return
        await self.app(scope, receive, send)

    @staticmethod
    async def _answer(route: APIRoute, parameters: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await route.endpoint(Request(scope, receive, send), **parameters)
        except ServiceError as error:
            await send_error(scope, receive, send, error)
        else:
            await response(scope, receive, send)
