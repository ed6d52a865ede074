"""Caps on the size of a request's body, on the time it takes, and on what all bodies together hold in memory."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, PayloadTooLarge, RequestTimeout, TooManyRequests
from app.middleware.answer import send_error


class Held:
    """How much the bodies of all requests under way hold, on all ports.

    Args:
        limit: bytes that they may hold together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    def add(self, count: int) -> None:
        """Bytes have come.

        Raises:
            TooManyRequests: there is no room for them.
        """
        if self.bytes + count > self.limit:
            text = f"the requests under way hold {self.limit} bytes, the limit; try again later"
            raise TooManyRequests(text, reason="bodies_full")
        self.bytes += count

    def remove(self, count: int) -> None:
        """A request is answered."""
        self.bytes -= count


class BodyLimit:
    """Answers 413 before more than ``limit`` bytes of a body are held in memory, 408 to one that comes too slowly, and
    429 to one for which the others leave no room.

    Args:
        limit: bytes as they are sent, compressed or not.
        seconds: in which the whole body must arrive.
        held: what all bodies hold together.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float, held: Held) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        too_large = PayloadTooLarge(f"the body may have {self.limit} bytes at most; send fewer rows at a time")
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            await send_error(scope, receive, send, BadRequest("Content-Length must be a number"))
            return
        # Python refuses to read numbers of thousands of digits.
        if length is not None and (len(length) > 18 or int(length) > self.limit):
            await send_error(scope, receive, send, too_large)
            return
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal received, complete
            if complete:
                # From here on it tells of the client's going away only, which may take as long as it likes.
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(f"the body did not arrive within {self.seconds:g} seconds") from None
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                size = len(message.get("body", b""))
                if received + size > self.limit:
                    raise too_large
                self.held.add(size)
                received += size
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held.remove(received)
