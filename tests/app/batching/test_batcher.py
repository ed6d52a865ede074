"""How the batcher begins and ends, and that nothing which goes wrong around it leaves anybody waiting."""

from __future__ import annotations

import asyncio

import pytest

from app.batching import Answer, Batcher
from app.errors import DeadlineExceeded, TooManyRequests, Unavailable
from tests.app.batching.bench import Bench, Model, Seen, double, rows


class Furious(Seen):
    def batch_done(self, *_, **__):
        raise OSError("no")

    queue_changed = refused = batch_done


def test_an_observer_that_raises_changes_nothing(caplog):
    async def main():
        bench = Bench(max_queued_rows=2)
        bench.batcher._ledger.observer = Furious()
        first = await bench.busy()
        waiting = [bench.ask(1, 2), bench.ask(3), bench.ask(4, timeout=-1)]
        gone = bench.ask(5)
        await bench.settle()
        gone.cancel()
        bench.engine.free.set()
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(a) for a in answers] == [Answer, Answer, TooManyRequests, DeadlineExceeded]
        await bench.batcher.close()

    asyncio.run(main())
    assert {record.getMessage() for record in caplog.records} == {"the observer of the batcher raised"}


@pytest.mark.parametrize("error", [RuntimeError("the engine has ended"), asyncio.CancelledError(), None])
def test_an_engine_that_takes_no_calls_leaves_nobody_waiting(error):
    async def main():
        bench = Bench()
        works = bench.batcher._execute

        async def refuse(*_):
            if error is not None:
                raise error

        bench.batcher._execute = refuse
        answers = await asyncio.gather(bench.ask(1), bench.ask(2), bench.ask(3, target="b"), return_exceptions=True)
        assert [type(a) for a in answers] == [Unavailable] * 3
        bench.batcher._execute = works
        assert double(await bench.ask(4)) == [8]
        await bench.finish()

    asyncio.run(main())


def test_when_the_engine_is_stuck_what_was_to_go_again_is_given_up_too():
    async def main():
        bench = Bench()
        first = await bench.busy(5)
        failing = [bench.ask(-1) for _ in range(4)]
        await bench.settle()
        hanging = bench.ask(6, target="b")
        await bench.settle()
        made = bench.engine.make

        def make(call):
            if call.target.name == "b":
                bench.engine.free.clear()
            return made(call)

        bench.batcher._make = make
        bench.engine.free.set()
        # The call of four fails, and while another model's hangs, one of its halves is next and the other is not.
        while len(bench.engine.made) < 3:
            await asyncio.sleep(0)
        await bench.settle()
        assert bench.engine.rows == [[5], [-1] * 4, [6]]
        bench.batcher.give_up_waiting(Unavailable("stuck"), "stuck")
        await bench.settle()
        assert [type(task.exception()) for task in failing] == [Unavailable] * 4
        assert bench.seen.reasons == [("a", "stuck")] * 4
        assert [double(answer) for answer in await bench.finish(first, hanging)] == [[10], [12]]
        assert len(bench.engine.made) == 3

    asyncio.run(main())


def test_an_event_loop_that_ends_leaves_nobody_waiting():
    async def main():
        bench = Bench()
        first = await bench.busy()
        waiting = bench.ask(1)
        await bench.settle()
        for task in list(bench.batcher._tasks):
            task.cancel()
        answers = await asyncio.gather(first, waiting, return_exceptions=True)
        assert [type(a) for a in answers] == [Unavailable] * 2
        with pytest.raises(Unavailable):
            await bench.ask(2)

    asyncio.run(main())


def test_close_finishes_what_was_accepted_and_refuses_what_is_new():
    async def main():
        bench = Bench(max_rows=2)
        first = await bench.busy()
        waiting = [bench.ask(n) for n in range(1, 6)]
        await bench.settle()
        closing = asyncio.create_task(bench.batcher.close())
        await bench.settle()
        with pytest.raises(Unavailable, match=r"shutting down"):
            await bench.ask(9)
        assert bench.seen.reasons == [("a", "draining")]
        assert not closing.done()
        answers = await bench.finish(first, *waiting)
        assert [double(a) for a in answers] == [[0], [2], [4], [6], [8], [10]]
        await closing

    asyncio.run(main())


def test_an_idle_batcher_closes_at_once():
    async def main():
        bench = Bench()
        await bench.settle()
        await asyncio.wait_for(bench.batcher.close(), 5)

    asyncio.run(main())


def test_one_that_never_began_refuses_what_waits_when_it_is_closed():
    async def main():
        batcher = Batcher(None, None, max_queued_rows=10, observer=Seen())
        waiting = [asyncio.create_task(batcher.submit(Model(), rows(n), ("double",), 1)) for n in range(3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(batcher.close(), 5)
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [Unavailable] * 3

    asyncio.run(main())


def test_the_observer_is_told_of_each_call_and_of_the_queue():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(2, 3)]
        await bench.settle()
        await bench.finish(first, *waiting)
        assert bench.seen.calls == [("a", 1, 1), ("a", 3, 2)]
        assert bench.seen.queued == [(1, 1), (0, 0), (1, 1), (3, 2), (0, 0)]
        assert len(bench.seen.waits) == 3
        assert min(bench.seen.waits) >= 0
        assert bench.seen.reasons == []

    asyncio.run(main())


def test_a_model_that_is_served_no_more_is_not_kept():
    async def main():
        bench = Bench()
        model = bench.models.pop("a")
        await bench.batcher.submit(model, rows(1), ("double",), 1)
        bench.engine.made.clear()
        await bench.settle()
        del model
        assert len(bench.batcher._ledger._paces) == 0
        await bench.finish()

    asyncio.run(main())
