"""The one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
import weakref

import pytest
import torch

from app.engine import DeviceError, Engine, EngineClosed, pick_device


def test_calls_run_on_one_thread_one_after_the_other():
    now = most = 0

    def call(number: int):
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.001)
        now -= 1
        return number, threading.get_ident()

    async def main():
        engine = Engine()
        answers = await asyncio.gather(*(engine.run(call, n) for n in range(20)))
        engine.close()
        return answers

    answers = asyncio.run(main())
    assert [number for number, _ in answers] == list(range(20))
    threads = {thread for _, thread in answers}
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert most == 1


def test_the_loop_goes_on_while_a_call_runs():
    async def main():
        engine, end = Engine(), threading.Event()
        running = asyncio.create_task(engine.run(end.wait, 30))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not running.done()
        end.set()
        assert await running
        engine.close()

    asyncio.run(main())


def test_what_a_call_raises_reaches_who_waits_and_the_thread_goes_on():
    async def main():
        engine = Engine()
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda: 1 / 0)
        assert await engine.run(lambda: 5) == 5
        engine.close()

    asyncio.run(main())


class Unusual(BaseException):
    pass


@pytest.mark.parametrize(
    "kind",
    [SystemExit, KeyboardInterrupt, asyncio.CancelledError, concurrent.futures.CancelledError, StopIteration, Unusual],
)
def test_what_would_end_an_event_loop_is_an_ordinary_error(kind):
    def call():
        raise kind

    async def main():
        engine = Engine()
        with pytest.raises(RuntimeError, match=f"a call of the engine raised {kind.__name__}") as raised:
            await engine.run(call)
        assert isinstance(raised.value.__cause__, kind)
        assert await engine.run(lambda: 5) == 5
        assert engine.close()

    asyncio.run(main())


def test_a_call_that_nobody_waits_for_any_more_is_not_begun():
    made = []

    async def main():
        engine, end = Engine(), threading.Event()
        running = asyncio.create_task(engine.run(end.wait, 30))
        gone = asyncio.create_task(engine.run(made.append, "gone"))
        stays = asyncio.create_task(engine.run(made.append, "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        end.set()
        await asyncio.gather(running, stays)
        assert engine.close()

    asyncio.run(main())
    assert made == ["stays"]


def test_a_call_that_takes_too_long_is_seen_and_so_is_its_return(caplog):
    async def main():
        engine, end, before = Engine(), threading.Event(), threading.Event()
        assert not engine.busy
        # What it waits for, loading for one, is no fault of its own.
        waits = asyncio.create_task(engine.run(before.wait, 30))
        slow = asyncio.create_task(engine.run(end.wait, 30, bound=0.02))
        await asyncio.sleep(0.05)
        assert engine.busy
        assert not engine.overdue
        before.set()
        await waits
        while not caplog.records:
            await asyncio.sleep(0.005)
        assert engine.overdue
        end.set()
        assert await slow
        assert not engine.overdue
        assert await engine.run(lambda: 5, bound=30) == 5
        assert engine.close()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "the engine's call takes longer than 0.02 s; the service is not alive",
        "the engine's call has come back",
    ]


def test_a_close_leaves_a_call_behind_that_does_not_end_and_refuses_the_others():
    end = threading.Event()

    async def main():
        engine = Engine()
        hangs = asyncio.create_task(engine.run(end.wait, 30))
        waits = asyncio.create_task(engine.run(lambda: 5))
        await asyncio.sleep(0.01)
        assert not engine.close(0.01)
        assert engine.busy
        with pytest.raises(EngineClosed):
            await waits
        with pytest.raises(EngineClosed):
            await engine.run(lambda: 5)
        hangs.cancel()

    asyncio.run(main())
    # Its answer comes to a loop that has ended.
    end.set()


def test_one_that_was_never_used_has_no_thread_and_closes_at_once():
    before = threading.active_count()
    engine = Engine()
    assert threading.active_count() == before
    assert engine.close(0)
    with pytest.raises(EngineClosed):
        asyncio.run(engine.run(lambda: 5))


def test_nothing_of_a_call_is_kept():
    class Large:
        pass

    async def main():
        engine = Engine()
        large = Large()
        watched = weakref.ref(large)
        await engine.run(id, large)
        del large
        # Another call makes sure that the thread has come round.
        await engine.run(id, 0)
        gc.collect()
        assert watched() is None
        assert engine.close()

    asyncio.run(main())


def test_no_gradients_and_as_many_threads_as_the_settings_say():
    async def main():
        engine = Engine(threads=1)
        try:
            return await engine.run(lambda: (torch.is_grad_enabled(), torch.get_num_threads()))
        finally:
            engine.close()

    assert asyncio.run(main()) == (False, 1)
    assert torch.is_grad_enabled()


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("setting", ["cuda:99", "cuda:999"])
def test_a_device_that_is_not_there_is_refused_with_the_cure(setting):
    with pytest.raises(DeviceError, match=rf"device '{setting}' is not there: .*use --device cpu or auto"):
        pick_device(setting)


@pytest.mark.parametrize("setting", ["", "gpu", "meta", "cuda:x", "cpu:0"])
def test_what_is_no_device_is_refused(setting):
    with pytest.raises(DeviceError, match=r"must be cpu, cuda, cuda:N or auto"):
        pick_device(setting)


@pytest.mark.cuda
def test_cuda_is_there():
    assert pick_device("cuda").type == "cuda"
