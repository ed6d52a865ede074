"""One connection: what is refused before a request exists, and who is cut off.

uvicorn reads heads of any size for as long as they take, tells of bad HTTP in plain text, and takes the body of a
request that offers an upgrade (as HTTP/2 clients do on plain text) for the next request. Here connections are counted,
heads have a size and a time, every error of the service is the same JSON and comes after the answers that are due
before it, and an offer to upgrade is passed over, as it may be. The time for a body is the application's
(:class:`app.middleware.BodyLimit`).

This class builds on uvicorn's own, whose internals it names: `cycle` (the newest request), `pipeline` (those that wait
for the one before them), `flow`, `transport`, and `_start_asgi_task`.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger("app.connection")

MAX_HEAD = 64 * 2**10
MAX_PIPELINED = 32
# A body may come byte by byte, each in a chunk of its own; more than that around it is no client's way to write.
_FRAMING_PER_BYTE = 16
# Seconds that a client has to read why it is refused, and to end a body that is not read any more.
_LINGER = 2.0


@dataclass(frozen=True)
class Limits:
    """What the connections of one port may do.

    Attributes:
        connections: open at a time; those with an answer that is not taken yet are among them.
        head_seconds: from a connection's or request's first byte to the end of its head.
        answer_seconds: for a client to take what it was answered.
        refused: told the reason whenever a client is refused or cut off.
        ending: whether the service is about to close its connections.
    """

    connections: int = 1024
    head_seconds: float = 10.0
    answer_seconds: float = 60.0
    refused: Callable[[str], None] = lambda _: None
    ending: Callable[[], bool] = lambda: False


class _Refusal(NamedTuple):
    reason: str
    status: HTTPStatus
    text: str


_BAD_HTTP = _Refusal("bad_http", HTTPStatus.BAD_REQUEST, "this is not a request in HTTP/1.1")
_LARGE_HEAD = _Refusal(
    "head_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {MAX_HEAD} bytes at most"
)
_CODED = _Refusal("bad_http", HTTPStatus.BAD_REQUEST, "Transfer-Encoding may be chunked, once and in HTTP/1.1 only")
_FRAMED = _Refusal("bad_http", HTTPStatus.BAD_REQUEST, "there is far more around the chunks of the body than in them")
_PIPELINED = _Refusal(
    "pipelined", HTTPStatus.TOO_MANY_REQUESTS, f"{MAX_PIPELINED} requests wait on this connection; read answers first"
)


class _Refused(Exception):  # noqa: N818 - no error, but the way out of the parser's callbacks
    """What arrived is refused; why was noted before."""


class Connection(HttpToolsProtocol):
    """HTTP/1.1 by httptools, within limits and without upgrades. Made by :func:`connections_within`."""

    limits: ClassVar[Limits] = Limits()
    # Oldest first.
    admitted: ClassVar[dict[Connection, None]] = {}

    _in_head = True
    _begun = False
    _head_bytes = 0
    _body_bytes = 0
    _framing_bytes = 0
    _ended_one = False
    _answering: RequestResponseCycle | None = None
    _refusal: _Refusal | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _end_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.admitted) >= self.limits.connections and not self._make_room():
            self._refuse(self._full())
        else:
            self.admitted[self] = None
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            # uvicorn tells the newest request only, and the one that is being answered would write on.
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.admitted.pop(self, None)
        self._stop(self._head_timer, self._end_timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        """End the oldest connection of which nothing was accepted: an idle one, else one in the middle of a head."""
        others = [c for c in self.admitted if c._can_make_room()]
        if not others:
            return False
        other = next((c for c in others if not c._begun), others[0])
        del self.admitted[other]
        if other._begun:
            other._refuse(self._full())
        other.transport.close()
        # It does not count any more, so it may not linger: not for what it has not taken, nor for why it was refused.
        other._end_within(0)
        return True

    def _can_make_room(self) -> bool:
        if not self._in_head or (self.cycle is not None and not self.cycle.response_complete):
            return False
        # An answer that its client has not taken yet fills memory, and would be lost.
        return self.transport.get_write_buffer_size() == 0

    def _full(self) -> _Refusal:
        text = f"{self.limits.connections} connections are open, which is the most; come back later"
        return _Refusal("connections", HTTPStatus.SERVICE_UNAVAILABLE, text)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._ended_one, was_in_head, body_before = False, self._in_head, self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._continue_without_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            found = error.__context__
            self._refuse(found.args[0] if isinstance(found, _Refused) else _BAD_HTTP)
        else:
            # Bytes of the request before this one, in the same piece, do not count.
            if self._in_head:
                self._head_bytes = 0 if self._ended_one else self._head_bytes + len(data)
            elif not was_in_head and not self._ended_one:
                self._framing_bytes += len(data) - (self._body_bytes - body_before)
            if self._head_bytes > MAX_HEAD:
                self._refuse(_LARGE_HEAD)
            elif self._framing_bytes > MAX_HEAD + _FRAMING_PER_BYTE * self._body_bytes:
                self._refuse(_FRAMED)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What stands after a chunked body is no header of the request, which is being answered by then.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_bytes > MAX_HEAD:
            raise _Refused(_LARGE_HEAD)
        # A coding that is not undone here may be undone by a proxy, which would see another request.
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or self.parser.get_http_version() != "1.1"):
            raise _Refused(_CODED)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refused(_PIPELINED)
        if self.parser.should_upgrade():
            return
        self._unset_keepalive_if_required()
        # It raises where the path is none, and then this is still a head.
        super().on_headers_complete()
        if self.limits.ending():
            # Its answer says so, or the client would send the next request while the connection is being closed.
            self.cycle.keep_alive = False
        self._in_head, self._head_bytes = False, 0
        self._body_bytes = self._framing_bytes = 0
        self._stop(self._head_timer)
        self._head_timer = None

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_head, self._begun, self._ended_one = True, False, True
            self._body_bytes = self._framing_bytes = 0
            if self.cycle.response_complete:
                # A body of which nobody wanted to know has come to its end in time.
                self._stop(self._end_timer)
            super().on_message_complete()

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_within(self.limits.answer_seconds)
        elif was_last and self._refusal is not None:
            self._tell(self._refusal)
        elif was_last and not self._in_head:
            self._end_within(_LINGER)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_within(self.limits.answer_seconds, "slow_reader")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._refusal is None and not self.transport.is_closing():
            self._stop(self._end_timer)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # What the client has not taken yet would keep it open.
        self._end_within(self.limits.answer_seconds)

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Read the request again as if it had not offered anything, since the parser has passed over its body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(_BAD_HTTP)
            return
        headers = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(headers))
        self.parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self.data_received(head + rest)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._begun:
            text = f"the head of the request did not arrive within {self.limits.head_seconds:g} seconds"
            self._refuse(_Refusal("head_timeout", HTTPStatus.REQUEST_TIMEOUT, text))
        elif not self.transport.is_closing():
            # Nothing was asked, so nothing is answered.
            self.transport.close()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer what is no request after the requests before it, and end the connection."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._refusal = refusal
        self._stop(self._head_timer)
        if not self._in_head and self.pipeline:
            # Its head was good, its body is not, and it has not begun to be answered.
            self.pipeline.popleft()
        elif not self._in_head and self.cycle.response_started:
            self.transport.close()
            self._end_within(_LINGER)
        elif not self._in_head or self.cycle is None or self.cycle.response_complete:
            self._tell(refusal)

    def _tell(self, refusal: _Refusal) -> None:
        number = uuid.uuid4().hex
        body = orjson.dumps({"error": refusal.text})
        head = [
            f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {number}",
            "connection: close",
        ]
        if refusal.reason == "connections":
            head.append("retry-after: 1")
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        # Closed at once, what the client is still sending would cost it the answer. Whoever is over the number of
        # connections is not waited for, lest those become too many as well.
        if refusal.reason == "connections" or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self.flow.resume_reading()
        self._end_within(_LINGER)
        if self.cycle is not None and not self.cycle.response_complete:
            # Its body is broken, and whoever waits for it need not.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.limits.refused(refusal.reason)
        log.info(
            "refused before it was a request: %s",
            refusal.reason,
            extra={"status": refusal.status.value, "request_id": number},
        )

    def _end_within(self, seconds: float, reason: str | None = None) -> None:
        self._stop(self._end_timer)
        self._end_timer = self.loop.call_later(seconds, self._end, reason)

    def _end(self, reason: str | None) -> None:
        if reason is not None:
            self.limits.refused(reason)
            log.info("cut off: %s", reason)
        self.transport.abort()

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


def connections_within(limits: Limits) -> type[Connection]:
    """The class of one port's connections, which are counted together."""

    class Limited(Connection):
        admitted: ClassVar[dict[Connection, None]] = {}

    Limited.limits = limits
    return Limited
