"""The weights that each member keeps: those that did best on rows held back from it (early stopping)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Best:
    """What some members keep.

    Without rows held back it is always what they have now: the same tensors.

    Args:
        weights: that the members start with, each (members, *shape).
        copied: whether members may keep others than those they have now.
        patience: looks without a better one after which a member keeps what it has.

    Attributes:
        weights: that are kept, each (members, *shape).
        steps: after which the members had them, (members,) int64.
        losses: on the rows held back, that they had then, (members,) float64; infinity before the first look.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, copied: bool, patience: int | None = None) -> None:
        self.weights = {name: w.clone() if copied else w for name, w in weights.items()}
        device, count = next((w.device, len(w)) for w in weights.values())
        self.steps = torch.zeros(count, dtype=torch.long, device=device)
        self.losses = torch.full((count,), math.inf, dtype=torch.float64, device=device)
        self._waited = torch.zeros(count, dtype=torch.long, device=device)
        self._patience = patience

    def offer(self, step: int, losses: Tensor, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of those members that do better than before, and have not stopped.

        Args:
            step: how many steps they took.
            losses: of each on the rows held back, (members,) float64.
            weights: as they are now.
        """
        better = losses < self.losses
        if self._patience is not None:
            better &= self._waited < self._patience
        self.losses = torch.where(better, losses, self.losses)
        self.steps[better] = step
        self._waited = torch.where(better, 0, self._waited + 1)
        for name, weight in weights.items():
            self.weights[name][better] = weight[better]

    @property
    def stopped(self) -> bool:
        """Whether no member can keep others any more."""
        return self._patience is not None and bool((self._waited >= self._patience).all())
