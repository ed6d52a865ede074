"""A run: nets of all splits are trained together; then what is made of a split's net is fitted, in processes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.machine import cores
from benchmarks.uncertainty import laplace, members, nets
from benchmarks.uncertainty.data import UCI, Parts, Table, nested, parts, read_uci, untuned
from benchmarks.uncertainty.networks import Head, Weights
from benchmarks.uncertainty.results import Record, Results
from benchmarks.uncertainty.training import Schedule

Say = Callable[[str], None]


def known() -> list[str]:
    """The methods that make members of the single net."""
    return [*members.known(), laplace.NAME]


class Workers:
    """Processes of one thread each."""

    def __init__(self, count: int | None) -> None:
        # Not forked, since PyTorch's threads would not come along.
        self._pool = concurrent.futures.ProcessPoolExecutor(
            count or cores(), multiprocessing.get_context("spawn"), initializer=_alone
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable[..., list[Record]], calls: Iterable[tuple[Any, ...]]) -> list[Record]:
        """What all calls return."""
        waiting = [self._pool.submit(function, *call) for call in calls]
        return [record for future in waiting for record in future.result()]


def _alone() -> None:
    torch.set_num_threads(1)


def table(folder: Path | None, name: str, splits: int) -> Table:
    """A regression."""
    if name in UCI:
        assert folder is not None
        return read_uci(folder, name, splits)
    return untuned(name, splits)


def regression(
    results: Results,
    workers: Workers,
    data: Table,
    head: Head,
    methods: Sequence[str],
    say: Say,
    *,
    schedule: Schedule,
    validate: bool = False,
) -> None:
    """All methods on all splits of a data set.

    Args:
        schedule: of the nets.
        validate: judge by half of the held-out rows, and leave the test rows alone.
    """
    begun = time.perf_counter()
    pieces = [parts(data, split) for split in range(len(data.splits))]
    if validate:
        pieces = [nested(piece) for piece in pieces]
    base = nets.trained(pieces, head, schedule)
    say(f"{data.name}, {head} head: nets of {len(pieces)} splits trained ({time.perf_counter() - begun:.0f} s)")
    for split in range(len(pieces)):
        for name in nets.NAMES:
            found = nets.scored(base, split, name)
            scores = {"log_likelihood": found.log_likelihood, "rmse": found.rmse}
            results.records.append(Record(data.name, head, name, split, scores, found.cost, found.seconds, found.note))
    if not methods:
        return
    calls = [
        (data.name, split, pieces[split], base.plain.of(split, 1), head, base.plain.steps, list(methods))
        for split in range(len(pieces))
    ]
    results.records += workers.each(of_split, calls)
    say(f"{data.name}, {head} head: done ({time.perf_counter() - begun:.0f} s)")


def of_split(
    name: str, split: int, piece: Parts, weights: Weights, head: Head, steps: int, methods: Sequence[str]
) -> list[Record]:
    """What is made of one net, in a process of its own."""
    case = members.Case.of(weights, piece, head, steps)
    found = []
    for method in methods:
        scored = laplace.scored if method == laplace.NAME else members.scored
        if method == laplace.NAME and head == "variance":
            continue
        found.append(scored(case, method, name, split))
    return [dataclasses.replace(record) for record in found]
