"""A client of the service, for programs: numpy in, numpy out, binary on the wire.

    from app.client import Client

    with Client("http://127.0.0.1:8000") as client:
        result = client.infer(rows)
        result["mean"]

`Client` blocks and may be shared by threads; `AsyncClient` is the same with ``await``. Both repeat what may be repeated
and tell of the rest by one tree of errors. Nothing here needs PyTorch or the server's packages.
"""

from app.client.aio import AsyncClient
from app.client.blocking import Client
from app.client.errors import (
    BadRequest,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InputError,
    InvalidAnswer,
    NotFound,
    Refused,
    ServerFault,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from app.client.result import Result
from app.client.retry import Retry

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "InputError",
    "InvalidAnswer",
    "NotFound",
    "Refused",
    "Result",
    "Retry",
    "ServerFault",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
]
