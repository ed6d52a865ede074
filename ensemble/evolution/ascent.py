"""Steps up an estimated gradient: from the weights of before to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ensemble.errors import RecipeError

Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
_ADAM_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class State:
    """Where a population stands.

    Args:
        step: how many updates were made.
        weights: the reference weights by name, in float32 or better.
        first, second: running means of the estimated gradient and of its square, where the optimiser keeps them.
    """

    step: int
    weights: dict[str, Tensor]
    first: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    second: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ascent:
    """How a step is made of a gradient; see :class:`~ensemble.Population`.

    Raises:
        RecipeError: a setting out of range.
    """

    optimizer: Optimizer = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, however: {self.optimizer!r}.")
        pair = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        if not pair or not all(_number(value) and value < 1 for value in (self.momentum, *self.betas)):
            raise RecipeError(
                f"momentum and the two betas must be from 0 to below 1, however: {self.momentum!r}, {self.betas!r}."
            )
        if self.momentum and self.optimizer != "sgd":
            raise RecipeError("momentum belongs to optimizer='sgd'; of 'adam' set betas.")
        if not _number(self.weight_decay):
            raise RecipeError(f"weight_decay must be a finite number ≥ 0, however: {self.weight_decay!r}.")

    def advance(self, state: State, gradient: Mapping[str, Tensor], rate: float) -> State:
        """The state after one step up a gradient.

        Args:
            state: before.
            gradient: of each of its weights.
            rate: the learning rate.
        """
        weights, first, second = {}, {}, {}
        beta, square = self.betas
        for name, weight in state.weights.items():
            g = direction = gradient[name]
            if self.optimizer == "adam":
                first[name] = g.lerp(state.first.get(name, torch.zeros_like(g)), beta)
                second[name] = g.square().lerp(state.second.get(name, torch.zeros_like(g)), square)
                # The means begin at 0 and would be too small at first.
                mean = first[name] / (1 - beta ** (state.step + 1))
                direction = mean / ((second[name] / (1 - square ** (state.step + 1))).sqrt() + _ADAM_EPSILON)
            elif self.momentum:
                first[name] = direction = g.add(state.first.get(name, torch.zeros_like(g)), alpha=self.momentum)
            weights[name] = weight + rate * (direction - self.weight_decay * weight)
        return State(state.step + 1, weights, first, second)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
