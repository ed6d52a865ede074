"""Recipes whose members depend on data: on calibration inputs, on targets, or on what an optimiser passed through."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from ensemble.perturbation.base import Recipe

if TYPE_CHECKING:
    from ensemble.data import Data
    from ensemble.members import Members, Progress
    from ensemble.program.program import Program, Weights
    from ensemble.tasks import Task


@dataclasses.dataclass(frozen=True)
class Material:
    """What members are made from.

    Args:
        program: the model as a function of its weights.
        weights: the trained weights, by name.
        names: which of them the recipe selected.
        count: how many members to make.
        seed: member i is a function of the material, the recipe's settings, the seed and i.
        device: where the members will live.
        task: what the model's outputs mean.
        noise_variance: of a regression's observations, target²; None if it is not known.
        data: inputs, and targets if there are any; None if none were given.
        progress: called with (done, in all), in whatever unit the recipe works.
    """

    program: Program
    weights: Weights
    names: tuple[str, ...]
    count: int
    seed: int
    device: torch.device
    task: Task = "raw"
    noise_variance: float | None = None
    data: Data | None = None
    progress: Progress | None = None


class Learned(Recipe):
    """A recipe whose members are kept as they are made, since data made them.

    Args:
        dear: whether a member takes so long that none is made in vain: where :func:`ensemble.fit` compares settings,
            these share the members among them, and all are kept, each setting's with the weight that it deserves.
        learns_from: what :func:`ensemble.fit` has to have for it: examples (inputs with targets), inputs alone, or
            nothing where its settings hold what it learns from.
    """

    dear: ClassVar[bool] = False
    learns_from: ClassVar[Literal["examples", "inputs", "nothing"]] = "examples"

    def within(self, seconds: float) -> Self:
        """The same recipe, whose making takes no longer than this, as far as it can tell."""
        return self

    def planned(self, material: Material) -> Self:
        """The same recipe with what its settings leave open decided by the data and the machine.

        Called before :meth:`make`, so that what is kept with an ensemble says what was done.

        Raises:
            As :meth:`make`.
        """
        return self

    @abstractmethod
    def make(self, material: Material) -> Members:
        """Make the members.

        A weight that all members share stands once; one that differs is stacked, or stands as a shared weight and
        stacked factors (:class:`~ensemble.members.Members`), whichever the recipe gives.

        Raises:
            RecipeError: the recipe does not fit the model, or data that it needs is missing; the text says which.
            MemoryLimitError: the members do not fit.
        """
