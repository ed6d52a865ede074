"""How a model's plan comes about: what was kept from before is used, else the ways of running are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ensemble
from ensemble.backends import BACKENDS
from ensemble.backends.workshop import Workshop
from ensemble.memory import available
from ensemble.planning.optimize import Precision, Step

# Called with what is being done, and how much of it is done (0..1).
Progress = Callable[[str, float], None]

_MEASURE_SECONDS = 10.0
# What was compiled before is there in a moment; where it is not, it is compiled once the model answers.
_RECALL_SECONDS = 30.0
# Part of the free memory that copies of the weights may take.
_COPIES_SHARE = 0.25


@dataclass(frozen=True)
class Planning:
    """What may be done to find the fastest way.

    Attributes:
        workshop: where calls are compiled and kept; None if nothing is to be compiled.
        precision: the least that is good enough.
    """

    workshop: Workshop | None = None
    precision: Precision = "float32"


# As they are, without compiling.
PLAIN = Planning()


def batch_sizes(max_batch: int) -> list[int]:
    """The sizes that a plan is made for: powers of two, and the largest batch."""
    return sorted({1 << power for power in range(max_batch.bit_length())} | {max_batch})


def make_plan(made: ensemble.Ensemble, planning: Planning, sizes: Sequence[int], progress: Progress) -> bool:
    """Give an ensemble its plan, without compiling anything that was not compiled before.

    Returns:
        Whether the plan is complete, so that nothing is left to be compiled.
    """
    workshop = planning.workshop
    if workshop is not None:
        steps = made.recall(sizes, workshop, planning.precision)
        if steps is not None and all(workshop.has(made.job(step)) for step in steps):
            return made.follow(
                steps,
                workshop,
                seconds=_RECALL_SECONDS,
                progress=lambda step: progress(f"the plan of before: {step}", 0.5),
            )
    progress("measuring ways of running", 0.0)
    made.measure(
        sizes,
        seconds=_MEASURE_SECONDS,
        progress=lambda rows: progress(f"measuring ways of running {rows} rows", sizes.index(rows) / len(sizes)),
    )
    return False


def steps_for(made: ensemble.Ensemble, planning: Planning) -> list[Step]:
    """What is worth compiling for an ensemble that was measured: for one row, the largest batch, and some between; by
    what is quick about it, as OpenVINO is, for every size whose copy of the weights there is plenty of memory for."""
    planned = [way.rows for way in made.plan.ways] if made.plan else []
    chosen = [rows for rows in planned if rows.bit_length() % 2 == 1 or rows == planned[-1]]
    # What waits while the engine is busy is merged to large batches; a single request finds it idle.
    chosen.sort(key=lambda rows: (rows not in (planned[0], planned[-1]), rows))
    free = available(made.device)
    if free is not None and made.members.nbytes * len(planned) > free * _COPIES_SHARE:
        return made.steps(chosen, precision=planning.precision)
    rest = [rows for rows in planned if rows not in chosen]
    steps = made.steps([*chosen, *rest], precision=planning.precision)
    return [step for step in steps if BACKENDS[step.kind].QUICK or step.rows in chosen]
