"""How members are trained: the settings that all of them share."""

from __future__ import annotations

import dataclasses
import math

from ensemble.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101), the same for every member.

    Args:
        steps: gradient steps that each member takes, ≥ 0.
        lr: learning rate of the first step, > 0; it falls to 0 along half a cosine.
        batch_size: rows of one step of one member, ≥ 1; all rows where there are fewer.
        weight_decay: share of a weight that decays in a step at a learning rate of 1, ≥ 0.
        check_every: steps between looks at the rows held back, ≥ 1, the last step being looked at too; a tenth of the
            steps by default.
        patience: looks without a better one after which a member keeps what it has, ≥ 1; by default it goes on.

    Raises:
        RecipeError: a number out of range.
    """

    steps: int
    lr: float
    batch_size: int = 32
    weight_decay: float = 0.0
    check_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        whole: dict[str, int] = {"steps": 0, "batch_size": 1, "check_every": 1, "patience": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and name in ("check_every", "patience"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise RecipeError(f"{name} must be an integer of at least {least}, however: {value!r}.")
        if not _number(self.lr) or self.lr <= 0:
            raise RecipeError(f"lr must be a finite number > 0, however: {self.lr!r}.")
        if not _number(self.weight_decay) or self.weight_decay < 0:
            raise RecipeError(f"weight_decay must be a finite number ≥ 0, however: {self.weight_decay!r}.")

    @property
    def every(self) -> int:
        """Steps between two looks."""
        return self.check_every or max(1, math.ceil(self.steps / 10))

    def looks_after(self, done: int) -> bool:
        """Whether the rows held back are looked at after so many steps."""
        return done % self.every == 0 or done == self.steps

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
