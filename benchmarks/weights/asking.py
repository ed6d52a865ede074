"""Asking a service: the requests, whether its answers are right, and how many it gives a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx

import ensemble
from app.loadtest.config import Config
from app.loadtest.payload import is_answer
from app.loadtest.runner import drive
from app.loadtest.samples import Recorder
from app.loadtest.target import Target
from benchmarks.contexts.serving import spent
from benchmarks.load.services import FailedError
from benchmarks.weights.work import Request, brought, perturbed

CLIENTS = 64
# More than are asked for in the time, so that none comes twice.
NEW = 20_000
_PATH = "/v2/models/digits/infer"


def requests_of(path: Path, members: int, keys: int, kind: str) -> list[Request]:
    """As many as clients, whose keys come in turn. For a process of its own."""
    made = ensemble.load(path)
    numbers = [number % keys for number in range(CLIENTS)]
    return brought(made, members, numbers) if kind == "weights" else perturbed(made, members, numbers)


def fresh(path: Path, members: int, start: int) -> list[Request]:
    """Requests of which none has the seed of another. For a process of its own."""
    made = ensemble.load(path)
    return perturbed(made, members, range(1000 + start, 1000 + start + NEW), check=False)


def check(url: str, requests: Sequence[Request]) -> None:
    """That answers are right, before any is timed.

    Raises:
        FailedError: one is not.
    """
    for request in requests:
        answer = httpx.post(
            f"{url}{_PATH}", content=request.body, headers=dict(request.headers), timeout=60, trust_env=False
        )
        if answer.status_code != 200:
            raise FailedError(f"a request is answered {answer.status_code}: {answer.text[:200]}")
        (entropy,) = next(o["data"] for o in answer.json()["outputs"] if o["name"] == "predictive_entropy")
        if abs(entropy - request.entropy) > 1e-4:
            raise FailedError(f"the entropy must be {request.entropy}, however: {entropy}")


def ask(url: str, requests: Sequence[Request], seconds: float) -> tuple[float, float]:
    """Good answers a second that the clients get, and seconds of processor time that one takes the service.

    For a process of its own. All requests have the same headers.

    Raises:
        FailedError: a request failed.
    """
    config = Config(url=url, concurrency=CLIENTS, duration=seconds, warmup=1.0, timeout=60, headers=requests[0].headers)
    bodies = [request.body for request in requests]
    target = Target(url=httpx.URL(f"{url}{_PATH}"), model=None, bodies=bodies, is_good=is_answer)
    recorder = Recorder()
    before = spent(url)
    outcome = drive(config, target, recorder)
    after = spent(url)
    samples = recorder.samples()
    if not samples.good.all():
        raise FailedError(f"{len(samples.good) - int(samples.good.sum())} requests failed: {recorder.examples}")
    rate = float(((samples.done >= 0) & (samples.done < outcome.duration)).sum() / outcome.duration)
    return rate, (after[0] - before[0]) / max(1.0, after[1] - before[1])
