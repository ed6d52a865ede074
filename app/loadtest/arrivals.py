"""When requests are due in an open loop.

A schedule is drawn before the first request is sent and never changes, whatever the service does. That is
what makes the loop open: a service that stalls does not slow the arrivals down, so the requests that fell
due while it stalled are waiting, and their wait is in the figures. Times are seconds from the start of the
part that counts; the warm-up comes before 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from app.loadtest.config import Config

Times = NDArray[np.float64]


def schedule(config: Config) -> Times:
    """Due times in ascending order, from `-config.warmup` up to, not including, `config.duration`."""
    if config.rate is None:
        raise ValueError("a closed loop has no schedule")
    if config.arrivals == "constant":
        return constant(config.rate, config.warmup, config.duration)
    return poisson(config.rate, config.warmup, config.duration, config.seed)


def constant(rate: float, warmup: float, duration: float) -> Times:
    """One request every `1 / rate` seconds, one of them at 0; exactly `rate * duration` count, rounded up."""
    before = np.arange(math.floor(warmup * rate + 1e-9), 0, -1)
    counted = np.arange(math.ceil(duration * rate - 1e-9))
    return np.concatenate([-before, counted]) / rate


def poisson(rate: float, warmup: float, duration: float, seed: int) -> Times:
    """Independent exponential gaps of mean `1 / rate`: how many requests come is itself random."""
    generator = np.random.default_rng(seed)
    counted = _poisson_until(duration, rate, generator)
    # A Poisson process looks the same in both directions of time, and so the counted part does not
    # depend on how long the warm-up is.
    before = _poisson_until(warmup, rate, generator)
    return np.concatenate([-before[::-1], counted])


def _poisson_until(end: float, rate: float, generator: np.random.Generator) -> Times:
    mean = end * rate
    enough = math.ceil(mean + 6 * math.sqrt(mean) + 16)
    times = np.empty(0)
    while len(times) == 0 or times[-1] < end:
        start = times[-1] if len(times) else 0.0
        times = np.concatenate([times, start + np.cumsum(generator.exponential(1 / rate, enough))])
    return times[times < end]
