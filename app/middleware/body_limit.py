"""A cap on the size of a request's body, by what is announced and by what really comes, and on the time it takes."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, PayloadTooLarge, RequestTimeout
from app.middleware.answer import send_error


class BodyLimit:
    """Answers 413 before more than ``limit`` bytes of a body are held in memory, and 408 to one that comes too slowly.

    Args:
        limit: bytes as they are sent, compressed or not.
        seconds: in which the whole body must arrive.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

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
                received += len(message.get("body", b""))
                if received > self.limit:
                    raise too_large
            return message

        await self.app(scope, counted, send)
