"""What the recipes that add noise to trained weights share: a scale, name patterns, dense noise on vectors."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Perturbation, as_patterns, choose
from ensemble.random import root_mean_square, standard_normal

# From coarse to fine, so that a search that is cut short has seen the whole range.
_SCALES = (0.1, 0.05, 0.2, 0.02, 0.4, 0.07, 0.14, 0.03, 0.28, 0.01, 0.56)


@dataclass(frozen=True)
class Noise(Perturbation):
    """Base of recipes with a scale.

    Args:
        scale: size of the noise, ≥ 0, relative to the weight. No unit.
        include: patterns of the names to perturb; all floating-point parameters by default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: a negative or non-finite scale, or patterns that are not text.
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

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        return [{"scale": scale} for scale in _SCALES]

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        floating = [name for name, weight in weights.items() if weight.is_floating_point()]
        include = as_patterns(self.include, "include")
        candidates = [n for n in floating if n in trainable] if include == ("*",) else floating
        return choose(list(weights), candidates, include, as_patterns(self.exclude, "exclude"))

    def noise(self, name: str, shape: torch.Size, seed: int, members: range) -> Tensor:
        """Standard normal noise of a dense weight, (len(members), *shape)."""
        return standard_normal(seed, members, name, shape)

    def draw(self, name: str, weight: Tensor, seed: int, members: range) -> Tensor:
        # At least float32 while adding: in bfloat16 most of a small perturbation would be rounded away twice.
        exact = torch.promote_types(weight.dtype, torch.float32)
        trained = weight.detach().to("cpu", exact)
        factors = self.factors(name, weight, seed, members)
        if factors is not None:
            own = factors.materialise(trained)
        else:
            size = self.scale * root_mean_square(weight)
            own = self.noise(name, weight.shape, seed, members).to(exact).mul_(size).add_(trained)
        return own.to(weight.device, weight.dtype)
