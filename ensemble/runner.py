"""Runs the members on a batch, the way that was found fastest on this machine."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ensemble.compiled import Call, chunk_for, compile_call
from ensemble.errors import ModelError
from ensemble.evaluate import default_chunk, evaluate, gathered
from ensemble.members import Members
from ensemble.plan import Plan, Way, candidates, measure, timed
from ensemble.program import Program
from ensemble.structured import factored_program

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled call, not yet checked."""

    rows: int
    chunk: int
    call: Call


class Runner:
    """One ensemble's members and the ways of running them.

    Args:
        program: the original program.
        members: its weights; where they have factors, what runs is the program rewritten to use them.

    Attributes:
        program: what runs.
        plan: which way is fastest for which batch, once it was measured.
    """

    def __init__(self, program: Program, members: Members) -> None:
        self.program = factored_program(program, members.factored) if members.factored else program
        self.members = members
        self.plan: Plan | None = None
        self._calls: dict[tuple[int, int], Call] = {}

    def __call__(
        self, inputs: Sequence[Tensor], *, count: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Run the first ``count`` members (all by default); see :func:`~ensemble.evaluate.evaluate`.

        Args:
            chunk: members in one call, as :func:`~ensemble.evaluate.evaluate` takes it; by default the plan's way.
        """
        rows = inputs[0].shape[0]
        way = self.plan.way(rows) if chunk is None and self.plan is not None else None
        if way is not None and way.compiled is not None:
            call = self._calls[way.compiled, way.chunk]
            return gathered(self._called(call, way.compiled, way.chunk, inputs, count))
        return evaluate(self.program, self.members, inputs, count=count, chunk=way.chunk if way else chunk)

    def _called(
        self, call: Call, rows: int, chunk: int, inputs: Sequence[Tensor], count: int | None
    ) -> Iterator[tuple[Tensor, ...]]:
        given = inputs[0].shape[0]
        padded = [torch.cat([t, t[-1:].expand(rows - given, *t.shape[1:])]) if given < rows else t for t in inputs]
        total = self.members.count if count is None else min(count, self.members.count)
        for start in range(0, total, chunk):
            outputs = call(self.members.slice(start, start + chunk), padded)
            yield tuple(
                output[: total - start].narrow(1 + spec.batch_dim, 0, given)
                for output, spec in zip(outputs, self.program.outputs, strict=True)
            )

    def measure(
        self,
        example: Callable[[int], list[Tensor]],
        rows: Sequence[int],
        seconds: float,
        progress: Callable[[int], None] | None = None,
    ) -> Plan:
        """Find the fastest way without compiling for batches of these sizes, and use it from now on.

        Args:
            example: makes flat inputs of so many rows.
            rows: batch sizes, ascending.
            seconds: about how long this may take in all; sizes for which no time is left are not measured.
            progress: called with each batch size before it is measured.
        """
        begun = time.perf_counter()
        ways: list[Way] = []
        for position, size in enumerate(rows):
            left = seconds - (time.perf_counter() - begun)
            # A larger batch takes at least as long as a smaller one did.
            if ways and left < 2 * ways[-1].seconds:
                break
            if progress:
                progress(size)
            inputs = example(size)
            chunks = candidates(self.members.count, default_chunk(self.program, self.members, inputs))
            run = functools.partial(self._run, inputs)
            ways.append(measure(run, size, chunks, max(0.0, left) / (len(rows) - position)))
        self._calls.clear()
        self.plan = Plan(tuple(ways))
        return self.plan

    def compile(self, inputs: Sequence[Tensor]) -> Compiled:
        """Compile a call for batches of as many rows as these inputs have. May run beside other calls, on any thread.

        Raises:
            ModelError: it cannot be compiled here.
        """
        if self.program.live:
            raise ModelError("A live module is not compiled; make the ensemble without live=True.")
        rows = inputs[0].shape[0]
        chunk = chunk_for(self.program, self.members.count, rows)
        # Traced on a skeleton of its own, so that calls need not wait for it.
        assert self.program.graph is not None
        own = self.program.running(self.program.graph, self.program.empty_weights())
        return Compiled(rows, chunk, compile_call(own, self.members, inputs, chunk))

    def adopt(self, compiled: Compiled, inputs: Sequence[Tensor], bound: float) -> bool:
        """Check and time a compiled call, and use it for every batch that it is fastest for.

        Args:
            inputs: of as many rows as it was compiled for.
            bound: largest difference from the calls without it, relative to the largest magnitude.

        Returns:
            Whether it is used.

        Raises:
            ModelError: it gives other answers.
        """
        assert self.plan is not None
        run = functools.partial(self._called, compiled.call, compiled.rows, compiled.chunk, inputs, None)
        plain = evaluate(self.program, self.members, inputs, chunk=self.plan.way(compiled.rows).eager)
        for got, want in zip(_whole(run()), _whole(plain), strict=True):
            scale = float(want.double().abs().nan_to_num(0, 0, 0).max().clamp_min(1e-30))
            if not torch.allclose(got.double(), want.double(), rtol=0, atol=bound * scale, equal_nan=True):
                raise ModelError(f"The compiled call for {compiled.rows} rows gives other answers; it is not used.")
        seconds = min(timed(self._finish, run) for _ in range(_REPEATS))
        self._calls[compiled.rows, compiled.chunk] = compiled.call
        self.plan = self.plan.with_compiled(compiled.rows, compiled.chunk, seconds)
        used = any(way.compiled == compiled.rows for way in self.plan.ways)
        if not used:
            del self._calls[compiled.rows, compiled.chunk]
        return used

    def _run(self, inputs: Sequence[Tensor], chunk: int) -> None:
        self._finish(functools.partial(evaluate, self.program, self.members, inputs, chunk=chunk))

    def _finish(self, outputs: Callable[[], Iterator[tuple[Tensor, ...]]]) -> None:
        for _ in outputs():
            pass
        if (device := next(iter(self.members.stacked.values())).device).type == "cuda":
            torch.cuda.synchronize(device)


def _whole(chunks: Iterator[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]
