"""Whatever is refused is counted, once, under a reason that tells it from all else: asked of the whole application."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import threading
from pathlib import Path

import httpx
import pytest

import app
from app.errors import ServiceError
from app.keys import make_key
from app.metrics import REASONS
from tests.app.support import metric, plain_body, rows_of

TASK = {"support": {"inputs": [[0.5] * 5] * 2, "targets": [[1.0, 2.0]] * 2}, "keep_seconds": 60}
ONE = plain_body(rows_of("house", 1))
# Of one adapted model of house.
NBYTES = 4 * 66 * 6


def rejected(client) -> dict[str, float]:
    """How many were refused, by reason; those that never were are left out."""
    page = client.service.metrics.text().decode()
    counts = {reason: metric(page, "ensembled_rejected_total", reason=reason) for reason in REASONS}
    return {reason: count for reason, count in counts.items() if count}


async def until_it_waits(client, rows: int) -> None:
    async with asyncio.timeout(60):
        while metric(client.service.metrics.text().decode(), "ensembled_queued_rows") < rows:
            await asyncio.sleep(0.01)


async def over_the_bodies(client) -> httpx.Response:
    """What is refused while another body that is not complete holds nearly all that there is."""
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def slow():
        yield b"x" * 2000
        arrived.set()
        await gone.wait()

    other = asyncio.create_task(client.post("/v1/models/house/predict", content=slow()))
    await arrived.wait()
    reply = await client.post("/v1/models/house/predict", json=ONE)
    gone.set()
    assert (await other).status_code == 400
    return reply


async def over_the_kept(client) -> httpx.Response:
    assert (await client.post("/v1/models/house/adapt", json=TASK)).status_code == 200
    return await client.post("/v1/models/house/adapt", json=TASK)


async def over_the_queue(client) -> httpx.Response:
    """What is refused while the engine is busy and as many rows wait as may."""
    busy, goes_on = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        goes_on.wait(60)

    with contextlib.ExitStack() as stack:
        stack.callback(goes_on.set)
        held = asyncio.create_task(client.service.engine.run(occupy))
        await asyncio.to_thread(busy.wait, 60)
        first = asyncio.create_task(client.post("/v1/models/house/predict", json=ONE))
        await until_it_waits(client, 1)
        reply = await client.post("/v1/models/house/predict", json=ONE)
    await held
    assert (await first).status_code == 200
    return reply


# By where in the service it is raised, and the reason that is given there: the batcher tells the metrics itself.
FULL = {
    ("middleware/body_limit.py", "bodies_full"): (over_the_bodies, {"max_body": 2048, "max_bodies": 2048}),
    ("adaptation/kept.py", "adapted_full"): (over_the_kept, {"adaptation": True, "adapted_memory": NBYTES + 8}),
    ("batching/batcher.py", "queue_full"): (over_the_queue, {"max_queue": 1}),
}


def raised() -> list[tuple[str, str]]:
    """Where the service raises TooManyRequests, and why."""
    root = Path(app.__file__).parent
    found = []
    for file in sorted(root.rglob("*.py")):
        if "client" in file.parts:
            # What a client raises has been counted.
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TooManyRequests":
                given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                found.append((file.relative_to(root).as_posix(), given.get("reason", "queue_full")))
    return found


def test_every_place_that_has_no_room_for_a_request_is_tried_here():
    assert sorted(raised()) == sorted(FULL)


@pytest.mark.parametrize("place", FULL)
def test_what_there_is_no_room_for_is_counted_by_what_was_full(place, models, running):
    attack, settings = FULL[place]

    async def main() -> None:
        async with running(models=models, max_batch=1, **settings) as client:
            reply = await attack(client)
            assert (reply.status_code, rejected(client)) == (429, {place[1]: 1})
            assert int(reply.headers["Retry-After"]) >= 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "request_", "status", "reason"),
    [
        ({"api_key": make_key()}, {"url": "/v1/models"}, 401, "unauthorized"),
        ({}, {"url": "/v2/repository/models/house/load", "method": "POST"}, 403, "forbidden"),
        ({}, {"url": "/v1/models/house/adapt", "method": "POST", "json": TASK}, 403, "forbidden"),
        ({}, {"url": "/predict", "method": "POST", "headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "forbidden"),
        ({"max_body": 1024}, {"url": "/predict", "method": "POST", "content": b"x" * 1025}, 413, "too_large"),
        ({}, {"url": "/v1/models", "headers": {"Host": "evil.example"}}, 421, "misdirected"),
        ({}, {"url": "/v1/models/house/predict", "method": "POST", "json": ONE}, 503, "not_ready"),
        ({"adaptation": True}, {"url": "/v1/models/house/adapt", "method": "POST", "json": TASK}, 503, "not_ready"),
        ({}, {"url": "/nothing"}, 404, None),
    ],
)
def test_what_may_not_or_cannot_be_asked_is_counted_once(settings, request_, status, reason, models, running):
    async def main() -> None:
        async with running(models=models, wait=False, **settings) as client:
            reply = await client.request(**{"method": "GET", **request_})
            assert (reply.status_code, rejected(client)) == (status, {reason: 1} if reason else {})

    asyncio.run(main())


def test_a_body_that_comes_too_slowly_is_counted(models, running):
    async def never():
        yield b"{"
        await asyncio.sleep(60)

    async def main() -> None:
        async with running(models=models, body_timeout=0.05) as client:
            reply = await client.post("/v1/models/house/predict", content=never())
            assert (reply.status_code, rejected(client)) == (408, {"too_slow": 1})

    asyncio.run(main())


def test_the_reasons_that_errors_name_are_known():
    named = {kind.reason for kind in ServiceError.__subclasses__()} - {None}
    assert len(named) >= 5
    assert named | {reason for _, reason in FULL} <= REASONS.keys()
