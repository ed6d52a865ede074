"""Fewer members than there are: the first so many, or as many as the mean of a row needs.

A tolerance is a bound on the Monte-Carlo standard error of the mean, √(epistemic_variance / n) after n members of equal
weight. Each row is judged by itself, by the largest error of its elements over all of the model's outputs, whichever
statistics are asked for. So what a row is answered depends on that row alone and not on what shares its batch: the
numbers of members after which it is judged are fixed too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ensemble.condense import Running
from ensemble.errors import StatisticError
from ensemble.planning.runner import Runner
from ensemble.statistics import Asked
from ensemble.vectorised import evaluate

# Below it the estimate of the variance says little.
FIRST = 16


def checkpoints(total: int) -> list[int]:
    """After how many members rows are judged: 16, 24, 32, 48, 64, 96 ... and all.

    At most half as many members again are evaluated as are needed, in few calls.
    """
    found, size = [], FIRST
    while size < total:
        found += [size, size + size // 2]
        size *= 2
    return [*(count for count in found if count < total), total]


def first(
    runner: Runner, inputs: Sequence[Tensor], count: int, chunk: int | None = None, start: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Run members [start, count) on a batch, and not many more; as :class:`~ensemble.planning.runner.Runner`."""
    if chunk is None and runner.plan is not None:
        trial = runner.plan.trial(inputs[0].shape[0])
        # A compiled call evaluates whole chunks.
        if start == 0 and (not trial.compiled or -(-count // trial.chunk) * trial.chunk < 2 * count):
            return runner(inputs, count=count)
        chunk = runner.eager_chunk(inputs)
    some = dataclasses.replace(
        runner.members, count=count - start, stacked=runner.members.slice(start, count), mixture=None
    )
    return evaluate(runner.program, some, inputs, chunk=chunk)


def evaluate_until(
    runner: Runner,
    inputs: Sequence[Tensor],
    asked: Asked,
    *,
    tolerance: float,
    total: int,
    chunk: int | None = None,
) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
    """Statistics of a batch, each row from as many members as its mean needs.

    Args:
        runner: of the members.
        inputs: flat inputs, on the members' device.
        asked: the statistics, and what the outputs mean.
        tolerance: > 0, in the unit of the target.
        total: the most members; one of them must have weight in the mixture.
        chunk: members in one call, as :func:`~ensemble.vectorised.evaluate` takes it.

    Returns:
        The statistics by head and name, and how many members each row needed, (batch,) int64. A row whose error never
        gets that small, or is no number, needs ``total``.

    Raises:
        StatisticError: one of the statistics keeps every member's output, of which there would be as many as the row
            needs.
    """
    for _, statistics in asked.statistics:
        if kept := next((s.name for s in statistics if s.keeps_members), None):
            raise StatisticError(f"{kept!r} cannot be asked for with a tolerance; ask for it with members=.")
    running = Running(asked, judged=True)
    rows = inputs[0].shape[0]
    counts = torch.full((rows,), total, dtype=torch.int64)
    left = torch.arange(rows)
    results: dict[str, dict[str, Tensor]] = {head.name: {} for head, _ in asked.statistics}
    start = 0
    for stop in checkpoints(total):
        for outputs in first(runner, inputs, stop, chunk, start):
            running.update(outputs)
        start = stop
        if not running.weight:
            continue
        error = running.standard_error.cpu()
        done = error <= tolerance if stop < total else torch.ones_like(error, dtype=torch.bool)
        if not bool(done.any()):
            continue
        finished = done.nonzero().squeeze(1)
        counts[left[finished]] = stop
        for head, found in running.rows(finished.to(inputs[0].device)).finish().items():
            for name, values in found.items():
                into = results[head].setdefault(name, values.new_empty((rows, *values.shape[1:])))
                into[left[finished].to(values.device)] = values
        remaining = (~done).nonzero().squeeze(1)
        if not len(remaining):
            break
        left = left[remaining]
        on_device = remaining.to(inputs[0].device)
        inputs = [tensor[on_device] for tensor in inputs]
        running = running.rows(on_device)
    return results, counts
