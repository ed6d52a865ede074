"""The part of an ensemble that is about how it runs: its plan, and how that comes about."""

from __future__ import annotations

import abc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ensemble.backends.job import Job, tf32_allowed
from ensemble.backends.workshop import Workshop
from ensemble.planning import optimize
from ensemble.planning.compiled import Compiled
from ensemble.planning.optimize import Precision, Step
from ensemble.planning.plan import Plan
from ensemble.planning.runner import Runner
from ensemble.program.program import Program


class Planned(abc.ABC):
    """Base of :class:`~ensemble.ensemble.Ensemble`.

    Attributes:
        program: the model as a function of its weights.
    """

    program: Program
    _runner: Runner

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the floating weights."""

    @abc.abstractmethod
    def example(self, rows: int | None = None) -> list[Tensor]:
        """Flat inputs to try the ensemble with."""

    @property
    def plan(self) -> Plan | None:
        """Which way of running is fastest for which batch, once :meth:`measure` found out."""
        return self._runner.plan

    def measure(
        self, rows: Sequence[int] = (1, 8, 64), *, seconds: float = 10, progress: Callable[[int], None] | None = None
    ) -> Plan:
        """Find the fastest way of running without compiling, for batches of these sizes, and use it from now on.

        Args:
            rows: batch sizes, ascending; a batch between two is run as the larger one, a larger one as the last, with
                no more members in one call than keep activations small.
            seconds: about how long this may take in all; sizes for which no time is left are not measured.
            progress: called with each batch size before it is measured.

        Raises:
            ModelError: no way gives what the loop over members gives.
        """
        return self._runner.measure(self.example, rows, self._bound, seconds, progress)

    def optimize(
        self,
        rows: Sequence[int] = (1, 8, 64),
        *,
        precision: Precision = "float32",
        seconds: float = 120,
        cache: str | os.PathLike[str] | None = None,
        again: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Plan:
        """Find the fastest way of running, compiling included, and use it from now on.

        What was compiled and the plan are kept, so that a later process on this machine has them in a moment. A plan
        for which memory was lacking, or time to measure every size or to compile, is not: the next time goes on from
        there.

        Args:
            rows: batch sizes, ascending, as for :meth:`measure`.
            precision: the least that is good enough; with "bfloat16" calls that compute in it are tried too, and used
                if they are faster and within 2e-2 of the loop, relative to the largest magnitude; the plan tells how
                far they are.
            seconds: about how long this may take in all.
            cache: directory to keep things in; by default ``$XDG_CACHE_HOME/ensembled``. What is in it is run as code.
            again: do not use the plan of before.
            progress: called with what is being done, in words.

        Raises:
            ModelError: no way without compiling gives what the loop over members gives.
        """
        begun, tell = time.perf_counter(), progress or (lambda _: None)
        with Workshop(Path(cache) if cache is not None else None) as workshop:
            steps = None if again else self.recall(rows, workshop, precision)
            if steps is None:
                share = seconds / 3
                self.measure(rows, seconds=share, progress=lambda size: tell(f"ways without compiling, {size} rows"))
                steps = self.steps(precision=precision)
            left = seconds - (time.perf_counter() - begun)
            if self.follow(steps, workshop, seconds=left, progress=tell):
                self.remember(rows, workshop, precision)
        assert self.plan is not None
        return self.plan

    def steps(self, rows: Sequence[int] | None = None, *, precision: Precision = "float32") -> list[Step]:
        """What is worth compiling here, the most promising first.

        Args:
            rows: batch sizes, the most important first; by default those of the plan.
            precision: as for :meth:`optimize`.
        """
        planned = [way.rows for way in self.plan.ways] if self.plan else []
        return optimize.steps(self._runner, planned if rows is None else rows, precision)

    def follow(
        self,
        steps: Sequence[Step],
        workshop: Workshop,
        *,
        seconds: float = 120,
        progress: Callable[[str], None] | None = None,
    ) -> bool:
        """Compile and adopt, step by step; what fails is told by the plan.

        Args:
            steps: from :meth:`steps` or :meth:`recall`.
            workshop: where things are compiled and kept.
            seconds: after which no further step is begun.
            progress: called with each step in words.

        Returns:
            Whether neither time nor memory was lacking.
        """
        return optimize.follow(
            self._runner,
            steps,
            compile=lambda step, left: self.compile(step, workshop, left),
            adopt=self.adopt,
            seconds=seconds,
            progress=progress,
        )

    def job(self, step: Step) -> Job:
        """What a step compiles, by which a workshop knows it."""
        return self._runner.job(step.kind, self.example(step.rows), step.chunk)

    def missing_backends(self) -> dict[str, str]:
        """Backends that would be tried here if they could be used, and why they cannot."""
        return optimize.missing(self.device)

    def note_failures(self, reasons: Mapping[str, str]) -> None:
        """Have the plan tell why backends are not used."""
        self._runner.note_failures(reasons)

    def compile(self, step: Step, workshop: Workshop, seconds: float | None = None) -> Compiled:
        """Compile a call, which :meth:`adopt` checks and puts to use. It may run on any thread, beside calls.

        Args:
            seconds: after which it is given up, if that is sooner than the workshop would.

        Raises:
            ModelError: it cannot be compiled here; the text says why.
            MemoryLimitError: its weights do not fit beside what there is.
        """
        inputs = self.example(step.rows)
        return self._runner.compile(step.kind, inputs, step.chunk, step.precision, workshop, seconds)

    def adopt(self, compiled: Compiled) -> bool:
        """Check a compiled call against the loop over members and time it against the plan's way, and use it for every
        batch that it is fastest for.

        Returns:
            Whether it is used for any.

        Raises:
            ModelError: it gives other answers.
        """
        if self.plan is None:
            self.measure((compiled.rows,))
        return self._runner.adopt(compiled, self.example(compiled.rows), self._bound)

    def recall(self, rows: Sequence[int], workshop: Workshop, precision: Precision = "float32") -> list[Step] | None:
        """Use the plan that an ensemble like this one was given before on this machine.

        Returns:
            What was compiled for it, to be followed; None if there is no such plan for these sizes.
        """
        if self.program.live:
            return None
        return optimize.recall(self._runner, workshop, self._plan_key(rows, precision), rows)

    def remember(self, rows: Sequence[int], workshop: Workshop, precision: Precision = "float32") -> None:
        """Keep the plan for :meth:`recall`, unless there was no time to measure all of these sizes."""
        if not self.program.live:
            optimize.remember(self._runner, workshop, self._plan_key(rows, precision), rows)

    def _plan_key(self, rows: Sequence[int], precision: Precision) -> str:
        return optimize.key_of(self._runner, rows, precision, self.example(1))

    @property
    def _bound(self) -> float:
        """How far ways of running may differ, relative to the largest magnitude."""
        if torch.finfo(self.dtype).eps > 1e-5:
            return 5e-2
        # TensorFloat-32 has 10 bits of mantissa; as PyTorch comes, convolutions are let have it.
        rounded = self.device.type == "cuda" and any(tf32_allowed())
        return 1e-2 if rounded else 1e-4
