"""A cap on the size of a request's body, by what is announced and by what really comes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from app.middleware.answer import send_error


class BodyLimit:
    """Answers 413 before more than ``limit`` bytes of a body are held in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        too_large = PayloadTooLarge(f"the body may have {self.limit} bytes at most; send fewer rows at a time")
        if (encoding := headers.get("content-encoding", "identity")).lower() != "identity":
            await send_error(
                scope,
                receive,
                send,
                UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not read; send plain"),
            )
            return
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            await send_error(scope, receive, send, BadRequest("Content-Length must be a number"))
            return
        # Python refuses to read numbers of thousands of digits.
        if length is not None and (len(length) > 18 or int(length) > self.limit):
            await send_error(scope, receive, send, too_large)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.limit:
                    raise too_large
            return message

        await self.app(scope, counted, send)
