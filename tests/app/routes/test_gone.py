"""A client that goes away."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import ClientGone
from app.routes.gone import unless_gone


class Client:
    """What a request receives once its body has come."""

    def __init__(self, error: Exception | None = None) -> None:
        self.left = asyncio.Event()
        self._error = error
        self._first = True

    async def receive(self):
        if self._error:
            raise self._error
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_answer_is_given_and_nothing_is_left_behind():
    async def main():
        before = asyncio.all_tasks()
        client = Client()
        assert await unless_gone(client.receive, asyncio.sleep(0.001, 5)) == 5
        with pytest.raises(ZeroDivisionError):
            await unless_gone(client.receive, fails())
        await settle()
        assert asyncio.all_tasks() == before

    async def fails():
        await asyncio.sleep(0)
        return 1 / 0

    asyncio.run(main())


def test_a_client_that_leaves_takes_its_request_back():
    async def main():
        client, future = Client(), asyncio.get_running_loop().create_future()
        task = asyncio.create_task(unless_gone(client.receive, wait(future)))
        await settle()
        assert not task.done()
        client.left.set()
        with pytest.raises(ClientGone):
            await task
        assert future.cancelled()
        assert task.cancelling() == 0

    async def wait(future):
        return await future

    asyncio.run(main())


def test_whoever_else_cancels_it_is_not_taken_for_the_client():
    async def main():
        client = Client()
        task = asyncio.create_task(unless_gone(client.receive, asyncio.sleep(60)))
        await settle()
        # Both in one moment.
        task.cancel()
        client.left.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_connection_that_cannot_be_watched_does_not_stop_the_answer(caplog):
    async def main():
        return await unless_gone(Client(OSError("broken")).receive, asyncio.sleep(0.01, 5))

    assert asyncio.run(main()) == 5
    assert "it cannot be seen" in caplog.text
