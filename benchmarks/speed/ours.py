"""This library, planned as the service plans: measured, then compiled, then the fastest of what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ensemble
from benchmarks.models import Case
from benchmarks.speed.peers import Call, Inputs

# How long the service lets measuring take, for each batch size.
_MEASURING = 10.0


class Planned:
    """One ensemble with a plan for some batch sizes. What a server does to a model at start-up is here, and only here.

    Args:
        case: the model.
        recipe: of :data:`benchmarks.models.RECIPES`.
        count: how many members.
        batches: rows that calls will have, ascending.
    """

    def __init__(self, case: Case, recipe: str, count: int, batches: Sequence[int]) -> None:
        self.made = case.ensemble(recipe, count)
        self.made.measure(batches, seconds=_MEASURING * len(batches))
        self.refused: dict[int, str] = {}

    def prepare(self, inputs: Inputs) -> Call:
        """Compile for the rows of these inputs, where that is possible, and use it where it is faster."""
        rows = inputs[0].shape[0]
        try:
            self.made.adopt(self.made.compile(rows))
        except ensemble.ModelError as error:
            self.refused[rows] = str(error)
        return lambda: self.made(*inputs)

    def note(self, rows: int) -> str:
        """How a batch of so many rows runs."""
        assert self.made.plan is not None
        way = self.made.plan.way(rows)
        text = way.kind if way.kind == "loop" else f"{way.kind}, {way.chunk} at once"
        return f"{text} (not compiled: {self.refused[rows]})" if rows in self.refused else text


def ours(recipe: str) -> Callable[[Case, int, Sequence[int]], Planned]:
    """The way of a recipe."""
    return lambda case, count, batches: Planned(case, recipe, count, batches)
