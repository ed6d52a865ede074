"""Requests that come compressed: the application sees them plain, in pieces, and no more of them than is allowed.

It stands within :class:`app.middleware.BodyLimit`, which counts what is sent; what becomes of it is counted here.
"""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import UnsupportedMediaType
from app.middleware.answer import send_error
from app.middleware.body_limit import Held
from app.protocol.coding import PIECE, Inflater, content_coding

# Large bodies that are inflated at one time. Little is sent for much memory, so it must not be as many as are sent.
_LARGE_AT_ONCE = 4


class Inflation:
    """Inflates bodies in gzip and deflate; 415 to other codings, 400 to broken data, 413 to what becomes too large, and
    429 to what the bodies of others leave no room for.

    Args:
        limit: bytes that a body may become.
        held: what all bodies together hold, each until its request is answered.
    """

    def __init__(self, app: ASGIApp, limit: int, held: Held) -> None:
        self.app = app
        # For one that is larger than all may be there is never room, and to come back later does not help.
        self.limit = min(limit, held.limit)
        self.held = held
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            coding = content_coding(Headers(scope=scope).getlist("content-encoding"))
        except UnsupportedMediaType as error:
            await send_error(scope, receive, send, error)
            return
        if coding is None:
            await self.app(scope, receive, send)
            return
        body = _Body(receive, Inflater(coding, self.limit), self._large, self.held)
        try:
            await self.app(scope, body.receive, send)
        finally:
            body.release()
            self.held.remove(body.held)


class _Body:
    """What the application receives instead of one compressed body.

    Attributes:
        held: bytes that it was counted for beyond those that were sent.
    """

    def __init__(self, receive: Receive, inflater: Inflater, large: asyncio.Semaphore, held: Held) -> None:
        self._receive = receive
        self._inflater = inflater
        self._large = large
        self._all_held = held
        self._is_large = False
        self._sent = 0
        self._inflated = 0
        self.held = 0
        self._waiting: deque[bytes] = deque()
        self._complete = False
        self._ended = False

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()
        # All of it first, so that nobody who sends slowly holds a place among the large ones.
        while not self._complete:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._waiting.append(message.get("body", b""))
            self._sent += len(self._waiting[-1])
            self._complete = not message.get("more_body", False)
        while (piece := self._inflater.piece()) is None:
            if not self._waiting:
                self._inflater.end()
                self._ended = True
                self.release()
                return {"type": "http.request", "body": b"", "more_body": False}
            self._inflater.feed(self._waiting.popleft())
        self._count(len(piece))
        if len(piece) == PIECE:
            if not self._is_large:
                await self._large.acquire()
                self._is_large = True
            # A large body takes many pieces, and others wait for their turn.
            await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    def _count(self, size: int) -> None:
        self._inflated += size
        # What was sent is let go as it is inflated, so it makes room for as much.
        more = max(0, self._inflated - self._sent) - self.held
        self._all_held.add(more)
        self.held += more

    def release(self) -> None:
        """Give the place among the large ones to the next."""
        if self._is_large:
            self._is_large = False
            self._large.release()
