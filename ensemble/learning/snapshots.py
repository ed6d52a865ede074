"""What an optimiser passed through: mean, variance and last deviations of a model's weights over snapshots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ensemble.errors import RecipeError


class SwagSnapshots:
    """Collects snapshots while a model is trained, without keeping them.

    Mean and variance are updated in place; of the deviations from the running mean the last ``rank`` are kept. On the
    CPU, in float32 or better: (3 + rank) times the model's memory at most.

    Args:
        rank: how many deviations to keep, ≥ 0: the rank of the covariance between weights.

    Raises:
        RecipeError: a rank that is none.

    Example:
        >>> snapshots = SwagSnapshots(rank=20)
        >>> for epoch in range(epochs):
        ...     train(model)  # at a constant, rather high learning rate
        ...     snapshots.update(model)
        >>> ens = perturb(model, Swag(snapshots), members=30, example=x)
    """

    def __init__(self, rank: int = 20) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise RecipeError(f"rank must be an integer ≥ 0, however: {rank!r}.")
        self.rank = rank
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._deviations: deque[dict[str, Tensor]] = deque(maxlen=rank)

    def update(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Take a snapshot.

        Args:
            model: the module as it is now, or its state dict.

        Raises:
            RecipeError: something else, a snapshot of another architecture, or weights that are not finite.
        """
        state = model.state_dict() if isinstance(model, nn.Module) else model
        if not isinstance(state, Mapping):
            raise RecipeError(f"A snapshot is a module or a state dict, however: {type(model).__name__}.")
        if not any(isinstance(value, Tensor) for value in state.values()):
            raise RecipeError("A snapshot has no weights.")
        floating = {n: t.detach() for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
        if self.count:
            self._check(floating)
        for name, tensor in floating.items():
            if not bool(tensor.isfinite().all()):
                raise RecipeError(f"{name!r} is not finite in snapshot {self.count}; has the training diverged?")
        self.count += 1
        deviations = {}
        for name, tensor in floating.items():
            now = tensor.to("cpu", torch.promote_types(tensor.dtype, torch.float32))
            if self.count == 1:
                self.mean[name], self._squares[name] = now.clone(), torch.zeros_like(now)
            before = now - self.mean[name]
            self.mean[name] += before / self.count
            deviations[name] = now - self.mean[name]
            self._squares[name] += before * deviations[name]
        self._deviations.append(deviations)

    def variance(self, name: str) -> Tensor:
        """Of a weight over all snapshots, in its shape."""
        return self._squares[name] / max(1, self.count)

    def deviations(self, name: str, rank: int) -> Tensor:
        """The last deviations of a weight from its running mean, at most ``rank`` of them: (columns, *shape)."""
        last = list(self._deviations)[max(0, len(self._deviations) - rank) :]
        return (
            torch.stack([each[name] for each in last]) if last else self.mean[name].new_zeros((0, *self._shape(name)))
        )

    def columns(self, rank: int) -> int:
        """How many deviations there are of the ``rank`` that are asked for."""
        return min(rank, len(self._deviations))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        parts = [self.mean, self._squares, *self._deviations]
        return sum(math.prod(t.shape) * t.element_size() for part in parts for t in part.values())

    def __repr__(self) -> str:
        return f"SwagSnapshots({self.count} snapshots, rank={self.rank})"

    def _shape(self, name: str) -> torch.Size:
        return self.mean[name].shape

    def _check(self, floating: Mapping[str, Tensor]) -> None:
        if other := sorted(set(floating) ^ set(self.mean)):
            raise RecipeError(
                f"Snapshots must be of one model: snapshot {self.count} differs from the first in "
                f"{', '.join(other[:5])}."
            )
        for name, tensor in floating.items():
            if tensor.shape != self._shape(name):
                raise RecipeError(
                    f"{name!r} has shape {list(tensor.shape)} in snapshot {self.count} and {list(self._shape(name))} "
                    "in the first."
                )
