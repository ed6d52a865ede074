"""What sets of members have in common that can be evaluated together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from ensemble.members import bytes_of
from ensemble.perturbation.factors import Shape
from ensemble.structured import LEFT, RIGHT

# What members have of their own: each (members, *shape); of a factored weight its factors.
OwnWeights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What variants have in common that can be evaluated together.

    Args:
        count: members of each.
        own: name, dtype and shape of each tensor that a member has of its own.
        factored: weights of which these are factors, with their form, rank and shape.
        mixture: the members' weights in the mixture; None if all are equal.
    """

    count: int
    own: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    factored: tuple[tuple[str, Shape], ...] = ()
    mixture: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        # It tells requests apart, many times for each.
        object.__setattr__(self, "_hash", hash((self.count, self.own, self.factored, self.mixture)))

    def __hash__(self) -> int:
        found: int = self.__dict__["_hash"]
        return found

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one variant's own weights."""
        return self.count * bytes_of({name: (dtype, shape) for name, dtype, shape in self.own})

    @property
    def differing(self) -> list[str]:
        """Names of the weights that differ between members."""
        forms = dict(self.factored)
        sides = {name + side for name in forms for side in (LEFT, RIGHT)}
        return [*(name for name, _, _ in self.own if name not in sides), *forms]

    @property
    def weights(self) -> Tensor | None:
        """The members' weights in the mixture, (members,) float64."""
        return None if self.mixture is None else torch.tensor(self.mixture, dtype=torch.float64)
