"""From an ensemble to its plan: what is tried, in which order, and how a plan is kept for the next time."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from ensemble.backends import BACKENDS, unrolled
from ensemble.backends.job import digest
from ensemble.backends.workshop import Workshop
from ensemble.errors import EnsembledError, MemoryLimitError
from ensemble.planning.compiled import Compiled
from ensemble.planning.plan import Plan, Trial
from ensemble.planning.runner import Runner

log = logging.getLogger("ensemble.planning.optimize")

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Step:
    """One call that is worth compiling.

    Attributes:
        kind: the backend.
        rows, chunk: what it takes.
        precision: in which it computes.
    """

    kind: str
    rows: int
    chunk: int
    precision: str

    @property
    def family(self) -> str:
        """The calls that are not tried any more when this one fails: the backend's in this precision."""
        return self.kind if self.precision == "float32" else f"{self.kind} in {self.precision}"

    def __str__(self) -> str:
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return f"{self.kind} for {self.rows} rows and {self.chunk} members at a time{precision}"


def steps(runner: Runner, rows: Sequence[int], precision: str = "float32") -> list[Step]:
    """What to compile for batches of these sizes, the most promising first.

    Args:
        runner: of the ensemble.
        rows: batch sizes, the most important first.
        precision: the least that is good enough.
    """
    if runner.program.live:
        return []
    found = []
    for kind, backend in BACKENDS.items():
        if backend.missing(runner.device):
            continue
        # One in which it cannot compute is a step all the same, so that the plan tells.
        precisions = dict.fromkeys(("float32", precision))
        for size in rows:
            chunks = backend.chunks(runner.program, runner.members, size)
            found += [Step(kind, size, chunk, precision) for chunk in chunks for precision in precisions]
    return found


def missing(device: torch.device) -> dict[str, str]:
    """Backends that cannot be used on a device, and why; those of other devices are left out."""
    # What comes with OpenVINO is missing with it, and that is told once.
    told = {kind: backend for kind, backend in BACKENDS.items() if backend is not unrolled}
    reasons = {kind: b.missing(device) for kind, b in told.items() if b.DEVICE in ("", device.type)}
    return {kind: reason for kind, reason in reasons.items() if reason}


class Course:
    """What became of the steps so far, and so which of the others are worth a try: a backend that failed in a precision
    is not asked again.

    Args:
        failed: backends that cannot be used, and why.

    Attributes:
        failed: the same, and those that failed since.
        complete: whether neither time nor memory was lacking, which may be there another time.
    """

    def __init__(self, failed: Mapping[str, str]) -> None:
        self.failed = dict(failed)
        self.complete = True

    def wants(self, step: Step) -> bool:
        """Whether a step is worth a try."""
        return step.kind not in self.failed and step.family not in self.failed

    def late(self, step: Step) -> None:
        """No time is left for a step."""
        self.failed[step.family] = f"no time was left for {step}"
        self.complete = False

    def fail(self, step: Step, error: EnsembledError, *, late: bool = False) -> None:
        """A step failed; ``late`` if because its time was cut short."""
        self.failed[step.family] = str(error)
        self.complete = self.complete and not late and not isinstance(error, MemoryLimitError)


def follow(
    runner: Runner,
    todo: Sequence[Step],
    *,
    compile: Callable[[Step, float], Compiled],
    adopt: Callable[[Compiled], bool],
    seconds: float,
    progress: Callable[[str], None] | None = None,
) -> bool:
    """Compile what is worth it and use what is fastest; a backend that fails once is not asked again.

    Args:
        runner: of the ensemble; its plan tells afterwards what failed and why.
        todo: what to compile.
        compile, adopt: how; ``compile`` is told how many seconds are left for it.
        seconds: after which no further step is begun.
        progress: called with each step in words before it is begun.

    Returns:
        Whether every step came to an end; False if time or memory was lacking, which may be there another time.
    """
    begun, course = time.perf_counter(), Course(missing(runner.device))
    for step in todo:
        if not course.wants(step):
            continue
        left = seconds - (time.perf_counter() - begun)
        if left < 0:
            course.late(step)
            continue
        if progress:
            progress(str(step))
        try:
            adopt(compile(step, left))
        except EnsembledError as error:
            course.fail(step, error, late=time.perf_counter() - begun > seconds)
    runner.note_failures(course.failed)
    return course.complete


def key_of(runner: Runner, rows: Sequence[int], precision: str, inputs: Sequence[torch.Tensor]) -> str:
    """A name for the plan of ensembles like this one, on this machine, with these versions and settings."""
    job = runner.job("plan", inputs, runner.members.count)
    # A backend that has become available since is to be tried.
    settings = [list(rows), precision, torch.get_num_threads(), sorted(missing(runner.device))]
    return "plan-" + digest(json.dumps([job.to_json(), *settings]))


def remember(runner: Runner, workshop: Workshop, key: str, rows: Sequence[int]) -> None:
    """Keep the plan for the next time, unless there was no time to measure all of these sizes."""
    if runner.plan is not None and runner.plan.covers(rows):
        workshop.remember(key, runner.plan.to_json())


def recall(runner: Runner, workshop: Workshop, key: str, rows: Sequence[int]) -> list[Step] | None:
    """Use a plan that was kept.

    Returns:
        What was compiled for it and is there, to be adopted; None if no plan was kept, or one that does not fit or has
        other sizes than these.
    """
    plan = Plan.from_json(workshop.recall(key))
    if plan is None or not plan.covers(rows):
        return None
    count = runner.members.count
    if not all(0 <= trial.chunk <= count for way in plan.ways for trial in way.trials):
        return None
    wanted = dict.fromkeys(way.best for way in plan.ways if way.best.compiled)
    runner.start_from(dataclasses.replace(plan, ways=tuple(way.without_compiled() for way in plan.ways)))
    return [_step(trial) for trial in wanted if trial.kind in BACKENDS]


def _step(trial: Trial) -> Step:
    return Step(trial.kind, trial.rows, trial.chunk, trial.precision)
