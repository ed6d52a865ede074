"""This library with the plan that it makes: measured, compiled, checked, and the fastest of what was found."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import Case
from benchmarks.speed.peers import Call, Inputs


class Planned:
    """One ensemble with a plan for some batch sizes. What is done before it is timed is here, and only here.

    Args:
        case: the model.
        recipe: of :data:`benchmarks.models.RECIPES`.
        count: how many members.
        batches: rows that calls will have, ascending.
        seconds: that planning may take for each of them, compiling included.
    """

    def __init__(self, case: Case, recipe: str, count: int, batches: Sequence[int], seconds: float) -> None:
        self.made = case.ensemble(recipe, count)
        self.plan = self.made.optimize(batches, seconds=seconds * len(batches))

    def prepare(self, inputs: Inputs) -> Call:
        """The call, which runs as the plan says for the rows of these inputs."""
        return lambda: self.made(*inputs)

    def note(self, rows: int) -> str:
        """How a batch of so many rows runs, and what could not be had for it."""
        trial = self.plan.trial(rows)
        text = trial.kind if trial.kind == "loop" else f"{trial.kind}, {trial.chunk} at once"
        failures = "; ".join(f"no {kind}: {reason}" for kind, reason in self.plan.failures.items())
        return f"{text} ({failures})" if failures else text
