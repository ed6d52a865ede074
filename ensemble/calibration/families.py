"""Recipes that are compared, each with the settings it was tried with, and what the average over these is worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble.calibration import averaging
from ensemble.calibration.trials import TEMPERATURES, Trial, best_temperature
from ensemble.errors import RecipeError
from ensemble.perturbation import Learned, Recipe, recipes
from ensemble.perturbation.mixture import Mixture
from ensemble.perturbation.stacked import Stacked
from ensemble.tasks import Task

AUTO = "auto"
SEVERAL = "perturb([model_a, model_b], recipe, members=...) makes members of several, stack([...]) of each one."
# Temperatures far from 1 need rows that say so: the standard deviation of log T that is taken for likely.
_TEMPERATURE_SPREAD = 0.5


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of an average.

    Args:
        trial: the recipe with its settings, or the net alone.
        noise: of a regression its variance, target²; of a gaussian model what variances are multiplied by.
        weight: in the average.
    """

    trial: Trial
    noise: float | None
    weight: float


@dataclasses.dataclass
class Family:
    """One recipe's settings.

    Args:
        name: the recipe's; "single" for the trained net alone.
        candidates: what is still to be tried, the most telling first.
        trials: what was.
        failure: why it is not to be had, in words; empty if it is.
        cut_short: whether time ran out before all candidates were tried.
    """

    name: str
    candidates: list[Recipe] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)
    failure: str = ""
    cut_short: bool = False

    @property
    def learned(self) -> bool:
        """Whether its members depend on data."""
        return any(isinstance(recipe, Learned) for recipe in self.candidates)

    @property
    def learns_from(self) -> str:
        """What its members depend on: "examples", "inputs" or "nothing"."""
        return next((recipe.learns_from for recipe in self.candidates if isinstance(recipe, Learned)), "nothing")

    @property
    def dear(self) -> bool:
        """Whether no member is made in vain: the settings share the members, and all are kept."""
        return any(isinstance(recipe, Learned) and recipe.dear for recipe in self.candidates)

    @property
    def seconds(self) -> float:
        """That its trials took."""
        return sum(trial.seconds for trial in self.trials)


@dataclasses.dataclass(frozen=True)
class Average:
    """What a family's settings, and the net alone, amount to together.

    Args:
        family: which.
        cells: the settings, with their weights.
        temperature: of a classification.
        left_out: log-likelihood of each selection row under the average that all other rows weighted, (rows,).
        fitted: mean log-likelihood of the rows under the average that they weighted, nats.
    """

    family: Family
    cells: tuple[Cell, ...]
    temperature: float
    left_out: Tensor
    fitted: float

    @property
    def log_likelihood(self) -> float:
        """Mean of ``left_out``, nats."""
        return float(self.left_out.mean())


def average(family: Family, single: Trial, task: Task) -> Average:
    """Weigh a family's settings, the net alone among them, by how likely they make the selection rows.

    Not among those of a recipe that trains: its members are as good nets each, and the net alone is often surer on the
    held-out rows than it may be, since its training was stopped by them.
    """
    trials = [t for t in family.trials if not _is_single(t)]
    if not family.dear or not trials:
        trials = [single, *trials] if family.name != "single" else [single]
    if task == "classification":
        prior = [-((math.log(t) / _TEMPERATURE_SPREAD) ** 2) / 2 for t in TEMPERATURES]
        evidence = [
            averaging.evidence(torch.stack([trial.likelihood[k] for trial in trials])) + prior[k]
            for k in range(len(TEMPERATURES))
        ]
        nearest, temperature = best_temperature(torch.tensor(evidence, dtype=torch.float64))
        cells = torch.stack([trial.likelihood[nearest] for trial in trials])
        of: list[tuple[Trial, float | None]] = [(trial, None) for trial in trials]
    else:
        temperature = 1.0
        cells = torch.cat([trial.likelihood for trial in trials])
        of = [(trial, trial.noise[k]) for trial in trials for k in range(len(trial.likelihood))]
    weights = averaging.weights(cells)
    found = [Cell(trial, noise, float(w)) for (trial, noise), w in zip(of, weights, strict=True)]
    fitted = float((cells + weights.log().unsqueeze(1)).logsumexp(0).mean())
    return Average(family, tuple(found), temperature, averaging.left_out(cells), fitted)


def _is_single(trial: Trial) -> bool:
    # A scale of 0 is the net alone, which is there already.
    return getattr(trial.recipe, "scale", None) == 0 and not isinstance(trial.recipe, Learned)


def families(asked: str | Recipe | Sequence[str | Recipe]) -> list[Family]:
    """The recipes to compare.

    Args:
        asked: "auto" for all that say what to try, a recipe's name, a recipe whose other settings are kept, or several
            of these.

    Raises:
        RecipeError: no such recipe, or one that does not say what to try.
    """
    several = list(asked) if isinstance(asked, list | tuple) else [asked]
    if not several:
        raise RecipeError('recipe must name at least one recipe, or be "auto".')
    found: list[Family] = []
    for one in several:
        if one == AUTO:
            found += [
                Family(name, made) for name, kind in sorted(recipes.items()) if (made := _of_kind(kind, auto=True))
            ]
        elif isinstance(one, Stacked) or one == Stacked.name:
            raise RecipeError(f"One model is fitted; {SEVERAL}")
        elif isinstance(one, Mixture):
            raise RecipeError("A mixture of settings is what fitting makes; give its parts as a list of recipes.")
        elif isinstance(one, Recipe):
            varied = [dataclasses.replace(one, **c) for c in type(one).candidates()]
            found.append(Family(one.name, list(dict.fromkeys(varied)) or [one]))
        elif isinstance(one, str) and one in recipes:
            if not (made := _of_kind(recipes[one])):
                raise RecipeError(f"The recipe {one!r} does not say which settings to try; give one that is made.")
            found.append(Family(one, made))
        else:
            raise RecipeError(
                f'recipe must be "auto", a recipe such as Rank1(scale=0.1), or one of {", ".join(sorted(recipes))}, '
                f"however: {one!r}."
            )
    return found


def _of_kind(kind: type[Recipe], *, auto: bool = False) -> list[Recipe]:
    if auto and issubclass(kind, Learned) and kind.learns_from == "nothing":
        # What it learns from would be among settings that nobody gave.
        return []
    return [kind(**settings) for settings in kind.candidates()]


def noise_summary(cells: Sequence[Cell]) -> float | None:
    """The noise variance, or factor, that an average has in the mean; None where it has none."""
    if any(cell.noise is None for cell in cells):
        return None
    return sum(cell.weight * (cell.noise or 0.0) for cell in cells)
