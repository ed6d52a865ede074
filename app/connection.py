"""One connection: what is refused before a request exists.

uvicorn reads heads of any size, tells of bad HTTP in plain text, and takes the body of a request that offers an upgrade
(as HTTP/2 clients do on plain text) for the next request. Here a head has a limit, every error of the service is the
same JSON, and an offer to upgrade is passed over, as it may be.
"""

from __future__ import annotations

import logging
import uuid
from http import HTTPStatus

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("app.connection")

MAX_HEAD = 64 * 2**10


class Connection(HttpToolsProtocol):
    """HTTP/1.1 by httptools, with a cap on a request's line and headers, and without upgrades."""

    _in_head = True
    _head_bytes = 0
    _ended_one = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._ended_one = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._continue_without_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._in_head:
                # Bytes of the request before this one, in the same piece, do not count.
                self._head_bytes = 0 if self._ended_one else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse()

    def on_headers_complete(self) -> None:
        self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_bytes > MAX_HEAD:
            raise ValueError("a head that is too large")
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_head, self._ended_one = True, True
            super().on_message_complete()

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Read the request again as if it had not offered anything, since the parser has passed over its body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse()
            return
        headers = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(headers))
        self.parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self.data_received(head + rest)

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD:
            status, text = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {MAX_HEAD} bytes at most"
        else:
            status, text = HTTPStatus.BAD_REQUEST, "this is not a request in HTTP/1.1"
        number = uuid.uuid4().hex
        body = orjson.dumps({"error": text})
        head = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {number}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
        log.info("refused before it was a request", extra={"status": status.value, "request_id": number})
