"""From a saved ensemble to one that is measured, checked and ready to be asked."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

import ensemble
from app.planning import PLAIN, Planning, Progress, batch_sizes, make_plan
from app.served.arrays import few_digits, to_array
from app.served.served import Served
from app.served.specs import input_specs, output_specs, target_specs


def wrap(name: str, version: str, made: ensemble.Ensemble, max_batch: int) -> Served:
    """An ensemble that is loaded already, neither measured nor checked."""
    inputs = input_specs(made)
    return Served(
        name,
        version,
        made,
        max_batch,
        inputs,
        output_specs(made),
        target_specs(made, {spec.name for spec in inputs}),
        made.unavailable_statistics(),
    )


def load(
    name: str,
    version: str,
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    max_batch: int,
    progress: Progress,
    planning: Planning = PLAIN,
) -> Served:
    """Load a saved ensemble, measure the ways of running it, and check each against the loop over members.

    Raises:
        ensemble.EnsembledError: it cannot be loaded or gives wrong answers; the text says why.
    """
    made = ensemble.load(
        path,
        device=device,
        dtype=dtype,
        progress=lambda done, total: progress("drawing members", done / total),
    )
    served = wrap(name, version, made, max_batch)
    sizes = batch_sizes(max_batch)
    complete = make_plan(made, planning, sizes, progress)
    assert made.plan is not None
    progress("checking against the loop over members", 0.0)
    error = made.check(made.example(made.plan.ways[0].rows))
    for way in made.plan.ways[1:]:
        error = max(error, made.check(made.example(way.rows)))
    # Rounded before it is answered, so that whoever copies it from the documentation gets that answer.
    rows = [few_digits(to_array(tensor)) for tensor in made.example(1)]
    example = dict(zip((s.name for s in served.inputs), rows, strict=True))
    return replace(
        served,
        # A batch that no way was found for in time brings nothing: it would only hold up others.
        max_batch=min(max_batch, made.plan.ways[-1].rows),
        error=error,
        plan_sizes=tuple(sizes),
        plan_complete=complete,
        weights=[asdict(row) for row in ensemble.compatibility(made)],
        example_inputs=example,
        example_outputs=served.infer(example, served.defaults),
    )
