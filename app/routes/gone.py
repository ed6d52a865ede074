"""A client that goes away takes its request back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from app.errors import ClientGone

log = logging.getLogger("app.routes")

T = TypeVar("T")


async def unless_gone(receive: Receive, wait: Awaitable[T]) -> T:
    """Wait for something as long as the client is there.

    Args:
        receive: the request's, of which the whole body was received.
        wait: is cancelled if the client goes away.

    Raises:
        ClientGone: it went away.
    """
    waiting = asyncio.current_task()
    assert waiting is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:
            # Then the request is answered as if nobody watched.
            log.exception("it cannot be seen whether the client is still there")
            return
        gone = True
        waiting.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        return await wait
    except asyncio.CancelledError:
        # It may have been cancelled by someone else, too, who must see it.
        if gone and waiting.uncancel() == 0:
            raise ClientGone("the client went away before it was answered") from None
        raise
    finally:
        watcher.cancel()
