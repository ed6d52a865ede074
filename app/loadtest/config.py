"""What a load test is asked to do.

A `Config` is the whole experiment: where to send, what to send, in which of the two modes, for how long.
The modes answer different questions. An **open loop** (`rate`) sends on a schedule that does not depend on
the answers, as independent users do, and so finds out how long they would wait. A **closed loop**
(`concurrency`) keeps a fixed number of requests in flight, as a batch job does, and so finds out how much
the service can take.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Arrivals = Literal["constant", "poisson"]


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class LoadTestError(Exception):
    """The test cannot be run as asked; the text says why, in one line, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One load test.

    Args:
        url: Base of a running service, or with `body` the full URL to post to.
        rate: Open loop: requests per second. Exactly one of `rate` and `concurrency` is given.
        concurrency: Closed loop: clients that each send the next request when the last is answered.
        arrivals: Open loop: evenly spaced, or with exponential gaps as from many independent users.
        duration: Seconds that are counted.
        warmup: Seconds before them, under the same load, that are not.
        timeout: Seconds after which a request that was sent is given up.
        max_in_flight: Open loop: requests in flight at most; one due beyond that is an error, `not_sent`.
        model: Name of a model; None takes the only one that is ready.
        rows: Rows in a request.
        outputs: Names of the outputs to ask for; none asks for the model's default.
        data: A .npz (or .npy) file to take the rows from, instead of random ones.
        body: A file whose JSON is posted to `url` as it is, instead of rows for a model.
        seed: Of the random rows and arrivals.
        headers: Sent with every request.

    Raises:
        LoadTestError: if a value makes no sense, alone or with the others.

    Example:
        >>> Config(url="http://127.0.0.1:8000", rate=200, duration=5).open_loop
        True
    """

    url: str
    rate: float | None = None
    concurrency: int | None = None
    arrivals: Arrivals = "constant"
    duration: float = 10.0
    warmup: float = 1.0
    timeout: float = 10.0
    max_in_flight: int = 1000
    model: str | None = None
    rows: int = 1
    outputs: tuple[str, ...] = ()
    data: Path | None = None
    body: Path | None = None
    seed: int = 0
    # Not in the repr: this is where a key travels.
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise LoadTestError(
                "exactly one of rate (open loop) and concurrency (closed loop) must be given, "
                f"however: rate={self.rate}, concurrency={self.concurrency}"
            )
        _above_zero("rate", self.rate)
        _above_zero("duration", self.duration)
        _above_zero("timeout", self.timeout)
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise LoadTestError(f"warmup must be 0 or more seconds, however: warmup={self.warmup}")
        _at_least_one("concurrency", self.concurrency)
        _at_least_one("max_in_flight", self.max_in_flight)
        _at_least_one("rows", self.rows)
        if self.arrivals not in ("constant", "poisson"):
            raise LoadTestError(f"arrivals must be constant or poisson, however: arrivals={self.arrivals}")
        if self.seed < 0:
            raise LoadTestError(f"seed must be 0 or more, however: seed={self.seed}")
        for name, value in self.headers:
            # The value stays out of the error: it may be a key.
            if not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise LoadTestError(f"header {name!r} must have a name and a value of printable ASCII")
        if self.body is not None and (self.model or self.data or self.outputs):
            raise LoadTestError("body is sent as it is, so model, data and outputs cannot be given with it")

    @property
    def open_loop(self) -> bool:
        return self.rate is not None

    @property
    def load(self) -> str:
        """The load in words, for titles."""
        if self.rate is None:
            return f"closed loop, {self.concurrency} client{'s' if self.concurrency != 1 else ''}"
        return f"open loop, {self.rate:g} requests/s, {self.arrivals} arrivals"


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise LoadTestError(f"{name} must be a number above 0, however: {name}={value}")


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise LoadTestError(f"{name} must be 1 or more, however: {name}={value}")
