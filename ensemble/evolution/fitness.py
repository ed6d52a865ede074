"""The fitness of members: what may be given, and what the gradient is estimated with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ensemble.errors import InputError

Shaping = Literal["centred_ranks", "z_scores", "raw"]
SHAPINGS: tuple[Shaping, ...] = get_args(Shaping)


def checked(fitness: Tensor | Sequence[float], count: int) -> Tensor:
    """Somebody's scores of all members, (count,) in float64 on the CPU.

    Raises:
        InputError: another number of scores, or one that is not finite.
    """
    try:
        given = torch.as_tensor(fitness).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"fitness must be {count} numbers, however: {error}.") from None
    if given.is_complex():
        raise InputError(f"fitness must be {count} real numbers, however: {given.dtype}.")
    found = given.to("cpu", torch.float64)
    if tuple(found.shape) != (count,):
        raise InputError(f"fitness must be one number for each of {count} members, got {list(found.shape)}.")
    if not bool(found.isfinite().all()):
        index = int((~found.isfinite()).nonzero()[0])
        raise InputError(
            f"The fitness of member {index} is {float(found[index])}; give a member that failed a low number."
        )
    return found


def shape_fitness(fitness: Tensor, shaping: Shaping) -> Tensor:
    """Make fitness into what the gradient is estimated with; see :class:`~ensemble.Population`.

    Args:
        fitness: (N,), finite.

    Returns:
        (N,) in float64.
    """
    fitness = fitness.double()
    if shaping == "raw":
        return fitness
    if shaping == "z_scores":
        centred = fitness - fitness.mean()
        deviation = centred.square().mean().sqrt()
        return centred / deviation if deviation > 0 else centred
    ordered = fitness.sort().values
    below = torch.searchsorted(ordered, fitness, side="left")
    # Of n tied members each has the mean of their n ranks.
    ranks = (below + torch.searchsorted(ordered, fitness, side="right") - 1) / 2
    return (ranks / max(1, len(fitness) - 1) - 0.5).double()
