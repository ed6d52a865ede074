"""One run: the service starts, everybody asks, it is told to end in the middle of it, and the books are closed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx

from benchmarks.soak.asking import question
from benchmarks.soak.changes import RIGHT_AFTER, operator
from benchmarks.soak.clients import ANSWERED, CLIENTS, GONE, GONE_AFTER, KINDS_OF_CLIENTS, Soak
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.server import MAX_BATCH, MAX_QUEUE, FailedError, Server
from benchmarks.soak.truth import ASIDE, READER, Truth
from benchmarks.soak.watch import SHORTEST, Watch, metric
from benchmarks.soak.wire import PATIENCE

# Seconds in which everything that was sent must have ended.
_FINISH = 120.0
_LAST = "requests under way at SIGTERM"
_END = "SIGTERM"
# As the service counts, of those that all ask.
_ROUTES = ("/v1/models/{name}/predict", "/v2/models/{name}/infer")


def soak(truth: Truth, folder: Path, seconds: float, *, seed: int = 0, compile: bool = False) -> Ledger:
    """Put a service under all of it for so long.

    Args:
        folder: empty, for models and the log.
        seed: of what is sent, and when.
        compile: whether the service compiles calls.

    Raises:
        FailedError: the service did not start.
    """
    models = folder / "models"
    truth.put(1, _made(models / READER / "1"))
    truth.put(1, _made(models / ASIDE / "1"))
    server, ledger = Server(models, folder / "log", compile=compile), Ledger()
    try:
        port = server.wait_ready()
        asyncio.run(_run(server, port, truth, ledger, models, seconds, seed))
    finally:
        server.kill()
    text = server.text()
    for word in ("Traceback", "internal error"):
        if word in text:
            at = text.index(word)
            ledger.violate("the log", f"{word}: {text[max(0, at - 300) : at + 1500]}")
    ledger.close((*KINDS_OF_CLIENTS, RIGHT_AFTER) if seconds >= SHORTEST else ())
    return ledger


def _made(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


async def _run(
    server: Server, port: int, truth: Truth, ledger: Ledger, models: Path, seconds: float, seed: int
) -> None:
    shared, watch = Soak(port, truth, ledger, asyncio.Event()), Watch()
    chances = iter(random.Random(seed + number) for number in range(10**6))
    work = [client(shared, next(chances)) for client, count in CLIENTS.items() for _ in range(count)]
    tasks = [
        asyncio.ensure_future(each)
        for each in (*work, operator(shared, next(chances), models), watch.look(shared, next(chances)))
    ]
    # Whoever fails by itself is a fault of the run.
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    shared.stopping.set()
    _, late = await asyncio.wait(tasks, timeout=_FINISH)
    for task in late:
        task.cancel()
        ledger.violate("the run", f"not all had ended {_FINISH:.0f} s after the last request was sent")
    await asyncio.gather(*late, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            ledger.violate("the run", f"{type(error).__name__}: {error}")
    watch.judge(shared, seconds)
    try:
        await _count(shared)
        await _terminate(shared, server, next(chances))
    except (httpx.HTTPError, TimeoutError) as error:
        ledger.violate("the service", f"does not answer any more: {type(error).__name__} {error}")


async def _count(shared: Soak) -> None:
    """What the service has counted itself: no error of its own, and nothing that still waits."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{shared.port}", timeout=60, trust_env=False) as client:
        # What those had asked who went away last may take a moment.
        for _ in range(50):
            page = (await client.get("/metrics")).text
            if not (waiting := metric(page, "ensembled_queued_rows") + metric(page, "ensembled_queued_requests")):
                break
            await asyncio.sleep(0.1)
    if waiting:
        shared.ledger.violate("the service", "something waits though nobody asks any more")
    # Each answer that it gave has come to a client, but for those whose client had gone.
    gave = sum(metric(page, "ensembled_requests_total", route=route, model=READER, status="200") for route in _ROUTES)
    ways = [shared.ledger.ended[kind] for kind in (*ANSWERED, RIGHT_AFTER)]
    got = sum(count for ended in ways for how, count in ended.items() if how.startswith("200"))
    gone = shared.ledger.ended[GONE][GONE_AFTER]
    if not got <= gave <= got + gone:
        shared.ledger.violate("the service", f"it counts {gave:.0f} answers, clients {got}, and {gone} had gone")
    shared.ledger.notes["answers with 200"] = f"{got:,} had by clients, {gave:,.0f} given by the service"
    if failed := metric(page, "ensembled_requests_total", status="500"):
        shared.ledger.violate("the service", f"it has answered 500 to {failed:.0f} requests")
    reasons = ("queue_full", "deadline", "gone", "too_slow", "head_timeout", "too_large", "bad_http", "head_too_large")
    counts = {reason: metric(page, "ensembled_rejected_total", reason=reason) for reason in reasons}
    shared.ledger.notes["refused, as the service counts"] = ", ".join(
        f"{reason} {count:,.0f}" for reason, count in counts.items()
    )


async def _terminate(shared: Soak, server: Server, r: random.Random) -> None:
    """Accepted requests are answered though the service is told to end; it ends with 0."""
    count = MAX_QUEUE // MAX_BATCH - 1
    asked = [question(r, shared.truth, MAX_BATCH) for _ in range(count)]
    waiting = [asyncio.ensure_future(shared.settle(_LAST, each, shared.once)) for each in asked]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{shared.port}", timeout=60, trust_env=False) as client:
        async with asyncio.timeout(PATIENCE):
            while True:
                page = (await client.get("/metrics")).text
                # The page itself is one that is being answered.
                under_way = metric(page, "ensembled_requests_in_progress") - 1
                if under_way + sum(task.done() for task in waiting) >= count:
                    break
    server.signal()
    shared.ledger.sent[_END] += 1
    await asyncio.wait(waiting, timeout=_FINISH)
    status = await asyncio.to_thread(server.wait)
    fault = "" if status == 0 else f"the service ended with {status}" if status is not None else "it did not end"
    shared.ledger.end(_END, f"exit status {status}", fault)


__all__ = ["FailedError", "soak"]
