"""What is kept of how members of several models were made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Recipe
from ensemble.perturbation.learned import Learned, Material

if TYPE_CHECKING:
    from ensemble.members import Members


@dataclass(frozen=True)
class Stacked(Learned, name="stacked"):
    """Member i is member i // models of model i mod models, perturbed by a recipe.

    What :func:`ensemble.perturb` writes down where it is given several models; it is not given to it.

    Args:
        recipes: one for all models, or one for each.
        models: how many, at least two.

    Raises:
        RecipeError: another number of recipes or models.
    """

    recipes: tuple[Recipe, ...]
    models: int

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "recipes", tuple(self.recipes) if isinstance(self.recipes, list | tuple) else (self.recipes,)
        )
        if isinstance(self.models, bool) or not isinstance(self.models, int) or self.models < 2:
            raise RecipeError(f"models must be an integer of at least 2, however: {self.models!r}.")
        if not all(isinstance(recipe, Recipe) and not isinstance(recipe, Stacked) for recipe in self.recipes):
            raise RecipeError(f"recipes must be recipes such as Rank1(scale=0.1), however: {self.recipes!r}.")
        if len(self.recipes) not in (1, self.models):
            raise RecipeError(f"There are {self.models} models and {len(self.recipes)} recipes; give one, or one each.")

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        """None: there is no one trained value of a weight."""
        return []

    def make(self, material: Material) -> Members:
        raise RecipeError(
            "stacked members are of several models: perturb([model_a, model_b], recipe, members=...) makes them."
        )
