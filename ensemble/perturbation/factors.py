"""Members' weights as a shared tensor and two thin factors of their own.

A weight is read as a matrix of ``rows`` (its first dimension: outputs of a linear layer or convolution, entries of an
embedding) and ``columns``. A member never needs the matrix itself where the weight is used in a product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Form = Literal["additive", "multiplicative"]


@dataclasses.dataclass(frozen=True)
class Factors:
    """Factors of some members' weights.

    Args:
        form: "additive": W_i = W + L_i R_iᵀ; "multiplicative": W_i = W ∘ (l_i r_iᵀ), r_i along the second dimension.
        left: (members, rows, rank).
        right: (members, columns, rank). Additive factors take all dimensions after the first as columns,
            multiplicative ones the second alone, so that a convolution's kernel is scaled as a whole.
    """

    form: Form
    left: Tensor
    right: Tensor

    def materialise(self, weight: Tensor) -> Tensor:
        """The members' full weights, (members, *weight.shape), in the dtype of the factors."""
        base = weight.to(self.left.dtype)
        # Term by term, since a matrix product adds in an order that depends on the machine.
        left, right = self.left.unsqueeze(2), self.right.unsqueeze(1)
        product = left[..., 0] * right[..., 0]
        for k in range(1, left.shape[-1]):
            product = product + left[..., k] * right[..., k]
        if self.form == "additive":
            return base + product.view(len(product), *weight.shape)
        rows, columns = weight.shape[:2]
        return base * product.view(len(product), rows, columns, *[1] * (weight.ndim - 2))


def columns(shape: Sequence[int], form: Form) -> int:
    """How many columns a weight of this shape has."""
    return math.prod(shape[1:]) if form == "additive" else shape[1]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is known of a factored weight without drawing it: its form, rank, and own shape."""

    form: Form
    rank: int
    size: tuple[int, ...]

    @property
    def factors(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of one member's left and right factor."""
        return (self.size[0], self.rank), (columns(self.size, self.form), self.rank)
