"""What is merged, in which order, and how what is too large goes in pieces."""

from __future__ import annotations

import asyncio

import pytest

from app.batching.turn import Turn
from tests.app.batching.bench import Bench, double


def test_an_idle_batcher_answers_at_once():
    async def main():
        bench = Bench()
        (answer,) = await bench.finish(bench.ask(3, 4))
        assert double(answer) == [6, 8]
        assert (answer.members, answer.non_finite_rows) == (None, ())
        assert answer.queued >= 0
        assert answer.computed > 0
        assert bench.engine.rows == [[3, 4]]

    asyncio.run(main())


def test_requests_that_wait_are_merged_up_to_the_largest_batch_in_the_order_in_which_they_came():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(2, 3), bench.ask(4), bench.ask(5, 6), bench.ask(7)]
        await bench.settle()
        answers = await bench.finish(first, *waiting)
        assert bench.engine.rows == [[0], [1, 2, 3, 4], [5, 6, 7]]
        assert [double(a) for a in answers] == [[0], [2], [4, 6], [8], [10, 12], [14]]

    asyncio.run(main())


def test_requests_that_come_in_the_same_moment_share_the_first_call():
    async def main():
        bench = Bench()
        await bench.finish(bench.ask(1), bench.ask(2), bench.ask(3))
        assert bench.engine.rows == [[1, 2, 3]]

    asyncio.run(main())


def test_while_a_call_runs_the_next_is_put_together_and_requests_join_it_until_it_is_taken():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = []
        for value in range(1, 6):
            waiting.append(bench.ask(value))
            await bench.settle()
        (_, turn) = bench.batcher._turns
        # One array already, not one for each request.
        assert turn._buffers["x"][:4, 0].tolist() == [1, 2, 3, 4]
        answers = await bench.finish(first, *waiting)
        assert bench.engine.rows == [[0], [1, 2, 3, 4], [5]]
        assert [double(a) for a in answers] == [[0], [2], [4], [6], [8], [10]]

    asyncio.run(main())


def test_a_turn_that_is_taken_just_before_a_request_joins_it_leaves_the_request_whole(monkeypatch):
    async def main():
        bench = Bench(max_rows=4)
        first, second = await bench.busy(), bench.ask(1)
        await bench.settle()
        with monkeypatch.context() as patched:
            patched.setattr(Turn, "join", lambda *_: False)
            third = bench.ask(2, 3)
            await bench.settle()
        answers = await bench.finish(first, second, third)
        assert bench.engine.rows == [[0], [1], [2, 3]]
        assert double(answers[2]) == [4, 6]

    asyncio.run(main())


def test_rows_too_large_for_a_whole_buffer_are_joined_in_one_that_grows():
    async def main():
        bench = Bench(max_rows=64)
        width = 2**20
        first = await bench.busy()
        waiting = []
        for value in range(1, 6):
            waiting.append(bench.ask(value, width=width))
            await bench.settle()
        assert bench.batcher._turns[1]._capacity == 10
        answers = await bench.finish(first, *waiting)
        assert bench.engine.rows == [[0], [1, 2, 3, 4, 5]]
        assert [a.arrays["double"].sum() for a in answers[1:]] == [2 * n * width for n in range(1, 6)]

    asyncio.run(main())


def test_only_requests_for_one_target_one_shape_and_the_same_members_share_a_call():
    async def main():
        bench = Bench(max_rows=10)
        first = await bench.busy()
        waiting = [
            bench.ask(1),
            bench.ask(2, target="b"),
            bench.ask(3, width=2),
            bench.ask(4),
            bench.ask(5, members=3),
            bench.ask(6, tolerance=0.5),
            bench.ask(7, width=2),
            bench.ask(8, members=3),
            bench.ask(9, tolerance=0.25),
        ]
        await bench.settle()
        answers = await bench.finish(first, *waiting)
        assert [
            (c.target.name, r, c.question.members, c.question.tolerance)
            for c, r in zip(bench.engine.made, bench.engine.rows, strict=True)
        ][1:] == [
            ("a", [1, 4], None, None),
            ("b", [2], None, None),
            ("a", [3, 7], None, None),
            ("a", [5, 8], 3, None),
            ("a", [6], None, 0.5),
            ("a", [9], None, 0.25),
        ]
        assert [a.members for a in answers[1:]] == [None, None, None, None, 3, 6, None, 3, 9]
        assert bench.seen.members == [None, None, None, None, 3, 6, 9]

    asyncio.run(main())


def test_a_call_says_which_rows_belong_to_what_each_request_brought():
    async def main():
        bench = Bench(max_rows=3)
        first = await bench.busy()
        waiting = [bench.ask(1, own="p"), bench.ask(2), bench.ask(3, 4, own="q"), bench.ask(5, 6, 7, 8, own="r")]
        await bench.settle()
        answers = await bench.finish(first, *waiting)
        made = [(rows, call.owners) for call, rows in zip(bench.engine.made, bench.engine.rows, strict=True)]
        assert made == [
            ([0], ()),
            ([1, 3, 4], (("p", 1), ("q", 2))),
            ([2], ()),
            ([5, 6, 7], (("r", 3),)),
            ([8], (("r", 1),)),
        ]
        assert [double(answer) for answer in answers[1:]] == [[2], [4], [6, 8], [10, 12, 14, 16]]

    asyncio.run(main())


