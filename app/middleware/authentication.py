"""A key before anything else: whatever is not health is refused without one, whether it exists or not."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden, Unauthorized
from app.keys import Keys
from app.middleware.answer import send_error

# The whole list of what is open. A path that is not on it needs a key, so a new route is closed from its first day.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
_MOST_SENT = 4
# As browsers write it, and no page can change it.
_CROSS_SITE = (b"sec-fetch-site", b"cross-site")


class Authentication:
    """Answers 401 before the body is read or a route is looked for.

    A key comes as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. Without keys everybody may ask, but for pages of
    other sites: a browser on this machine would carry out what they send, although it would not show them the answer.

    Args:
        keys: which are accepted.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = self._refusal(scope)
            # Health answers everybody, and tells more to those who may ask.
            scope.setdefault("state", {})["may_ask"] = refused is None
            if refused is not None and scope["path"] not in OPEN:
                await send_error(scope, receive, send, refused)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Unauthorized | Forbidden | None:
        if not self.keys:
            if _CROSS_SITE in scope["headers"] and scope["method"] not in ("GET", "HEAD"):
                return Forbidden("a web page of another site may not ask; use a client, or a page of this site")
            return None
        sent = list(_sent(Headers(scope=scope)))
        if any(self.keys.owner(key) for key in sent[:_MOST_SENT]):
            return None
        return Unauthorized(
            "this key opens nothing here"
            if sent
            else "a key is needed: send it as Authorization: Bearer KEY, or as X-API-Key: KEY"
        )


def _sent(headers: Headers) -> Iterator[str]:
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            yield key.strip()
    for value in headers.getlist("x-api-key"):
        if value.strip():
            yield value.strip()
