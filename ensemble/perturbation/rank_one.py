"""Every chosen weight times a rank-1 matrix near one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble.perturbation.factors import Factors, Shape, columns
from ensemble.perturbation.noise import Noise
from ensemble.random import standard_normal


@dataclass(frozen=True)
class Rank1(Noise, name="rank1"):
    """W_i = W ∘ (r_i s_iᵀ) with r = 1 + scale · ε and s = 1 + scale · ε', standard normal; vectors get dense noise.

    The multiplicative form of BatchEnsemble (arXiv 2002.06715): a member scales the inputs and the outputs of a layer,
    and the trained weights stay shared. A convolution's kernel is scaled as a whole.

    Args:
        scale: standard deviation of the factors around one, ≥ 0; of vectors relative to their root mean square.
        include: patterns of the names to perturb; all floating-point parameters by default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: a scale out of range, or patterns that are not text.

    Example:
        >>> Rank1(scale=0.1)
        Rank1(scale=0.1, include=('*',), exclude=())
    """

    def structure(self, shape: Sequence[int]) -> Shape | None:
        return Shape("multiplicative", 1, tuple(shape)) if len(shape) > 1 else None

    def factors(self, name: str, weight: Tensor, seed: int, members: range) -> Factors | None:
        if weight.ndim < 2:
            return None

        exact = torch.promote_types(weight.dtype, torch.float32)

        def near_one(part: str, size: int) -> Tensor:
            return standard_normal(seed, members, f"{name}/{part}", (size, 1)).to(exact).mul_(self.scale).add_(1)

        right = near_one("right", columns(weight.shape, "multiplicative"))
        return Factors("multiplicative", near_one("left", weight.shape[0]), right)
