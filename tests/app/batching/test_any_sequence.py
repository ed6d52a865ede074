"""Any sequence of requests, failures, cancellations and deadlines: each accepted request has one answer, its own.

Once with an engine whose steps hypothesis decides, and once with a real thread and real time.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import Answer, Batcher, Call, Outcome, OutOfMemory, non_finite_rows
from app.engine import Engine
from app.errors import DeadlineExceeded, TooManyRequests, Unavailable
from app.protocol import Question
from tests.app.batching.bench import Bench, Model, Seen, members_needed, rows


@dataclass(frozen=True)
class Asked:
    """One request, and what becomes of its client."""

    target: str
    values: tuple[float, ...]
    width: int
    outputs: tuple[str, ...]
    members: int | None
    tolerance: float | None
    priority: int
    timeout: float | None
    pause: int
    gives_up: bool


REQUESTS = st.builds(
    Asked,
    target=st.sampled_from("ab"),
    values=st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), min_size=1, max_size=9).map(tuple),
    width=st.integers(1, 2),
    outputs=st.lists(st.sampled_from(["double", "inverse", "target"]), min_size=1, unique=True).map(tuple),
    members=st.sampled_from([None, None, 3]),
    tolerance=st.sampled_from([None, None, 0.5]),
    priority=st.integers(-1, 1),
    timeout=st.sampled_from([None, None, None, 60.0, 0.0, -1.0]),
    pause=st.integers(0, 4),
    gives_up=st.booleans() | st.just(False),
)


def check(asked: Asked, answer: Any, cancelled: bool) -> None:
    """That an answer is right for its request, whatever came beside it."""
    match answer:
        case asyncio.CancelledError():
            assert cancelled
        case DeadlineExceeded():
            assert asked.timeout is not None
            assert asked.timeout < 60
        case ArithmeticError():
            assert -1 in asked.values
        case Answer():
            assert -1 not in asked.values
            assert list(answer.arrays) == list(asked.outputs)
            x = rows(*asked.values, width=asked.width)["x"]
            with np.errstate(divide="ignore"):
                every = {"double": 2 * x, "inverse": 1 / x, "target": np.full(len(x), asked.target)}
            for name, array in answer.arrays.items():
                np.testing.assert_array_equal(array, every[name])
            zeros = tuple(n for n, value in enumerate(asked.values) if value == 0)
            assert answer.non_finite_rows == (zeros if "inverse" in asked.outputs else ())
            assert answer.members == (max(asked.values) if asked.tolerance is not None else asked.members)
            assert answer.queued >= 0
            assert answer.computed >= 0
        case _:
            raise AssertionError(f"{asked} was answered {answer!r}")


@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, max_size=16), st.integers(1, 6), st.sampled_from([100, 100, 3, 1]), st.booleans())
def test_every_request_of_any_sequence_gets_exactly_one_answer_and_the_right_one(requests, max_rows, memory, beside):
    async def main():
        bench = Bench(max_rows=max_rows, max_queued_rows=1000, beside=beside)
        bench.engine.memory = memory
        tasks = []
        for number, asked in enumerate(requests):
            if number % 5 == 2:
                bench.engine.free.clear()
            task = bench.ask(
                *asked.values,
                target=asked.target,
                width=asked.width,
                outputs=asked.outputs,
                members=asked.members,
                tolerance=asked.tolerance,
                priority=asked.priority,
                timeout=asked.timeout,
            )
            for _ in range(asked.pause):
                await asyncio.sleep(0)
            if asked.gives_up:
                task.cancel()
            if number % 5 == 4:
                bench.engine.free.set()
            tasks.append(task)
        bench.engine.free.set()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        await asyncio.wait_for(bench.batcher.close(), 30)
        for asked, answer in zip(requests, answers, strict=True):
            check(asked, answer, asked.gives_up)
        assert bench.engine.most_at_once <= 1
        assert all(call.rows <= max_rows for call in bench.engine.made)
        assert (bench.seen.queued or [(0, 0)])[-1] == (0, 0)
        assert not bench.batcher._line
        assert not any(pace.rows for pace in bench.batcher._ledger._paces.values())
        # What was never to be computed was not.
        late = sum(len(asked.values) for asked in requests if asked.timeout == -1)
        made = sum(call.rows for call in bench.engine.made if -1 not in call.inputs["x"])
        if memory == 100 and not any(-1 in asked.values for asked in requests):
            assert made <= sum(len(asked.values) for asked in requests) - late

    asyncio.run(main())


@pytest.mark.parametrize("beside", [True, False])
def test_a_thousand_requests_of_all_kinds_on_a_real_thread(beside):
    chance = random.Random(7)
    overlap = 0

    def make(call: Call) -> Outcome:
        nonlocal overlap
        overlap += 1
        assert overlap == 1
        try:
            time.sleep(chance.choice([0, 0, 0.0002, 0.002]))
            x = call.inputs["x"]
            if chance.random() < 0.02 and call.rows > 1:
                raise OutOfMemory("by chance")
            if (x == -1).any():
                raise ArithmeticError("a row is -1")
            with np.errstate(divide="ignore"):
                every = {"double": x * 2, "inverse": 1 / x, "target": np.full(len(x), call.target.name)}
            arrays = {name: every[name] for name in call.outputs}
            return Outcome(arrays, members_needed(call), non_finite_rows(arrays))
        finally:
            overlap -= 1

    requests = [
        Asked(
            chance.choice("ab"),
            tuple(chance.choice([0.0, 1.0, 2.0, 3.0, 4.0, 5.0] + [-1.0] * (n % 10 == 0)) for _ in range(size)),
            1 + n % 2,
            ("double", "inverse"),
            chance.choice([None, None, 3]),
            chance.choice([None, None, None, 0.5]),
            chance.choice([0, 0, 0, 1, -1]),
            chance.choice([None, None, 60.0, 0.003]),
            0,
            chance.random() < 0.1,
        )
        for n in range(1000)
        for size in [chance.choice([1, 1, 1, 2, 3, 40])]
    ]

    async def main():
        engine, seen = Engine(), Seen()
        models = {name: Model(name, 16) for name in "ab"}
        batcher = Batcher(engine.run, make, max_queued_rows=200, observer=seen, beside=beside)
        batcher.start()
        refused = 0

        async def client(number: int) -> None:
            nonlocal refused
            for asked in requests[number::20]:
                deadline = {} if asked.timeout is None else {"deadline": time.perf_counter() + asked.timeout}
                task = asyncio.create_task(
                    batcher.submit(
                        models[asked.target],
                        rows(*asked.values, width=asked.width),
                        asked.outputs,
                        len(asked.values),
                        question=Question(asked.members, asked.tolerance),
                        priority=asked.priority,
                        **deadline,
                    )
                )
                if asked.gives_up:
                    await asyncio.sleep(chance.choice([0, 0.001]))
                    task.cancel()
                (answer,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(answer, TooManyRequests):
                    refused += 1
                else:
                    check(asked, answer, asked.gives_up)

        await asyncio.wait_for(asyncio.gather(*map(client, range(20))), 60)
        await batcher.close()
        assert engine.close()
        assert batcher.queued_rows == 0
        assert seen.queued[-1] == (0, 0)
        assert sum(reason == "queue_full" for _, reason in seen.reasons) == refused
        # Requests did share calls.
        assert sum(requests for *_, requests in seen.calls) > len(seen.calls)
        try:
            await batcher.submit(models["a"], rows(1), ("double",), 1)
        except Unavailable:
            return
        raise AssertionError("it was closed")

    asyncio.run(main())
