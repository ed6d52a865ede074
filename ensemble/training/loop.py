"""Training many members in one loop: every member takes its step in the same call, on rows of its own."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Collection

import torch
from torch import Tensor

from ensemble.data import Data
from ensemble.errors import RecipeError, TooShortError
from ensemble.losses import Loss
from ensemble.members import Members, Progress
from ensemble.program.program import Program
from ensemble.training.job import Job
from ensemble.training.schedule import Schedule

_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
        members: with the weights that they keep.
        steps: that each member took.
        kept: the step after which a member had the weights that it keeps, (members,) int64.
        before: mean loss on the rows held back, at the start, (members,) float64; None where none were looked at.
        after: the same, with the weights that are kept.
        gradients: how many gradients of one row's loss all members together took.
        diverged: members whose loss stopped being finite, and that keep weights from before that.
    """

    members: Members
    steps: int
    kept: Tensor
    before: Tensor | None
    after: Tensor | None
    gradients: int
    diverged: tuple[int, ...]


def train(
    program: Program,
    members: Members,
    data: Data,
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int = 0,
    bootstrap: bool = False,
    early_stopping: bool = False,
    held: Data | None = None,
    names: Collection[str] | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train members together, each on rows of its own.

    Member i comes out as it would alone, up to the rounding of float operations, whatever the number of members and the
    chunk: its rows and their order are a function of ``seed`` and i, and a step of Adam on stacked weights is a step of
    Adam on each. The model runs as it was captured, in evaluation mode: dropout is off, and batch normalisation keeps
    its statistics (its scale and shift are trained).

    Args:
        program: the model.
        members: where training starts; they are left as they are. Factors are trained as factors of the shared weight.
        data: inputs and targets, anywhere; rows are brought to the members as they are needed.
        loss: a number for each row, or for each element of its target, of one member's flat outputs and the targets.
        schedule: steps, learning rate, rows of a step.
        seed: of the members' resamples and orders.
        bootstrap: train each member on its own resample of the rows.
        early_stopping: keep those weights of each member that did best on rows held back from it: the rows that its
            resample left out, or a tenth of all. Those it starts with are not among them, since whoever trained them
            had these rows.
        held: rows to look at in their place, the same for all members, and new to the weights that these start with.
        names: weights to train, by their names in the model; by default all of floating point that members have of
            their own.
        chunk: members that are trained together, one such chunk after another; by default as many as keep memory
            bounded.
        progress: called with (steps done, steps in all), of all chunks together.

    Raises:
        RecipeError: nothing to train, or a member diverged and has no finite weights to keep.
        InputError: targets are missing, or the loss does not give a number for each row that depends on the weights.
        ModelError: an operation of the model has no derivative.
        MemoryLimitError: the trained members do not fit.
    """
    job = Job(program, members, data, loss, schedule, seed, bootstrap, early_stopping, held, names)
    with torch.inference_mode(False):
        job.settle(chunk)
        return _run(job, progress)


def _run(job: Job, progress: Progress | None) -> Trained:
    """Train chunk after chunk."""
    count, steps = job.members.count, job.schedule.steps
    starts = range(0, count, job.chunk)
    # Weights that are not trained are the same tensors as before.
    stacked = {n: torch.empty_like(t) if n in job.own else t for n, t in job.members.stacked.items()}
    kept = torch.zeros(count, dtype=torch.long)
    before, after = torch.full((2, count), math.nan, dtype=torch.float64)
    diverged: list[int] = []
    for number, start in enumerate(starts):
        part = job.part(start)
        there = slice(start, start + job.chunk)
        before[there] = part.run(functools.partial(_tell, progress, number * steps, len(starts) * steps))
        for name, tensor in part.best.weights.items():
            stacked[name][there] = tensor
        kept[there], after[there] = part.best.steps.cpu(), part.best.losses.cpu()
        diverged += part.diverged()
    return Trained(
        dataclasses.replace(job.members, stacked=stacked),
        steps,
        kept,
        before if job.looks else None,
        after if job.looks else None,
        count * steps * min(job.schedule.batch_size, part.rows.own.shape[1]),
        tuple(diverged),
    )


def _tell(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)


def steps_within(
    seconds: float,
    program: Program,
    members: Members,
    data: Data,
    loss: Loss,
    schedule: Schedule,
    *,
    early_stopping: bool = False,
    held: Data | None = None,
    names: Collection[str] | None = None,
    chunk: int | None = None,
) -> int:
    """How many steps of :func:`train` with these arguments fit into a time, judged by a few trial steps.

    Args:
        seconds: the time, trials included.
        schedule: no more steps than it has.

    Raises:
        RecipeError: not one step fits, or as of :func:`train`.
        InputError, ModelError, MemoryLimitError: as of :func:`train`.
    """
    if not 0 < seconds < math.inf:
        raise RecipeError(f"seconds must be a number > 0, however: {seconds!r}.")
    job = Job(program, members, data, loss, schedule, 0, True, early_stopping, held, names)
    with torch.inference_mode(False):
        job.settle(chunk)
        if schedule.steps == 0:
            return 0
        begun = time.perf_counter()
        each = _seconds_per_step(job)
        spent = time.perf_counter() - begun
    if (fit := int((seconds - spent) / each)) < 1:
        raise TooShortError(
            f"seconds={seconds:g} is too short: one step of {members.count} members takes {each:.2g} s, after "
            f"{spent:.2g} s of trials."
        )
    return min(schedule.steps, fit)


def _seconds_per_step(job: Job) -> float:
    """Of all members, looks at the rows held back included."""
    part, times = job.part(0), []
    looking = time.perf_counter()
    part.look(0)
    looking = time.perf_counter() - looking
    for step in range(min(_TRIALS, job.schedule.steps)):
        start = time.perf_counter()
        part.step(step)
        times.append(time.perf_counter() - start)
    each = sorted(times)[len(times) // 2] + looking / job.schedule.every
    return each * math.ceil(job.members.count / job.chunk)
