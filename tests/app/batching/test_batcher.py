"""The batcher: what is merged, in which order, and that one request's fault is its own."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from app.batching import Answer, Batcher, Outcome, OutOfMemory
from app.batching.turn import Turn
from app.errors import DeadlineExceeded, TooManyRequests, Unavailable
from tests.app.batching.bench import Bench, Model, Seen, double, rows


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


@pytest.mark.parametrize("culprit", range(7))
def test_only_the_request_at_fault_gets_the_error(culprit):
    async def main():
        bench = Bench(max_rows=7)
        first = await bench.busy()
        values = [float(n) for n in range(1, 8)]
        values[culprit] = -1
        waiting = [bench.ask(value) for value in values]
        await bench.settle()
        later = bench.ask(5)
        answers = await bench.finish(first, *waiting, later)
        for value, answer in zip(values, answers[1:], strict=False):
            if value == -1:
                assert isinstance(answer, ArithmeticError)
            else:
                assert double(answer) == [2 * value]
        # In halves: far fewer calls than one for each request.
        assert len(bench.engine.made) <= 1 + 7 + 1
        assert double(later.result()) == [10]

    asyncio.run(main())


def broken(make) -> list[object]:
    """What three requests get whose calls are made like this, and a fourth once they are made well."""

    async def main():
        made = make

        async def execute(call, *args):
            await asyncio.sleep(0)
            return call(*args)

        batcher = Batcher(execute, lambda call: made(call), max_queued_rows=10, observer=Seen())
        batcher.start()
        model = Model()
        answers = await asyncio.gather(
            *(batcher.submit(model, rows(n), ("double",), 1) for n in range(3)), return_exceptions=True
        )
        made = lambda call: Outcome({"double": call.inputs["x"] * 2})  # noqa: E731 - it takes the other's place
        assert double(await batcher.submit(model, rows(4), ("double",), 1)) == [8]
        await batcher.close()
        return answers

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda call: Outcome({}), KeyError),
        (lambda call: Outcome({"double": np.zeros((call.rows + 1, 1))}), ValueError),
        (lambda call: Outcome({"double": np.zeros(())}), TypeError),
        (lambda call: 5, AttributeError),
        (lambda call: 1 / 0, ZeroDivisionError),
    ],
)
def test_calls_that_give_nonsense_are_errors_and_no_hang_and_the_batcher_goes_on(make, kind):
    assert [type(answer) for answer in broken(make)] == [kind] * 3


def test_an_outcome_that_cannot_be_split_is_an_error_of_whom_it_concerns():
    class Sly(dict):
        def items(self):
            raise LookupError("not for you")

    answers = broken(lambda call: Outcome({"double": call.inputs["x"]}, None, Sly()))
    assert [type(answer) for answer in answers] == [LookupError] * 3


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


def test_where_memory_runs_out_calls_are_halved_once_and_for_the_time_after(caplog):
    async def main():
        bench = Bench(max_rows=8)
        bench.engine.memory = 4
        first = await bench.busy()
        waiting = [bench.ask(n) for n in range(1, 9)]
        await bench.settle()
        answers = await bench.finish(first, *waiting)
        assert bench.engine.rows == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
        assert [double(a) for a in answers] == [[2 * n] for n in range(9)]
        assert bench.models["a"].max_batch == 4
        assert bench.models["b"].max_batch == 8
        return bench

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [r.getMessage() for r in caplog.records] == [
        "memory does not suffice for 8 rows at once; from now on it is 4 at most"
    ]

    async def after():
        bench = Bench(max_rows=8)
        bench.engine.memory = 4
        await bench.ask(*range(8))
        bench.engine.made.clear()
        await bench.finish(*[bench.ask(n) for n in range(8)])
        assert [len(r) for r in bench.engine.rows] == [4, 4]

    asyncio.run(after())


def test_a_request_too_large_for_memory_is_cut_and_one_row_that_does_not_fit_is_told_so():
    async def main():
        bench = Bench(max_rows=8)
        bench.engine.memory = 3
        (answer,) = await asyncio.gather(bench.ask(*range(7)))
        assert double(answer) == [2 * n for n in range(7)]
        assert bench.models["a"].max_batch == 3
        bench.engine.memory = 0
        answers = await bench.finish(bench.ask(1), bench.ask(2))
        assert [type(a) for a in answers] == [Unavailable] * 2
        assert "not enough memory" in answers[0].message
        assert isinstance(answers[0].__cause__, OutOfMemory)
        assert bench.models["a"].max_batch == 1

    asyncio.run(main())


def test_rows_that_are_no_numbers_are_told_to_those_who_asked_for_them_alone():
    async def main():
        bench = Bench(max_rows=10)
        asked = [bench.ask(1, 0, 2, outputs=("double", "inverse")), bench.ask(3, outputs=("inverse",)), bench.ask(0)]
        answers = await bench.finish(*asked)
        assert len(bench.engine.made) == 1
        assert [a.non_finite_rows for a in answers] == [(1,), (), ()]

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


def test_rows_that_cannot_be_joined_are_found_out_one_by_one(monkeypatch):
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()

        def refuse(*_, **__):
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(np, "empty", refuse)
            patched.setattr(np, "concatenate", refuse)
            waiting = [bench.ask(n) for n in range(1, 4)]
            await bench.settle()
            bench.engine.free.set()
            answers = await asyncio.gather(first, *waiting)
        assert [double(a) for a in answers] == [[0], [2], [4], [6]]
        assert bench.engine.rows == [[0], [1], [2], [3]]
        await bench.finish()

    asyncio.run(main())


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
