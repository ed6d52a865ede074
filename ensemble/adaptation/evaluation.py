"""Adapted members on rows of their own: their outputs, and the statistics of them, for all tasks in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ensemble.adaptation.adaptable import Adaptable
from ensemble.adaptation.inner_loop import Layout, all_at_once, explained, one_by_one
from ensemble.condense import condense
from ensemble.outputs import Outputs
from ensemble.statistics import Asked
from ensemble.variants.grouped import as_rows, check_indices, evaluate_groups
from ensemble.vectorised import refused, vmappable


def outputs(
    adaptable: Adaptable, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], vectorised: bool
) -> tuple[Tensor, ...]:
    """Flat outputs of adapted members.

    Args:
        weights: the adapted weights by name, each (tasks, members, *shape).
        inputs: flat, each (tasks, rows, ...).
        vectorised: False runs task after task and member after member.

    Returns:
        Each (tasks, members, ...).
    """
    check_indices(adaptable.program, adaptable.one_member({**adaptable.fixed, **adaptable.start}), inputs)
    running = adaptable.program.with_own_inputs
    layout = Layout(frozenset(weights), (adaptable.differing & adaptable.fixed.keys()) | weights.keys())
    found: tuple[Tensor, ...] = run(
        adaptable,
        lambda own, rows: tuple(running(own, rows)),
        {**adaptable.fixed, **weights},
        layout,
        tuple(inputs),
        inputs[0].shape[0],
        vectorised,
    )
    return found


def asked(
    adaptable: Adaptable,
    statistics: Sequence[str] | None,
    rows: int,
    *,
    confidence_level: float | None = None,
    levels: Iterable[float] | None = None,
) -> Asked:
    """What is asked of so many rows in all, checked; as :meth:`ensemble.outputs.Outputs.asked`."""
    return askable(adaptable).asked(
        statistics,
        rows,
        mixture=adaptable.ensemble.members.mixture,
        confidence_level=confidence_level,
        levels=levels,
    )


def askable(adaptable: Adaptable) -> Outputs:
    """What may be asked of adapted members. What was fitted to the ensemble on data does not hold for them."""
    return dataclasses.replace(adaptable.ensemble.outputs, calibration=None)


def condensed(
    adaptable: Adaptable, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], counts: Sequence[int], asked: Asked
) -> dict[str, dict[str, Tensor]]:
    """Statistics of adapted members.

    Args:
        weights: the adapted weights by name, each (tasks, members, *shape).
        inputs: flat, each (tasks, rows, ...).
        counts: how many of the rows are each task's own; the others are left out.
        asked: from :func:`asked`.

    Returns:
        By the head's name and the statistic's, the rows of one task after those of another.
    """
    tasks = inputs[0].shape[0]
    shared = {name: tensor for name, tensor in adaptable.fixed.items() if name not in adaptable.differing}
    own = {name: t.expand(tasks, *t.shape) for name, t in adaptable.fixed.items() if name in adaptable.differing}
    chunks = evaluate_groups(adaptable.program, shared, {**own, **weights}, inputs)
    return condense(asked, (as_rows(some, adaptable.program.outputs, counts) for some in chunks))


def run(
    adaptable: Adaptable,
    function: Any,
    weights: dict[str, Tensor],
    layout: Layout,
    rows: Any,
    tasks: int,
    vectorised: bool,
) -> Any:
    """Call a function of one member's weights and one task's rows for all of them, at once where ``vmap`` can.

    Args:
        function, weights, layout, rows: as of :func:`~ensemble.adaptation.inner_loop.all_at_once`.
        tasks: how many.
        vectorised: False calls it for one after the other.

    Raises:
        ModelError: an operation has no gradient.
    """
    program = adaptable.program
    with program.with_own_inputs.exclusively(), vmappable(), explained():
        if vectorised and not program.looped_because and not adaptable.refusals:
            try:
                return all_at_once(function, weights, layout, rows, "error")
            except RuntimeError as error:
                refusal = refused(program, error)
                if refusal is None:
                    raise
                adaptable.refusals.append(str(refusal))
        return one_by_one(function, weights, layout, rows, tasks, adaptable.members)