def test_of_a_call_with_a_tolerance_each_request_is_told_what_its_own_rows_needed():
    async def main():
        bench = Bench(max_rows=10)
        answers = await bench.finish(bench.ask(5, 9, tolerance=0.5), bench.ask(3, tolerance=0.5))
        assert bench.engine.rows == [[5, 9, 3]]
        assert [a.members for a in answers] == [9, 3]
        assert bench.seen.members == [9]

    asyncio.run(main())


def test_the_bucket_whose_first_request_waits_longest_is_next_so_that_none_starves():
    async def main():
        bench = Bench(max_rows=1)
        first = await bench.busy()
        crowd = [bench.ask(n) for n in range(1, 4)]
        await bench.settle()
        lonely = bench.ask(9, target="b")
        await bench.settle()
        later = [bench.ask(n) for n in range(4, 7)]
        await bench.settle()
        await bench.finish(first, lonely, *crowd, *later)
        assert bench.engine.rows == [[0], [1], [2], [3], [9], [4], [5], [6]]

    asyncio.run(main())


def test_a_call_makes_every_output_that_some_request_wants_and_each_gets_its_own():
    async def main():
        bench = Bench()
        first = await bench.busy()
        one, two = bench.ask(3, outputs=("square",)), bench.ask(4, outputs=("double", "target"))
        await bench.settle()
        await bench.finish(first, one, two)
        assert sorted(bench.engine.made[1].outputs) == ["double", "square", "target"]
        assert set(one.result().arrays) == {"square"}
        assert set(two.result().arrays) == {"double", "target"}

    asyncio.run(main())


def test_a_large_request_goes_in_pieces_and_others_get_their_turn_between_them():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        large = bench.ask(*range(1, 11))
        await bench.settle()
        others = [bench.ask(21, 22), bench.ask(23, target="b")]
        await bench.settle()
        answers = await bench.finish(first, large, *others)
        assert bench.engine.rows == [[0], [1, 2, 3, 4], [21, 22, 5, 6], [23], [7, 8, 9, 10]]
        assert [double(a) for a in answers] == [[0], [2 * n for n in range(1, 11)], [42, 44], [46]]
        assert bench.seen.calls == [("a", 1, 1), ("a", 4, 1), ("a", 4, 2), ("b", 1, 1), ("a", 4, 1)]

    asyncio.run(main())


def test_a_request_in_pieces_is_joined_in_the_order_of_its_rows():
    async def main():
        bench = Bench(max_rows=4)
        values = [3.0, 0.0, 5.0, 6.0, 0.0, 8.0, 9.0, 10.0, 0.0]
        (answer,) = await bench.finish(bench.ask(*values, outputs=("double", "inverse"), tolerance=0.1))
        assert double(answer) == [2 * v for v in values]
        assert answer.non_finite_rows == (1, 4, 8)
        assert answer.members == 10
        assert answer.queued >= 0
        assert answer.computed > 0

    asyncio.run(main())


def test_a_request_in_pieces_of_which_one_fails_is_answered_once_and_the_rest_is_not_computed():
    async def main():
        bench = Bench(max_rows=2)
        first = await bench.busy()
        large, other = bench.ask(1, 2, -1, 3, *range(4, 20)), bench.ask(5)
        await bench.settle()
        answers = await bench.finish(first, large, other)
        assert isinstance(answers[1], ArithmeticError)
        assert double(answers[2]) == [10]
        # The piece after the one that failed may have been taken already.
        assert len(bench.engine.made) <= 6

    asyncio.run(main())


@pytest.mark.parametrize(("beside", "calls"), [(True, [[9], [1], [2]]), (False, [[9], [1, 2]])])
def test_where_a_call_would_only_hold_up_the_event_loop_it_waits_for_what_follows_the_answers(beside, calls):
    async def main():
        bench = Bench(beside=beside)
        first = await bench.busy(9)

        async def who_was_answered_and_asks_again():
            assert double(await first) == [18]
            return await bench.ask(2)

        again = asyncio.create_task(who_was_answered_and_asks_again())
        waits = bench.ask(1)
        await bench.settle()
        assert [double(answer) for answer in await bench.finish(waits, again)] == [[2], [4]]
        assert bench.engine.rows == calls

    asyncio.run(main())


def test_without_a_processor_to_spare_nobody_waits_for_those_who_do_not_come():
    async def main():
        bench = Bench(beside=False)
        for number in range(3):
            assert double(await bench.ask(number)) == [2 * number]
        first = await bench.busy(5)
        urgent = [bench.ask(6), bench.ask(7, target="b"), bench.ask(8, timeout=60)]
        gone = bench.ask(9)
        await bench.settle()
        gone.cancel()
        answers = await bench.finish(first, *urgent)
        assert [double(answer) for answer in answers] == [[10], [12], [14], [16]]
        assert bench.engine.rows[3:] == [[5], [6, 8], [7]]

    asyncio.run(main())


def test_requests_that_do_not_fill_a_call_wait_for_others_as_long_as_they_may():
    async def main():
        bench = Bench(max_rows=3, max_delay=0.05)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        one = bench.ask(1)
        await asyncio.sleep(0.02)
        two = bench.ask(2)
        await asyncio.gather(one, two)
        assert bench.engine.rows == [[1, 2]]
        # It counts from the first, though a second came.
        assert loop.time() - begun >= 0.049
        # A full call does not wait, nor does another bucket make it wait.
        waits = bench.ask(9, target="b")
        await asyncio.gather(*(bench.ask(n) for n in range(3, 6)))
        assert not waits.done()
        assert bench.engine.rows[1:] == [[3, 4, 5]]
        # Nothing waits when the service is to stop.
        await bench.finish(waits)
        assert bench.engine.rows[2:] == [[9]]

    asyncio.run(main())
