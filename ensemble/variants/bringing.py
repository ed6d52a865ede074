"""Weights that somebody brings: whether they fit the model, and what becomes of them.

Everything that follows from names and shapes is found out before a number is looked at, and once for all weights of
the same names and shapes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.errors import InputError
from ensemble.perturbation.factors import Shape
from ensemble.program.program import plain
from ensemble.structured import LEFT, RIGHT
from ensemble.variants.kind import Kind
from ensemble.variants.programs import Programs

MAX_RANK = 256
_MOST_PLANS = 1024

NO_REFERENCE = (
    "this ensemble's members were trained separately, generated or given, so that there are no trained weights that "
    "all of them come from."
)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What becomes of given tensors, and of which dtype and shape they are for one member."""

    kind: Kind
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class Bringing:
    """Takes weights for one model. See :meth:`Variants.brought` for what may be given.

    Args:
        programs: that will run them.
        sizes: shapes of the model's weights.
        dtypes: of them.
        trained: those that are known, where and as what they are evaluated.
        device: where the members are.
    """

    def __init__(
        self,
        programs: Programs,
        sizes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        trained: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._programs = programs
        self._sizes = sizes
        self._dtypes = dtypes
        self._trained = trained
        self._device = device
        self._plans: dict[Any, _Plan] = {}

    def checked(self, weights: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
        """What members with these weights are, and what was given as they need it.

        Returns:
            The kind; and the tensors, where members are, of their dtypes, each with a dimension of members. Those that
            came without one are views, so that all take no more memory than what was given.

        Raises:
            InputError: as :meth:`Variants.brought`.
        """
        plan = self._plan(weights)
        given: dict[str, Tensor] = {}
        for name, dtype, shape in plan.tensors:
            tensor = weights[name].detach().to(self._device, dtype)
            # The sum of what is finite may not be, but never the other way round.
            if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
                raise InputError(f"The weight {name!r} must hold finite numbers of {plain(dtype)}.")
            given[name] = tensor if tensor.ndim > len(shape) else tensor.expand(plan.kind.count, *shape)
        return plan.kind, given

    def formed(self, kind: Kind, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What members have of their own, from what :meth:`checked` gave.

        Factors of a weight whose use has no factored form are multiplied out.
        """
        return {name: given[name] if name in given else self._sum(name, given) for name, _, _ in kind.own}

    def _sum(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        base = self._trained[name]
        exact = torch.promote_types(base.dtype, torch.float32)
        delta = given[name + LEFT].to(exact) @ given[name + RIGHT].to(exact).mT
        return delta.view(-1, *base.shape).add_(base).to(base.dtype)

    def _plan(self, weights: Mapping[str, Tensor]) -> _Plan:
        signature = tuple((name, tensor.shape, tensor.is_floating_point()) for name, tensor in weights.items())
        found = self._plans.get(signature)
        if found is None:
            found = self._made(weights)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[signature] = found
        return found

    def _made(self, weights: Mapping[str, Tensor]) -> _Plan:
        if not weights:
            raise InputError("weights must hold at least one tensor.")
        full, factors = self._sorted_out(weights)
        count = _count(weights, {**full, **factors})
        bases = {name: name if name in full else _factor_of(name)[0] for name in weights}
        forms = {
            bases[name]: Shape("additive", shape[1], self._sizes[bases[name]])
            for name, shape in factors.items()
            if name.endswith(LEFT)
        }
        sizes = {name: self._sizes[name] for name in [*full, *forms]}
        tensors = tuple(
            (name, self._dtypes[bases[name]], full[name] if name in full else factors[name]) for name in weights
        )
        return _Plan(
            self._programs.kind(1 if count is None else count, sizes, self._programs.factorable(forms)), tensors
        )

    def _sorted_out(
        self, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Whole weights and factors by their names, with the shape that a member's has."""
        full: dict[str, tuple[int, ...]] = {}
        factors: dict[str, tuple[int, ...]] = {}
        for name, tensor in weights.items():
            if name in self._dtypes:
                full[name] = self._sizes[name]
            else:
                factors[name] = self._factor_shape(name, tensor, weights)
        if missing := [name for name in self._dtypes if name not in self._trained and name not in full]:
            raise InputError(f"{_listing(missing)} must be given too: {NO_REFERENCE}")
        for name, tensor in weights.items():
            dtype = self._dtypes[name if name in full else _factor_of(name)[0]]
            if not dtype.is_floating_point or not tensor.is_floating_point():
                what = f"is {plain(dtype)} and stays as it is" if not dtype.is_floating_point else "must be floats"
                raise InputError(f"The weight {name!r} {what}, however: {plain(tensor.dtype)}.")
            shape, own = full[name] if name in full else factors[name], tuple(tensor.shape)
            if shape not in (own, own[1:]) or 0 in own:
                many = ", ".join(["members", *map(str, shape)])
                raise InputError(
                    f"The weight {name!r} must have shape {list(shape)}, or [{many}], however: {list(own)}."
                )
        return full, factors

    def _factor_shape(self, name: str, tensor: Tensor, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The shape that a factor of this name has for one member; checked but for the members."""
        base, side = _factor_of(name)
        if base not in self._dtypes:
            raise InputError(f"{name!r} is no weight of this model; it has {_listing(self._dtypes)}.")
        if base not in self._trained:
            raise InputError(f"{name!r} is added to a trained weight, and {NO_REFERENCE}")
        size = self._sizes[base]
        if len(size) < 2:
            raise InputError(f"{base!r} is a vector and has no factors; give it whole.")
        if tensor.ndim < 2 or not 1 <= (rank := tensor.shape[-1]) <= MAX_RANK:
            raise InputError(f"{name!r} must be (rows, rank) with a rank from 1 to {MAX_RANK}.")
        if base in weights:
            raise InputError(f"{base!r} must be given whole or as factors, not both.")
        other = base + (RIGHT if side == LEFT else LEFT)
        if other not in weights or weights[other].shape[-1:] != tensor.shape[-1:]:
            raise InputError(f"{name!r} must come with {other!r} of the same rank.")
        return size[0] if side == LEFT else math.prod(size[1:]), rank


def _factor_of(name: str) -> tuple[str, str]:
    """Which weight's factor this is by its name, and on which side; the name itself and nothing if it is none."""
    for side in (LEFT, RIGHT):
        if name.endswith(side):
            return name.removesuffix(side), side
    return name, ""


def _count(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many members the tensors are of; None if none has a dimension of members.

    Raises:
        InputError: they are of different numbers.
    """
    counts = {name: weights[name].shape[0] for name, shape in shapes.items() if weights[name].ndim > len(shape)}
    if len(set(counts.values())) > 1:
        raise InputError(f"All weights with a dimension of members must have as many of them, however: {counts}.")
    return next(iter(counts.values()), None)


def _listing(names: Mapping[str, object] | Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, list(names)[:most]))
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
