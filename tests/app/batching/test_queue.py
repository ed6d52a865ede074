"""Who is refused, who has gone, whose time has passed, and who is more urgent."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import DeadlineExceeded, TooManyRequests
from tests.app.batching.bench import Bench, double


def test_the_queue_is_bounded_in_rows_and_what_is_refused_is_told_when_to_come_back():
    async def main():
        bench = Bench(max_rows=4, max_queued_rows=6)
        first = await bench.busy()
        waiting = [bench.ask(1, 2, 3), bench.ask(4, 5)]
        await bench.settle()
        with pytest.raises(TooManyRequests, match=r"5 rows are waiting and the limit is 6") as refused:
            await bench.ask(6, 7)
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert bench.seen.reasons == [("a", "queue_full")]
        waiting.append(bench.ask(8))
        await bench.settle()
        bench.engine.free.set()
        await asyncio.gather(first, *waiting)
        assert double(await bench.ask(6, 7)) == [12, 14]
        await bench.finish()

    asyncio.run(main())


def test_the_time_to_come_back_is_that_of_the_rows_that_wait_and_of_those_that_run():
    async def main():
        bench = Bench(max_rows=4, max_queued_rows=6)
        await bench.ask(1)
        bench.batcher._ledger.pace(bench.models["a"]).seconds = 10.0
        bench.batcher._ledger._paces.setdefault(
            bench.models["b"], type(bench.batcher._ledger._paces[bench.models["a"]])()
        ).seconds = 3.0
        first = await bench.busy(1, 2)
        waiting = [bench.ask(3, 4, 5), bench.ask(6, 7, target="b")]
        await bench.settle()
        with pytest.raises(TooManyRequests) as refused:
            await bench.ask(6, 7)
        # 3 × 10 s and 2 × 3 s wait, and of 2 × 10 s hardly anything has passed.
        assert int(refused.value.headers["Retry-After"]) == 56
        await bench.finish(first, *waiting)

    asyncio.run(main())


def test_a_request_alone_is_taken_whatever_its_size():
    async def main():
        bench = Bench(max_queued_rows=2)
        (answer,) = await bench.finish(bench.ask(*range(50)))
        assert double(answer) == [2 * n for n in range(50)]

    asyncio.run(main())


def test_nobody_computes_for_a_client_that_has_gone():
    async def main():
        bench = Bench(max_rows=10)
        first = await bench.busy()
        gone, stays, leaves = bench.ask(1), bench.ask(2), bench.ask(3)
        alone = bench.ask(4, target="b")
        await bench.settle()
        assert bench.seen.queued[-1] == (4, 4)
        for task in (gone, alone, leaves):
            task.cancel()
        await bench.settle()
        assert bench.seen.queued[-1] == (1, 1)
        answers = await bench.finish(first, stays)
        assert double(answers[1]) == [4]
        assert bench.engine.rows == [[0], [2]]
        assert bench.seen.reasons == [("a", "gone"), ("b", "gone"), ("a", "gone")]

    asyncio.run(main())


def test_a_client_that_goes_while_its_call_runs_harms_nobody():
    async def main():
        bench = Bench()
        gone = await bench.busy(-1)
        gone.cancel()
        await bench.settle()
        bench.engine.free.set()
        assert double(await bench.ask(2)) == [4]
        await bench.finish()

    asyncio.run(main())


def test_what_is_past_its_deadline_is_told_so_at_once_and_never_computed():
    async def main():
        bench = Bench(max_rows=1)
        first = await bench.busy()
        # The next call holds the first of them; the others stand in line.
        late = [bench.ask(n, timeout=0.01) for n in (1, 2, 3)]
        stays = bench.ask(4, timeout=60)
        answers = await asyncio.gather(*late, return_exceptions=True)
        assert not first.done()
        assert [type(a) for a in answers] == [DeadlineExceeded] * 3
        assert answers[0].status == 504
        assert bench.seen.queued[-1] == (1, 1)
        answers = await bench.finish(first, stays)
        assert double(answers[1]) == [8]
        assert bench.engine.rows == [[0], [4]]
        assert bench.seen.reasons == [("a", "deadline")] * 3

    asyncio.run(main())


def test_a_deadline_that_passes_before_the_event_loop_sees_it_holds_too():
    async def main():
        bench = Bench()
        first = await bench.busy()
        late, stays = bench.ask(1, timeout=60), bench.ask(2)
        await bench.settle()
        (job,) = (p.job for p in bench.batcher._turns[1].pieces if p.job.inputs["x"][0] == 1)
        job.deadline = job.queued_at
        answers = await bench.finish(first, late, stays)
        assert isinstance(answers[1], DeadlineExceeded)
        assert bench.engine.rows == [[0], [2]]
        assert bench.seen.reasons == [("a", "deadline")]

    asyncio.run(main())


def test_a_client_does_not_wait_for_a_call_longer_than_its_deadline():
    async def main():
        bench = Bench()
        bench.engine.free.clear()
        late, stays = bench.ask(1, timeout=0.02), bench.ask(2)
        with pytest.raises(DeadlineExceeded):
            await late
        answers = await bench.finish(stays)
        assert bench.engine.rows == [[1, 2]]
        assert double(answers[0]) == [4]

    asyncio.run(main())


def test_who_is_too_late_is_told_what_of_its_time_it_waited_and_what_was_computed():
    async def main():
        bench = Bench(max_rows=1)
        first = await bench.busy()
        waits = bench.ask(1, timeout=0.02)
        with pytest.raises(DeadlineExceeded) as waited:
            await waits
        queued, computed = waited.value.spent
        assert queued > 0
        assert computed == 0
        bench.engine.free.set()
        await first
        runs_too_long = await bench.busy(2)
        (turn,) = bench.batcher._turns
        (job,) = (piece.job for piece in turn.live)
        # As if it had waited for two seconds, and run for three since.
        job.queued_at, turn.begun = job.queued_at - 5, turn.begun - 3
        bench.batcher._leave(job, "deadline")
        with pytest.raises(DeadlineExceeded) as computing:
            await runs_too_long
        queued, computed = computing.value.spent
        assert queued == pytest.approx(turn.begun - job.queued_at)
        assert computed >= 3
        (late,) = await bench.finish(bench.ask(3, timeout=-1))
        assert late.spent is None

    asyncio.run(main())


def test_what_comes_after_its_deadline_is_refused():
    async def main():
        bench = Bench()
        late, answer = await bench.finish(bench.ask(1, timeout=-1), bench.ask(2))
        assert isinstance(late, DeadlineExceeded)
        assert double(answer) == [4]
        assert bench.engine.rows == [[2]]
        assert bench.seen.reasons == [("a", "deadline")]

    asyncio.run(main())


def test_the_more_urgent_goes_first_within_a_bucket_and_between_buckets():
    async def main():
        bench = Bench(max_rows=1)
        first = await bench.busy()
        waiting = [bench.ask(1, priority=-1), bench.ask(2), bench.ask(3, target="b"), bench.ask(4)]
        await bench.settle()
        waiting += [bench.ask(5, priority=2), bench.ask(6, priority=1, target="b")]
        await bench.settle()
        answers = await bench.finish(first, *waiting)
        assert bench.engine.rows == [[0], [5], [6], [2], [3], [4], [1]]
        assert [double(a) for a in answers[1:]] == [[2], [4], [6], [8], [10], [12]]

    asyncio.run(main())


def test_what_is_urgent_replaces_the_rows_of_a_call_that_is_put_together_but_not_taken():
    async def main():
        bench = Bench(max_rows=3)
        first = await bench.busy()
        large, small = bench.ask(*range(1, 6)), bench.ask(6, 7)
        await bench.settle()
        assert [p.rows for p in bench.batcher._turns[1].pieces] == [3]
        urgent = bench.ask(8, 9, priority=3)
        await bench.settle()
        answers = await bench.finish(first, large, small, urgent)
        assert bench.engine.rows == [[0], [8, 9, 1], [6, 7, 2], [3, 4, 5]]
        assert [double(a) for a in answers[1:]] == [[2, 4, 6, 8, 10], [12, 14], [16, 18]]

    asyncio.run(main())


def test_what_is_not_urgent_is_overtaken_only_by_what_came_within_its_head_start():
    async def main():
        bench = Bench(max_rows=1)
        first = await bench.busy()
        patient = bench.ask(1, priority=0)
        await bench.settle()
        next(iter(bench.batcher._turns[1].pieces)).job.queued_at -= 3.5
        # As if it had come 3.5 seconds before: three steps of priority do not pass it any more, four do.
        bench.batcher._turns[1].pieces[0].rank -= 3.5
        others = [bench.ask(2, priority=3), bench.ask(3, priority=4)]
        await bench.settle()
        await bench.finish(first, patient, *others)
        assert bench.engine.rows == [[0], [3], [1], [2]]

    asyncio.run(main())
