"""Where training starts: the trained weights, or a recipe's members, in full or as factors of low rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from ensemble.errors import RecipeError
from ensemble.members import Members
from ensemble.memory import require
from ensemble.perturbation.base import Perturbation
from ensemble.perturbation.factors import Shape
from ensemble.program.program import Program, Weights
from ensemble.random import standard_normal
from ensemble.structured import LEFT, RIGHT, factorable

_SLICE_BYTES = 16 * 2**20


def starting(
    program: Program,
    weights: Weights,
    names: Sequence[str],
    perturbed: Collection[str],
    recipe: Perturbation | None,
    *,
    rank: int | None,
    count: int,
    seed: int,
    device: torch.device,
) -> Members:
    """Members before their first step.

    Args:
        program: what will run them.
        weights: the trained weights, by name.
        names: which of them are trained, and so stacked.
        perturbed: which of these the recipe perturbs; the others start as they are.
        recipe: what the members start as; None for the trained weights.
        rank: give matrices that the program uses in products alone additive factors of this rank in place of weights
            in full. They start as the recipe's factors; and for what these leave of the rank, or all of it without a
            recipe, with a left factor of 0 and a right one that is the member's own noise, so that no member starts
            elsewhere and each moves in directions of its own (LoRA, arXiv 2106.09685).
        count: how many members.
        seed: of the recipe, and of that noise.
        device: where they live.

    Raises:
        RecipeError: with a rank, a recipe without additive factors, or with factors of a higher rank.
        MemoryLimitError: they do not fit.
    """
    factored: dict[str, Shape] = {}
    if rank is not None:
        wanted = {n: Shape("additive", rank, tuple(weights[n].shape)) for n in names if weights[n].ndim > 1}
        factored, _ = factorable(program, wanted)
        for name in factored:
            form = recipe.structure(weights[name].shape) if recipe is not None and name in perturbed else None
            if name in perturbed and (form is None or form.form != "additive" or form.rank > rank):
                raise RecipeError(
                    f"With rank={rank} members start from the trained weights (start=None) or from LowRank(scale=..., "
                    f"rank=...) of at most that rank, however: {recipe!r}."
                )
    sizes: dict[str, tuple[int, ...]] = {}
    for name in names:
        if name in factored:
            sizes[name + LEFT], sizes[name + RIGHT] = factored[name].factors
        else:
            sizes[name] = tuple(weights[name].shape)
    kinds = {place: weights[name].dtype for name in names for place in (name, name + LEFT, name + RIGHT)}
    require(
        [(kinds[place], size) for place, size in sizes.items()], count, device, factors="rank=1" if rank is None else ""
    )
    stacked = {place: torch.empty((count, *size), dtype=kinds[place], device=device) for place, size in sizes.items()}
    slice_size = max(1, _SLICE_BYTES // max(1, 4 * max(math.prod(size) for size in sizes.values())))
    for start in range(0, count, slice_size):
        members = range(start, min(count, start + slice_size))
        there = slice(start, members.stop)
        for name in names:
            own = recipe if name in perturbed else None
            if name not in factored:
                stacked[name][there] = weights[name] if own is None else own.draw(name, weights[name], seed, members)
                continue
            assert rank is not None
            given = 0
            left, right = stacked[name + LEFT][there], stacked[name + RIGHT][there]
            if own is not None:
                factors = own.factors(name, weights[name], seed, members)
                assert factors is not None
                given = factors.left.shape[-1]
                left[..., :given], right[..., :given] = factors.left, factors.right
            left[..., given:] = 0
            noise = standard_normal(seed, members, f"{name}/start", right[0, :, given:].shape)
            right[..., given:] = noise.div_(math.sqrt(rank))
    shared = {name: weight.to(device, copy=True) for name, weight in weights.items() if name not in stacked}
    return Members(count, shared, stacked, factored)
