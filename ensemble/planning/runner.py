"""Runs the members on a batch, the way that was found fastest on this machine."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.backends import BACKENDS
from ensemble.backends.declined import Declined
from ensemble.backends.job import Job
from ensemble.backends.workshop import Workshop
from ensemble.errors import EnsembledError, ModelError, first_line
from ensemble.members import Members
from ensemble.planning.compiled import Call, Compiled
from ensemble.planning.measuring import RealBatch, Reference, measure, timed
from ensemble.planning.plan import Plan, Trial, Way
from ensemble.program.program import Program
from ensemble.structured import factored_program
from ensemble.vectorised import default_chunk, evaluate, gathered

# How far 16-bit arithmetic may be from the loop, relative to the largest magnitude.
BFLOAT16_BOUND = 2e-2
_REPEATS = 5
# Seconds that timing one compiled call may take.
_TIMING_SECONDS = 2.0


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
        self.original = program
        self.program = factored_program(program, members.factored) if members.factored else program
        self.members = members
        self.plan: Plan | None = None
        self._calls: dict[tuple[str, int, int, str], Call] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.members.stacked.values())).device

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        """With weights of its own, and without the compiled calls, which hold those of the original."""
        made = Runner(self.original, copy.deepcopy(self.members, memo))
        made.plan = self.plan
        return made

    def __call__(
        self, inputs: Sequence[Tensor], *, count: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Run the first ``count`` members (all by default); see :func:`~ensemble.vectorised.evaluate`.

        Args:
            chunk: members in one call, as :func:`~ensemble.vectorised.evaluate` takes it; by default the plan's way.
        """
        if chunk is None and self.plan is not None:
            trial = self.plan.trial(inputs[0].shape[0])
            # Without one, another thread has just changed the plan.
            call = self._calls.get((trial.kind, trial.rows, trial.chunk, trial.precision))
            if call is not None:
                return gathered(self._called_or_not(call, trial, inputs, count))
            chunk = self.eager_chunk(inputs)
        return evaluate(self.program, self.members, inputs, count=count, chunk=chunk)

    def eager_chunk(self, inputs: Sequence[Tensor]) -> int | None:
        """Members in one call where none is compiled, as :func:`~ensemble.vectorised.evaluate` takes it."""
        if self.plan is None:
            return None
        rows = inputs[0].shape[0]
        way = self.plan.way(rows)
        chunk = way.eager.chunk
        # On more rows than were measured, the activations of so many members may not fit.
        return chunk if rows <= way.rows else min(chunk, default_chunk(self.program, self.members, inputs))

    def _called_or_not(
        self, call: Call, trial: Trial, inputs: Sequence[Tensor], count: int | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The compiled call's outputs; from the members on for which it declines the inputs, PyTorch's."""
        done = 0
        try:
            for outputs in self._called(call, trial.rows, trial.chunk, inputs, count):
                done += outputs[0].shape[0]
                yield outputs
        except Declined:
            for outputs in evaluate(self.program, self.members, inputs, count=count):
                size = outputs[0].shape[0]
                if size > done:
                    yield tuple(output[done:] for output in outputs)
                done = max(0, done - size)

    def _called(
        self, call: Call, rows: int, chunk: int, inputs: Sequence[Tensor], count: int | None
    ) -> Iterator[tuple[Tensor, ...]]:
        given = inputs[0].shape[0]
        padded = inputs
        if given < rows:
            padded = [torch.cat([t, t[-1:].expand(rows - given, *t.shape[1:])]) for t in inputs]
        total = self.members.count if count is None else min(count, self.members.count)
        for start in range(0, total, chunk):
            outputs = call(start, padded)
            if given == rows and start + chunk <= total:
                yield outputs
                continue
            yield tuple(
                output[: total - start].narrow(1 + spec.batch_dim, 0, given)
                for output, spec in zip(outputs, self.program.outputs, strict=True)
            )

    def measure(
        self,
        example: Callable[[int], list[Tensor]],
        rows: Sequence[int],
        bound: float,
        seconds: float,
        progress: Callable[[int], None] | None = None,
    ) -> Plan:
        """Find the fastest way without compiling for batches of these sizes, and use it from now on.

        Args:
            example: makes flat inputs of so many rows.
            rows: batch sizes, ascending.
            bound: largest difference from the loop over materialised members, relative to the largest magnitude.
            seconds: about how long this may take in all; sizes for which no time is left are not measured.
            progress: called with each batch size before it is measured.

        Raises:
            ModelError: no way gives what the loop over materialised members gives.
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
            batch = RealBatch(self.program, self.original, self.members, example(size))
            ways.append(measure(batch, batch.chunks(), bound, max(0.0, left) / (len(rows) - position)))
        plan = Plan(tuple(ways))
        self.start_from(plan)
        return plan

    def start_from(self, plan: Plan) -> None:
        """Use a plan in which nothing is compiled; calls of before give their memory back."""
        self.plan = plan
        self._calls = {}

    def note_failures(self, reasons: Mapping[str, str]) -> None:
        """Have the plan tell why backends are not used."""
        assert self.plan is not None
        for kind, reason in reasons.items():
            self.plan = self.plan.with_failure(kind, reason)

    def job(self, kind: str, inputs: Sequence[Tensor], chunk: int) -> Job:
        """What is to be compiled for batches of as many rows as these inputs have."""
        return Job.of(kind, self.program, self.members, list(inputs), chunk)

    def compile(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        chunk: int,
        precision: str,
        workshop: Workshop,
        seconds: float | None = None,
    ) -> Compiled:
        """Compile a call for batches of as many rows as these inputs have. May run beside other calls, on any thread.

        Args:
            seconds: after which it is given up, if that is sooner than the workshop would.

        Raises:
            ModelError: it cannot be compiled here.
            MemoryLimitError: its weights do not fit beside what there is.
        """
        backend = BACKENDS[kind]
        if reason := backend.missing(self.device):
            raise ModelError(f"{kind} cannot be used here: {reason}.")
        if precision not in backend.PRECISIONS:
            raise ModelError(f"{kind} computes in the weights' own dtype (dtype=, --dtype), not in {precision}.")
        job = self.job(kind, inputs, chunk)
        kept = workshop.has(job)
        target = workshop.build(job, seconds)
        try:
            call = backend.Compiled(job, target, self.members, precision)
        except EnsembledError:
            raise
        except Exception as error:
            # What is damaged must not be found again.
            workshop.discard(job)
            if kept and backend.SUFFIXES:
                return self.compile(kind, inputs, chunk, precision, workshop, seconds)
            raise _unusable(kind, error) from error
        return Compiled(kind, job.rows, chunk, call, precision)

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
        limit = max(bound, BFLOAT16_BOUND) if compiled.precision == "bfloat16" else bound
        error = self._error(run, inputs, limit, compiled)
        incumbent = functools.partial(self.__call__, inputs)
        seconds, before = self._race(run, incumbent)
        trial = Trial(compiled.kind, compiled.chunk, compiled.rows, seconds, compiled.precision, error)
        plan = self._with_current_time(compiled.rows, before).with_trial(trial)
        # Other threads may be in between: a call is there before the plan names it.
        self._calls = {**self._calls, compiled.key: compiled.call}
        self.plan = plan
        used = {(w.best.kind, w.best.rows, w.best.chunk, w.best.precision) for w in plan.ways if w.best.compiled}
        # What is not used any more gives its memory back.
        self._calls = {key: call for key, call in self._calls.items() if key in used}
        return compiled.key in used

    def _error(
        self, run: Callable[[], Iterator[tuple[Tensor, ...]]], inputs: Sequence[Tensor], bound: float, what: Compiled
    ) -> float:
        """How far a call is from the loop over materialised members on some of them; and that it is near the vmapped
        call on all of them."""
        assert self.plan is not None
        try:
            got = _whole(run())
        except Exception as error:
            raise _unusable(what.kind, error) from error
        plain = _whole(evaluate(self.program, self.members, inputs, chunk=self.eager_chunk(inputs)))
        for ours, near in zip(got, plain, strict=True):
            scale = float(near.double().abs().nan_to_num(0, 0, 0).max().clamp_min(1e-30))
            if not torch.allclose(ours.double(), near.double(), rtol=0, atol=bound * scale, equal_nan=True):
                raise ModelError(
                    f"The call for {what.rows} rows that {what.kind} compiled gives other answers; it is not used."
                )
        reference = Reference(self.original, self.members, inputs)
        worst = reference.error([output[reference.indices] for output in got])
        if worst > bound:
            raise ModelError(
                f"The call for {what.rows} rows that {what.kind} compiled differs from the loop over members by "
                f"{worst:.2g} (bound {bound}); it is not used."
            )
        return worst

    def _race(self, one: Callable[[], Iterator[object]], other: Callable[[], Iterator[object]]) -> tuple[float, float]:
        """Seconds of two ways, timed in turns, so that what else the machine does hits both."""
        begun = time.perf_counter()
        times: list[tuple[float, float]] = []
        while len(times) < _REPEATS and (_close(times) or time.perf_counter() - begun < _TIMING_SECONDS):
            times.append((timed(self._finish, one), timed(self._finish, other)))
        return min(first for first, _ in times), min(second for _, second in times)

    def _with_current_time(self, rows: int, seconds: float) -> Plan:
        """The plan in which the way for so many rows takes what it took in the race, and not what it took before.

        What else was tried for it takes as much more or less: it was slower when both were measured, and a machine that
        has become slower since would else have the ways that were not in the race win it.
        """
        assert self.plan is not None
        ways = []
        for way in self.plan.ways:
            if way.rows == rows and way.best.rows == rows:
                change = seconds / way.best.seconds if way.best.seconds else 1.0
                best = dataclasses.replace(way.best, seconds=seconds)
                others = [t for t in way.trials if t is not way.best]
                way = Way.of(rows, [best, *(dataclasses.replace(t, seconds=t.seconds * change) for t in others)])
            ways.append(way)
        return dataclasses.replace(self.plan, ways=tuple(ways))

    def _finish(self, outputs: Callable[[], Iterator[object]]) -> None:
        for _ in outputs():
            pass
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _close(times: Sequence[tuple[float, float]]) -> bool:
    """Whether one more round is worth its time in any case: the first finds caches and threads as others left them."""
    return not times or (len(times) == 1 and max(times[0]) < 2 * min(times[0]))


def _unusable(kind: str, error: Exception) -> ModelError:
    return ModelError(f"{kind} cannot run what it compiled: {type(error).__name__} {first_line(error)[:200]}")


def _whole(chunks: Iterator[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]
