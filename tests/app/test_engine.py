"""The one thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch

from app.engine import DeviceError, Engine, pick_device


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
