import asyncio
import threading
import time

import pytest

from app.background import Background


def test_it_gives_what_the_call_returns_and_raises():
    async def main():
        background = Background()
        assert await background.run(pow, 2, 5) == 32
        with pytest.raises(ZeroDivisionError):
            await background.run(divmod, 1, 0)
        assert threading.current_thread() is not await background.run(threading.current_thread)

    asyncio.run(main())


def test_a_call_that_is_not_waited_for_any_more_is_left_behind():
    release = threading.Event()

    async def main():
        background = Background()
        waiting = asyncio.create_task(background.run(release.wait))
        await asyncio.sleep(0.05)
        assert background.busy
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return background

    # The loop ends although the call has not.
    background = asyncio.run(main())
    assert background.busy
    release.set()
    end = time.monotonic() + 10
    while background.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert not background.busy
