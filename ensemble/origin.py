"""Where an ensemble comes from."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ensemble.perturbation import Perturbation, Recipe


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an ensemble was made from, so that it can be saved and its members made again.

    Args:
        recipe: how the members were made; None for separately trained models.
        seed: what their noise was drawn from.
        reference: the trained value of each weight that the recipe perturbs, on the CPU.
        unused: tensors of the state dict that the program does not read.
        state_names: names of the original model's state dict, in order.
        example: a few rows of the example that the model was captured with, flat.
        trainable: names of the model's parameters, as opposed to buffers; None of an ensemble that was saved before
            they were kept.
    """

    recipe: Recipe | None
    seed: int
    reference: dict[str, Tensor]
    unused: dict[str, Tensor]
    state_names: tuple[str, ...]
    example: list[Tensor]
    trainable: tuple[str, ...] | None = None

    @property
    def replayable(self) -> bool:
        """Whether the members are drawn again from recipe and seed, and need not be kept themselves."""
        return isinstance(self.recipe, Perturbation)
