"""Independent Gaussian noise on every chosen weight."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Perturbation, as_patterns, choose
from ensemble.random import root_mean_square, standard_normal


@dataclass(frozen=True)
class Gaussian(Perturbation, name="gaussian"):
    """W_i = W + scale · rms(W) · E_i with E_i iid standard normal.

    rms(W) is taken over each named weight by itself, so one scale fits layers of any magnitude; a weight that is all
    zero (a bias that was never trained) stays as it is. Buffers, such as the running statistics of batch
    normalisation, are perturbed only where ``include`` names them.

    Args:
        scale: noise relative to the root mean square of each weight, ≥ 0. No unit.
        include: patterns of the names to perturb; all floating-point parameters by default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: a negative or non-finite scale, or patterns that are not text.

    Example:
        >>> Gaussian(scale=0.02, exclude="head.*")
        Gaussian(scale=0.02, include=('*',), exclude=('head.*',))
    """

    scale: float
    include: str | tuple[str, ...] = ("*",)
    exclude: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not number or not 0 <= self.scale <= sys.float_info.max:
            raise RecipeError(f"scale must be a finite number ≥ 0, however: {self.scale!r}.")
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "include", as_patterns(self.include, "include"))
        object.__setattr__(self, "exclude", as_patterns(self.exclude, "exclude"))

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        floating = [name for name, weight in weights.items() if weight.is_floating_point()]
        include = as_patterns(self.include, "include")
        candidates = [n for n in floating if n in trainable] if include == ("*",) else floating
        return choose(list(weights), candidates, include, as_patterns(self.exclude, "exclude"))

    def draw(self, name: str, weight: Tensor, seed: int, members: range) -> Tensor:
        # At least float32 while adding: in bfloat16 most of a small perturbation would be rounded away twice.
        exact = torch.promote_types(weight.dtype, torch.float32)
        noise = standard_normal(seed, members, name, weight.shape).to(exact)
        noise.mul_(self.scale * root_mean_square(weight)).add_(weight.detach().to("cpu", exact))
        return noise.to(weight.device, weight.dtype)
