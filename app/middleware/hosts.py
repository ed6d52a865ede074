"""Which names the service may be asked under.

A page of another site can have its own name point to this machine (DNS rebinding); to the browser it then is the same
site, whose answers the page may read. What remains of it is the Host header, which names that site.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Misdirected
from app.middleware.answer import send_error
from app.settings import is_own_name


class Hosts:
    """Answers 421 to requests for another host. Names of this machine alone are always allowed.

    Args:
        allowed: names or addresses without port, ``*.example.com`` for all below one; None allows every name.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] | None) -> None:
        self.app = app
        self.allowed = None if allowed is None else frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.allowed is not None:
            for name, value in scope["headers"]:
                if name == b"host" and not self._is_allowed(value.decode("latin-1")):
                    text = "this host name is not served here; --allowed-hosts (ENSEMBLED_ALLOWED_HOSTS) adds names"
                    await send_error(scope, receive, send, Misdirected(text))
                    return
        await self.app(scope, receive, send)

    def _is_allowed(self, value: str) -> bool:
        assert self.allowed is not None
        host = _without_port(value.lower())
        if is_own_name(host) or host in self.allowed:
            return True
        labels = host.split(".")
        return any("*." + ".".join(labels[start:]) in self.allowed for start in range(1, len(labels)))


def _without_port(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]
