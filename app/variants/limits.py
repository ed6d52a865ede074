"""What requests may bring to a model, as the operator allows it and the model has it."""

from __future__ import annotations

from dataclasses import dataclass

import ensemble
from app.protocol import Bringable, WeightSpec
from app.served import DATATYPES
from app.variants.recipe import settable

_NOT_PERMITTED = "this service permits no perturbations in requests (--max-perturbed-members is 0)"
_NO_WEIGHTS = "this service permits no weights in requests (--allow-weights)"


@dataclass(frozen=True)
class Limits:
    """What requests may bring.

    Attributes:
        members: of a perturbation, or of weights.
        perturbed_bytes: own weights of a perturbation.
        kept_bytes: perturbations that are kept, of each model.
        weights: whether weights may come.
        weight_bytes: of all weights of a request.
    """

    members: int = 256
    perturbed_bytes: int = 32 * 2**20
    kept_bytes: int = 256 * 2**20
    weights: bool = False
    weight_bytes: int = 4 * 2**20


def bringable(made: ensemble.Ensemble, limits: Limits) -> Bringable:
    """What the protocol may read of requests to a model."""
    refusals = {}
    if not limits.members:
        refusals["perturbation"] = _NOT_PERMITTED
    if not limits.weights:
        refusals["weights"] = _NO_WEIGHTS
    sizes = {name: tuple(empty.shape) for name, empty in made.program.empty_weights().items()}
    weights = {
        name: WeightSpec(name, DATATYPES[made.members.dtypes[name]], (-1, *size))
        for name, size in sizes.items()
        if limits.weights and made.members.dtypes[name].is_floating_point
    }
    return Bringable(settable(), limits.members, weights, limits.weight_bytes, refusals, frozenset(sizes))
