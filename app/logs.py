"""Structured logs: one event a line, with the id of the request that it belongs to."""

from __future__ import annotations

import contextvars
import functools
import json
import logging
import re
import sys
import time
from typing import Any

# Set by the middleware for as long as a request is being answered; the trace only where the client, or the service
# itself, keeps one.
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
trace_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("trace_id", default=None)

# What every record has; whatever else it carries was given as ``extra``.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
# Controls of ASCII and of Latin-1, what splits lines or reverses text, and halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


# Plain ASCII: what reads lines may take U+2028 and its like for an end of one.
_ENCODE = json.JSONEncoder(default=str).encode


# A line for each request is written, of which many come in the same second.
@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: value for key, value in vars(record).items() if key not in _PLAIN}
    if (current := request_id.get()) is not None:
        fields.setdefault("request_id", current)
    if (trace := trace_id.get()) is not None:
        fields.setdefault("trace_id", trace)
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = _second(int(record.created))
        event = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return _ENCODE(event)


class TextFormatter(logging.Formatter):
    """A line for people, its fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        text = printable(f"{stamp} {record.levelname.lower():7} {record.getMessage()}{fields}")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def printable(text: str) -> str:
    """Text in which what a client smuggled in cannot begin a line of its own, or steer a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure(level: str, style: str) -> None:
    """Send all logs to standard error in one style ("json" or "text")."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # No line tells them, and finding them out takes longer than writing it.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # The middleware writes an access log of its own; start and stop are told by the service.
    for name in ("uvicorn.access", "uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).setLevel("WARNING")
