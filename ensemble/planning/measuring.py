"""Timing the ways of running a batch without compiling, each checked against the loop over materialised members.

For each of a few batch sizes the candidates are timed on the real ensemble: all members in one call, chunks of several
sizes, and the loop. The loop runs the same program one member after the other (on factors, where members have them);
where there is no time for all members, what some of them take stands for all. So it is always known, and the choice is
never slower than it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ensemble.errors import ModelError
from ensemble.members import Members
from ensemble.planning.plan import LOOP, Trial, Way
from ensemble.program.program import Program
from ensemble.vectorised import default_chunk, evaluate, loop

log = logging.getLogger("ensemble.planning.measuring")

# A candidate this much slower than the best so far is not tried again.
_HOPELESS = 1.5
_REPEATS = 3
# Part of the time left that a loop may take which cannot win, so that it is known how slow it is.
_HOPELESS_SHARE = 0.2
# Members that are compared, spread over the ensemble.
_COMPARED = 4


class Reference:
    """What some of the members answer to a batch, by the loop over materialised members.

    Args:
        program: the original program.
        members: its weights.
        inputs: flat inputs.

    Attributes:
        indices: which members, ascending.
    """

    def __init__(self, program: Program, members: Members, inputs: Sequence[Tensor]) -> None:
        last = members.count - 1
        self.indices = sorted({round(i * last / (_COMPARED - 1)) for i in range(_COMPARED)})
        self._exact = loop(program, members, inputs, self.indices)

    def error(self, outputs: Sequence[Tensor]) -> float:
        """The largest difference of these members' outputs, each (len(indices), rows, ...), relative to the largest
        magnitude of the output; infinite where one is a number and the other is not."""
        worst = 0.0
        for got, exact in zip(outputs, self._exact, strict=True):
            ours, want = got.double(), exact.double()
            scale = float(want.abs().nan_to_num(0, 0, 0).max().clamp_min(1e-30))
            same = (ours == want) | (ours.isnan() & want.isnan())
            difference = (ours - want).abs().nan_to_num(math.inf).masked_fill(same, 0)
            worst = max(worst, float(difference.max()) / scale)
        return worst


class Batch(Protocol):
    """A batch on which ways of running are compared.

    Attributes:
        rows: its size.
        members: N.
        compared: how many of them are compared with the loop over materialised members.
    """

    rows: int
    members: int
    compared: int

    def run(self, chunk: int) -> Sequence[Tensor]:
        """Run all members with so many in one call; gives the outputs of those that are compared.

        Raises:
            ModelError: vmap refuses the model.
        """

    def loop_compared(self) -> Sequence[Tensor]:
        """Run the loop on the members that are compared alone; gives their outputs."""

    def loop_others(self) -> None:
        """Run the loop on as many members as are compared, others each time: a processor's cache does not hold their
        weights, as it does not in a loop over all."""

    def error(self, outputs: Sequence[Tensor]) -> float:
        """How far these are from the loop over materialised members, relative to the largest magnitude."""


class RealBatch:
    """A batch of an ensemble; see :class:`Batch`.

    Args:
        program: what runs: where members have factors, the program rewritten to use them.
        original: the original program.
        members: the weights.
        inputs: flat inputs.
    """

    def __init__(self, program: Program, original: Program, members: Members, inputs: Sequence[Tensor]) -> None:
        self._reference = Reference(original, members, inputs)
        self._program, self._weights, self._inputs = program, members, inputs
        self._alone = [
            dataclasses.replace(members, count=1, stacked=members.slice(index, index + 1), mixture=None)
            for index in self._reference.indices
        ]
        self.rows, self.members, self.compared = inputs[0].shape[0], members.count, len(self._alone)
        self._others = 0

    def chunks(self) -> list[int]:
        """What to try."""
        return candidates(self.members, default_chunk(self._program, self._weights, self._inputs))

    def run(self, chunk: int) -> Sequence[Tensor]:
        """See :class:`Batch`."""
        return self._finished(self._compared(evaluate(self._program, self._weights, self._inputs, chunk=chunk)))

    def loop_compared(self) -> Sequence[Tensor]:
        """See :class:`Batch`."""
        each = (evaluate(self._program, one, self._inputs, chunk=LOOP) for one in self._alone)
        return self._finished(outputs for one in each for outputs in one)

    def loop_others(self) -> None:
        """See :class:`Batch`."""
        start = self._others if self._others + self.compared <= self.members else 0
        self._others = start + self.compared
        own = self._weights.slice(start, self._others)
        some = dataclasses.replace(self._weights, count=self.compared, stacked=own, mixture=None)
        self._finished(evaluate(self._program, some, self._inputs, chunk=LOOP))

    def error(self, outputs: Sequence[Tensor]) -> float:
        """See :class:`Batch`."""
        return self._reference.error(outputs)

    def _compared(self, chunks: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        start = 0
        for outputs in chunks:
            stop = start + outputs[0].shape[0]
            there = [index - start for index in self._reference.indices if start <= index < stop]
            if there:
                yield tuple(output[there] for output in outputs)
            start = stop

    def _finished(self, chunks: Iterator[tuple[Tensor, ...]]) -> Sequence[Tensor]:
        found = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        if found[0].device.type == "cuda":
            torch.cuda.synchronize(found[0].device)
        return found


def candidates(members: int, most: int) -> list[int]:
    """Chunks to try, the most promising first; LOOP among the first, since it is the mark to beat.

    Args:
        members: N.
        most: the largest chunk whose activations fit.
    """
    sizes = [min(members, most)]
    while sizes[-1] > 2:
        sizes.append(max(2, sizes[-1] // (4 if sizes[-1] > 256 else 2)))
    return [sizes[0], LOOP, *sizes[1:]]


def measure(batch: Batch, chunks: Sequence[int], bound: float, seconds: float) -> Way:
    """Check and time the candidates for one batch size.

    Args:
        batch: what is run.
        chunks: what to try, in order.
        bound: largest difference from the loop over materialised members, relative to the largest magnitude.
        seconds: when this is spent, no further candidate is tried but the loop.

    Raises:
        ModelError: none of them gives what the loop over materialised members gives.
    """
    end = time.perf_counter() + seconds
    trials: list[Trial] = []
    wrong: list[float] = []
    for chunk in chunks:
        if trials and chunk != LOOP and time.perf_counter() > end:
            continue
        begun = time.perf_counter()
        try:
            outputs = batch.loop_compared() if chunk == LOOP else batch.run(chunk)
        except ModelError:
            # vmap refuses the model; the loop does not.
            continue
        first, error = time.perf_counter() - begun, batch.error(outputs)
        kind = "loop" if chunk == LOOP else "vmap"
        if error > bound:
            log.warning(
                "%s with %d members at a time is not used for %d rows: it differs from the loop over members by %.2g",
                *(kind, chunk or 1, batch.rows, error),
            )
            wrong.append(error)
            continue
        best = min((trial.seconds for trial in trials), default=math.inf)
        taken = _loop(batch, best, end) if chunk == LOOP else _again(batch, chunk, [first], best, end)
        trials.append(Trial(kind, chunk, batch.rows, taken, error=error))
    if not trials:
        raise ModelError(
            f"No way of running {batch.rows} rows gives what the loop over members gives; the nearest differs by "
            f"{min(wrong, default=math.inf):.2g} (bound {bound}), relative to the largest magnitude."
        )
    return Way.of(batch.rows, trials)


def _again(batch: Batch, chunk: int, times: list[float], best: float, end: float) -> float:
    """Seconds of a candidate that took so long already; a first run allocates and chooses kernels, so that only a
    hopeless one counts."""
    while not times or (len(times) <= _REPEATS and times[-1] < _HOPELESS * best and time.perf_counter() < end):
        times.append(timed(batch.run, chunk))
    return min(times)


def _loop(batch: Batch, best: float, end: float) -> float:
    """Seconds of the loop, which has run before: on all members if there is time for it."""
    some = [timed(batch.loop_others)]
    while len(some) < _REPEATS and time.perf_counter() < end:
        some.append(timed(batch.loop_others))
    part = batch.compared / batch.members
    left = end - time.perf_counter()
    # A busy machine interrupts a long run, and few of the short ones: the fastest of these says whether the loop may
    # win, their mean what it takes.
    fastest = min(some) / part
    if fastest > (left if fastest < _HOPELESS * best else _HOPELESS_SHARE * left):
        return sum(some) / len(some) / part
    return _again(batch, LOOP, [], best, end)


def timed(run: Callable[..., object], *arguments: object) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start
