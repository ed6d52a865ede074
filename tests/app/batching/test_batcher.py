"""The batcher with calls whose beginning and end the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import Batcher
from app.errors import TooManyRequests, Unavailable


class Seen:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, int, int]] = []
        self.waits: list[float] = []
        self.computes: list[float] = []
        self.queued: list[int] = []

    def batch_done(self, target, rows, queued, compute):
        self.calls.append((target, rows, len(queued)))
        self.waits += queued
        self.computes.append(compute)

    def queue_changed(self, rows):
        self.queued.append(rows)


class Calls:
    """A run() that doubles, fails on rows that hold -1, and waits while it is held."""

    def __init__(self) -> None:
        self.made: list[tuple[str, list[float], list[str]]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.begun = asyncio.Event()
        self.most_at_once = self._now = 0

    async def __call__(self, target: str, inputs: Mapping[str, np.ndarray], outputs: Collection[str]) -> Any:
        x = inputs["x"]
        self.made.append((target, x[:, 0].tolist(), sorted(outputs)))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        self.begun.set()
        try:
            await self.free.wait()
            await asyncio.sleep(0)
            if (x == -1).any():
                raise ArithmeticError("a row is -1")
            every = {"double": x * 2, "square": x**2, "target": np.full(len(x), target)}
            return {name: every[name] for name in outputs}
        finally:
            self._now -= 1


def rows(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, dtype=np.float32)[:, None], width, axis=1)}


class Bench:
    """A batcher with its calls and its observer, on the running loop."""

    def __init__(self, max_rows: int = 4, max_queued_rows: int = 100) -> None:
        self.calls, self.seen = Calls(), Seen()
        self.batcher = Batcher(self.calls, max_rows=max_rows, max_queued_rows=max_queued_rows, observer=self.seen)
        self.batcher.start()

    def ask(self, *values: float, target: str = "a", outputs=("double",), width: int = 1) -> asyncio.Task[Any]:
        inputs = rows(*values, width=width)
        return asyncio.create_task(self.batcher.submit(target, inputs, outputs, len(values)))

    async def busy(self, *values: float, target: str = "a") -> asyncio.Task[Any]:
        """A call that runs until `calls.free` is set."""
        self.calls.free.clear()
        first = self.ask(*(values or (0,)), target=target)
        await self.calls.begun.wait()
        return first

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def test_an_idle_batcher_answers_at_once():
    async def main():
        bench = Bench()
        answer = await bench.ask(3, 4)
        assert answer.arrays["double"].tolist() == [[6], [8]]
        assert bench.calls.made == [("a", [3, 4], ["double"])]
        await bench.batcher.close()

    asyncio.run(main())


def test_requests_that_wait_are_merged_up_to_the_largest_batch_in_the_order_in_which_they_came():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(2, 3), bench.ask(4), bench.ask(5, 6), bench.ask(7)]
        await bench.settle()
        bench.calls.free.set()
        answers = await asyncio.gather(first, *waiting)
        assert [call[1] for call in bench.calls.made] == [[0], [1, 2, 3, 4], [5, 6, 7]]
        assert [a.arrays["double"][:, 0].tolist() for a in answers] == [[0], [2], [4, 6], [8], [10, 12], [14]]
        assert bench.calls.most_at_once == 1
        await bench.batcher.close()

    asyncio.run(main())


def test_requests_that_come_in_the_same_moment_share_the_first_call():
    async def main():
        bench = Bench()
        await asyncio.gather(bench.ask(1), bench.ask(2), bench.ask(3))
        assert [call[1] for call in bench.calls.made] == [[1, 2, 3]]
        await bench.batcher.close()

    asyncio.run(main())


def test_only_requests_for_one_target_and_one_shape_share_a_call():
    async def main():
        bench = Bench(max_rows=10)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(2, target="b"), bench.ask(3, width=2), bench.ask(4), bench.ask(5, width=2)]
        await bench.settle()
        bench.calls.free.set()
        await asyncio.gather(first, *waiting)
        assert [call[:2] for call in bench.calls.made[1:]] == [("a", [1, 4]), ("b", [2]), ("a", [3, 5])]
        await bench.batcher.close()

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
        bench.calls.free.set()
        await asyncio.gather(first, lonely, *crowd, *later)
        assert [call[1] for call in bench.calls.made] == [[0], [1], [2], [3], [9], [4], [5], [6]]
        await bench.batcher.close()

    asyncio.run(main())


def test_a_call_makes_every_output_that_some_request_wants_and_each_gets_its_own():
    async def main():
        bench = Bench()
        first = await bench.busy()
        one, two = bench.ask(3, outputs=("square",)), bench.ask(4, outputs=("double", "target"))
        await bench.settle()
        bench.calls.free.set()
        await first
        assert bench.calls.made[1][2] == ["double", "square", "target"]
        assert set((await one).arrays) == {"square"}
        assert set((await two).arrays) == {"double", "target"}
        await bench.batcher.close()

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
        bench.calls.free.set()
        await first
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        for value, answer in zip(values, answers, strict=True):
            if value == -1:
                assert isinstance(answer, ArithmeticError)
            else:
                assert answer.arrays["double"].tolist() == [[2 * value]]
        # In halves: far fewer calls than one for each request.
        assert len(bench.calls.made) <= 1 + 7
        assert (await bench.ask(5)).arrays["double"].tolist() == [[10]]
        await bench.batcher.close()

    asyncio.run(main())


def test_what_a_call_returns_too_little_of_is_an_error_and_not_a_hang():
    async def main():
        async def forgetful(target, inputs, outputs):
            return {}

        batcher = Batcher(forgetful, max_rows=4, max_queued_rows=10, observer=Seen())
        batcher.start()
        answers = await asyncio.gather(
            *(batcher.submit("a", rows(1), ("double",), 1) for _ in range(3)), return_exceptions=True
        )
        assert [type(a) for a in answers] == [KeyError] * 3
        await batcher.close()

    asyncio.run(main())


def test_a_request_larger_than_the_largest_batch_is_a_call_of_its_own():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(*range(2, 12)), bench.ask(12)]
        await bench.settle()
        bench.calls.free.set()
        await asyncio.gather(first, *waiting)
        assert [len(call[1]) for call in bench.calls.made] == [1, 1, 10, 1]
        await bench.batcher.close()

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
        waiting.append(bench.ask(8))
        await bench.settle()
        bench.calls.free.set()
        await asyncio.gather(first, *waiting)
        assert (await bench.ask(6, 7)).arrays["double"].tolist() == [[12], [14]]
        await bench.batcher.close()

    asyncio.run(main())


def test_a_request_alone_is_taken_whatever_its_size():
    async def main():
        bench = Bench(max_queued_rows=2)
        assert len((await bench.ask(*range(50))).arrays["double"]) == 50
        await bench.batcher.close()

    asyncio.run(main())


def test_nobody_computes_for_a_client_that_has_gone():
    async def main():
        bench = Bench(max_rows=10)
        first = await bench.busy()
        gone, stays = bench.ask(1), bench.ask(2)
        alone = bench.ask(3, target="b")
        await bench.settle()
        gone.cancel()
        alone.cancel()
        await bench.settle()
        bench.calls.free.set()
        assert (await stays).arrays["double"].tolist() == [[4]]
        await first
        await bench.batcher.close()
        assert [call[1] for call in bench.calls.made] == [[0], [2]]
        assert bench.seen.queued[-1] == 0

    asyncio.run(main())


def test_a_client_that_goes_while_its_call_runs_harms_nobody():
    async def main():
        bench = Bench()
        gone = await bench.busy(-1)
        gone.cancel()
        await bench.settle()
        bench.calls.free.set()
        assert (await bench.ask(2)).arrays["double"].tolist() == [[4]]
        await bench.batcher.close()

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
        assert not closing.done()
        bench.calls.free.set()
        answers = await asyncio.gather(first, *waiting)
        assert [a.arrays["double"].item() for a in answers] == [0, 2, 4, 6, 8, 10]
        await closing

    asyncio.run(main())


def test_an_idle_batcher_closes_at_once():
    async def main():
        bench = Bench()
        await bench.settle()
        await asyncio.wait_for(bench.batcher.close(), 5)

    asyncio.run(main())


def test_the_observer_is_told_of_each_call_and_of_the_queue():
    async def main():
        bench = Bench(max_rows=4)
        first = await bench.busy()
        waiting = [bench.ask(1), bench.ask(2, 3)]
        await bench.settle()
        bench.calls.free.set()
        await asyncio.gather(first, *waiting)
        await bench.batcher.close()
        assert bench.seen.calls == [("a", 1, 1), ("a", 3, 2)]
        assert bench.seen.queued == [1, 0, 1, 3, 0]
        assert len(bench.seen.waits) == 3
        assert min(bench.seen.waits) >= 0
        assert min(bench.seen.computes) > 0

    asyncio.run(main())


REQUESTS = st.tuples(
    st.sampled_from("ab"),
    st.lists(st.sampled_from([-1.0, 1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=6),
    st.integers(1, 2),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=60)
@given(st.lists(REQUESTS, max_size=14), st.integers(1, 6))
def test_every_request_of_any_sequence_gets_exactly_one_answer_and_the_right_one(requests, max_rows):
    async def main():
        bench = Bench(max_rows=max_rows, max_queued_rows=1000)
        tasks = []
        for target, values, width, pause, gives_up in requests:
            task = bench.ask(*values, target=target, width=width, outputs=("double", "target"))
            for _ in range(pause):
                await asyncio.sleep(0)
            if gives_up:
                task.cancel()
            tasks.append(task)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await bench.batcher.close()
        for (target, values, width, _, gives_up), answer in zip(requests, answers, strict=True):
            if gives_up and isinstance(answer, asyncio.CancelledError):
                continue
            if -1 in values:
                assert isinstance(answer, ArithmeticError)
                continue
            assert answer.arrays["double"].tolist() == [[2 * value] * width for value in values]
            assert answer.arrays["target"].tolist() == [target] * len(values)
        assert bench.calls.most_at_once <= 1
        assert (bench.seen.queued or [0])[-1] == 0
        largest = max((len(values) for _, values, *_ in requests), default=0)
        assert all(len(call[1]) <= max(max_rows, largest) for call in bench.calls.made)

    asyncio.run(main())
