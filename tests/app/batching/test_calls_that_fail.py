"""One request's fault is its own, and where memory runs out calls become smaller."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from app.batching import Batcher, Outcome, OutOfMemory
from app.errors import Unavailable
from tests.app.batching.bench import Bench, Model, Seen, double, rows


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


@pytest.mark.parametrize("memory", [1, 2, 4])
def test_rows_that_go_again_are_not_counted_as_leaving_the_queue_twice(memory):
    async def main():
        bench = Bench()
        bench.engine.memory = memory
        counted = []
        made = bench.engine.make

        def make(call):
            standing = sum(bucket.rows for bucket in bench.batcher._line._buckets.values())
            counted.append((bench.batcher.queued_rows, standing))
            return made(call)

        bench.batcher._make = make
        asked = [bench.ask(*range(20)), bench.ask(1, -1, 3, 4, 5, 6)]
        answer, error = await bench.finish(*asked)
        assert double(answer) == [2 * n for n in range(20)]
        assert isinstance(error, ArithmeticError)
        # What is put together for the next call has left the line, but waits still.
        assert all(rows >= standing for rows, standing in counted)
        assert max(standing for _, standing in counted) > 8

    asyncio.run(main())


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
