"""A low-rank matrix added to every chosen weight, in antithetic pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.factors import Factors, Shape, columns
from ensemble.perturbation.noise import Noise
from ensemble.random import root_mean_square, standard_normal

MAX_RANK = 256


@dataclass(frozen=True)
class LowRank(Noise, name="low_rank"):
    """W_i = W + scale · rms(W) · A_i B_iᵀ / √rank, with A and B standard normal; vectors get dense noise.

    Members 2k and 2k+1 are antithetic: the same noise with opposite signs, so that their mean is the trained weight.
    Source: EGGROLL (arXiv 2511.16652). The trained weights stay shared and no member's matrix is ever formed where a
    weight is used in a linear layer, a convolution, an embedding or a matrix product; a thousand members cost little
    more than one.

    Args:
        scale: noise relative to the root mean square of each weight, ≥ 0. No unit.
        rank: of the added matrix, ≥ 1.
        include: patterns of the names to perturb; all floating-point parameters by default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: numbers out of range, or patterns that are not text.

    Example:
        >>> LowRank(scale=0.05, rank=2)
        LowRank(scale=0.05, include=('*',), exclude=(), rank=2)
    """

    rank: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            raise RecipeError(f"rank must be an integer between 1 and {MAX_RANK}, however: {self.rank!r}.")

    def noise(self, name: str, shape: torch.Size, seed: int, members: range) -> Tensor:
        return _antithetic(seed, members, name, shape)

    def structure(self, shape: Sequence[int]) -> Shape | None:
        return Shape("additive", self.rank, tuple(shape)) if len(shape) > 1 else None

    def factors(self, name: str, weight: Tensor, seed: int, members: range) -> Factors | None:
        if weight.ndim < 2:
            return None
        rows, width = weight.shape[0], columns(weight.shape, "additive")
        exact = torch.promote_types(weight.dtype, torch.float32)
        left = _antithetic(seed, members, f"{name}/left", (rows, self.rank)).to(exact)
        right = _paired(seed, members, f"{name}/right", (width, self.rank)).to(exact)
        right.mul_(self.scale * root_mean_square(weight) / math.sqrt(self.rank))
        return Factors("additive", left, right)


def _paired(seed: int, members: range, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Noise that both members of a pair share."""
    first = members.start // 2
    pairs = standard_normal(seed, range(first, (members.stop - 1) // 2 + 1), name, shape)
    return pairs[torch.tensor([member // 2 - first for member in members])]


def _antithetic(seed: int, members: range, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Noise of one sign in the even member of a pair, of the other in the odd one."""
    signs = torch.tensor([1.0 if member % 2 == 0 else -1.0 for member in members])
    return _paired(seed, members, name, shape).mul_(signs.view(-1, *[1] * len(shape)))
