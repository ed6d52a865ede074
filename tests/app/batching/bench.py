"""A batcher on an engine whose calls begin and end when the test says."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from app.batching import Answer, Batcher, Call, Outcome, OutOfMemory, non_finite_rows
from app.protocol import Question


class Model:
    """A target."""

    def __init__(self, name: str = "a", max_batch: int = 4) -> None:
        self.name = name
        self.max_batch = max_batch


class Seen:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.waits: list[float] = []
        self.members: list[int | None] = []
        self.queued: list[tuple[int, int]] = []
        self.reasons: list[tuple[str, str]] = []

    def batch_done(self, target, rows, queued, compute, members=None):
        assert compute >= 0
        self.calls.append((target.name, rows, len(queued)))
        self.waits += queued
        self.members.append(members)

    def queue_changed(self, rows, requests):
        self.queued.append((rows, requests))

    def refused(self, target, reason):
        self.reasons.append((target.name, reason))


def members_needed(call: Call) -> np.ndarray | int | None:
    """What a call says that it took: with a tolerance as many as each row's value says."""
    question = call.question or Question()
    assert isinstance(question, Question)
    return call.inputs["x"][:, 0].astype(np.int64) if question.tolerance is not None else question.members


class FakeEngine:
    """Runs one call after the other on the event loop. A call is taken when it begins, and ends once `free` is set.

    It doubles and squares; rows that hold -1 fail, and more than `memory` rows do not fit.
    """

    def __init__(self) -> None:
        self.made: list[Call] = []
        self.free = asyncio.Event()
        self.free.set()
        self.begun = asyncio.Event()
        self.memory = math.inf
        self.most_at_once = 0
        self._one = asyncio.Lock()

    @property
    def rows(self) -> list[list[float]]:
        """The first column of what each call was made with."""
        return [call.inputs["x"][:, 0].tolist() for call in self.made]

    async def execute(self, call: Callable[..., Any], *args: Any) -> Any:
        async with self._one:
            before = len(self.made)
            error, result = None, None
            try:
                result = call(*args)
            except BaseException as problem:
                error = problem
            self.most_at_once = max(self.most_at_once, len(self.made) - before)
            if len(self.made) > before:
                self.begun.set()
                await self.free.wait()
            await asyncio.sleep(0)
            if error is not None:
                raise error
            return result

    def make(self, call: Call) -> Outcome:
        # A buffer is used again, so that what was written down is kept apart.
        self.made.append(Call(**{**vars(call), "inputs": {n: a.copy() for n, a in call.inputs.items()}}))
        x = call.inputs["x"]
        if len(x) > self.memory:
            raise OutOfMemory(f"{len(x)} rows")
        if (x == -1).any():
            raise ArithmeticError("a row is -1")
        with np.errstate(all="ignore"):
            every = {"double": x * 2, "square": x**2, "inverse": 1 / x, "target": np.full(len(x), call.target.name)}
        arrays = {name: every[name] for name in call.outputs}
        return Outcome(arrays, members_needed(call), non_finite_rows(arrays))


def rows(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, dtype=np.float32)[:, None], width, axis=1)}


class Bench:
    """A batcher with its engine and its observer, on the running loop."""

    def __init__(
        self, max_rows: int = 4, max_queued_rows: int = 100, max_delay: float = 0.0, beside: bool = True
    ) -> None:
        self.engine, self.seen = FakeEngine(), Seen()
        self.models = {name: Model(name, max_rows) for name in "abc"}
        self.batcher = Batcher(
            self.engine.execute,
            self.engine.make,
            max_queued_rows=max_queued_rows,
            observer=self.seen,
            max_delay=max_delay,
            beside=beside,
        )
        self.batcher.start()

    def ask(
        self,
        *values: float,
        target: str = "a",
        outputs=("double",),
        width: int = 1,
        timeout: float | None = None,
        members: int | None = None,
        tolerance: float | None = None,
        **rest: Any,
    ) -> asyncio.Task[Answer]:
        inputs = rows(*values, width=width)
        rest["question"] = Question(members, tolerance)
        if timeout is not None:
            rest["deadline"] = time.perf_counter() + timeout
        return asyncio.create_task(self.batcher.submit(self.models[target], inputs, outputs, len(values), **rest))

    async def busy(self, *values: float, target: str = "a") -> asyncio.Task[Answer]:
        """A call that runs until `engine.free` is set."""
        self.engine.free.clear()
        self.engine.begun.clear()
        first = self.ask(*(values or (0,)), target=target)
        await self.engine.begun.wait()
        return first

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def finish(self, *tasks: asyncio.Task[Answer]) -> list[Any]:
        """Let the engine go, gather answers and errors, and close."""
        self.engine.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await self.batcher.close()
        assert self.seen.queued[-1] == (0, 0)
        assert not self.batcher.queued_rows
        assert self.engine.most_at_once <= 1
        return answers


def double(answer: Answer) -> list[float]:
    """The first column of an answer."""
    return answer.arrays["double"][:, 0].tolist()
