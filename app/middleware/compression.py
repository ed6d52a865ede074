"""Answers that go out compressed, to clients that say so.

Only the answers of some paths do: asyncio's Triton client announces that it takes gzip wherever it asks, and can read
it from an inference only.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.protocol.coding import accepted_coding, compress

# Fewer bytes fit into the first packets anyhow.
LEAST = 4096
# More bytes take longer than others should wait; they are compressed beside the event loop.
_INLINE = 2**16


class Compression:
    """Sends whole answers of status 200 in gzip or deflate, where that makes them smaller.

    Args:
        endings: of the paths that are posted to and whose answers may be compressed.
    """

    def __init__(self, app: ASGIApp, endings: tuple[str, ...]) -> None:
        self.app = app
        self.endings = endings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A model may have the name of an ending, but its description is no POST.
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(self.endings):
            await self.app(scope, receive, send)
            return
        start: Message | None = None

        async def compressing(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
                MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                # The head depends on the body, which comes next.
                start = message
                return
            if start is None:
                await send(message)
                return
            head, start = start, None
            body = message.get("body", b"")
            if len(body) >= LEAST and not message.get("more_body", False):
                coding = accepted_coding(Headers(scope=scope).getlist("accept-encoding"))
                if coding is not None and (smaller := await _compressed(body, coding)) is not None:
                    headers = MutableHeaders(scope=head)
                    headers["Content-Encoding"], headers["Content-Length"] = coding, str(len(smaller))
                    message = {**message, "body": smaller}
            await send(head)
            await send(message)

        await self.app(scope, receive, compressing)


async def _compressed(body: bytes, coding: str) -> bytes | None:
    return await asyncio.to_thread(compress, body, coding) if len(body) > _INLINE else compress(body, coding)
