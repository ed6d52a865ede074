"""The members' weights: what all share, and what each has of its own.

``stacked`` tensors have one leading member dimension, laid out as ``torch.func.stack_module_state`` does; ``shared``
ones stand once for all members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from ensemble.errors import ModelError
from ensemble.memory import require
from ensemble.perturbation import Perturbation
from ensemble.program import Weights

_SLICE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Members:
    """Weights of ``count`` members.

    Args:
        count: how many members, N.
        shared: weights that no member has of its own, each of the weight's shape.
        stacked: weights that differ, each (N, *shape).
    """

    count: int
    shared: dict[str, Tensor]
    stacked: dict[str, Tensor]

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        """The stacked weights of members [start, stop), as views."""
        return {name: tensor[start:stop] for name, tensor in self.stacked.items()}

    def one(self, index: int) -> dict[str, Tensor]:
        """All weights of one member, as views."""
        return {**self.shared, **{name: tensor[index] for name, tensor in self.stacked.items()}}

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Members:
        """The same members elsewhere; ``dtype`` applies to floating weights."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if dtype and tensor.is_floating_point() else tensor.dtype)

        return Members(
            self.count,
            {name: moved(tensor) for name, tensor in self.shared.items()},
            {name: moved(tensor) for name, tensor in self.stacked.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the weights of all members take."""
        return sum(t.numel() * t.element_size() for part in (self.shared, self.stacked) for t in part.values())


# Called with (members done, members in all) while members are made.
Progress = Callable[[int, int], None]


def draw(
    recipe: Perturbation,
    weights: Weights,
    names: Sequence[str],
    *,
    count: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Members:
    """Make the members of a recipe.

    The stack is allocated once, where it will stay, and filled in slices of members, so that the peak of memory is
    the stack and one slice.

    Args:
        recipe: how.
        weights: the trained weights, by name.
        names: which of them differ between members.
        count: how many members.
        seed: the ensemble's seed.
        device: where the members live.
        dtype: of the floating weights; their own by default.

    Raises:
        MemoryLimitError: they do not fit, before anything is allocated.
    """

    def kept(name: str) -> torch.dtype:
        return dtype if dtype and weights[name].is_floating_point() else weights[name].dtype

    per_member = sum(weights[name].numel() * kept(name).itemsize for name in names)
    require(per_member, count, device)
    stacked = {name: torch.empty((count, *weights[name].shape), dtype=kept(name), device=device) for name in names}
    # Drawing works in float32 with a few temporaries of the slice's size.
    size = max(1, _SLICE_BYTES // max(1, 4 * max(weights[name].numel() for name in names)))
    for start in range(0, count, size):
        members = range(start, min(count, start + size))
        for name in names:
            stacked[name][start : members.stop] = recipe.draw(name, weights[name], seed, members)
        if progress:
            progress(members.stop, count)
    return Members(count, {n: w.to(device, kept(n)) for n, w in weights.items() if n not in stacked}, stacked)


def stack(models: Sequence[nn.Module], weights: Weights, *, device: torch.device) -> Members:
    """Stack separately trained models; what is equal in all of them is shared.

    Args:
        models: modules of one architecture.
        weights: the first model's weights, by name, as they were captured; constants among them are shared.
        device: where the members live.

    Raises:
        ModelError: the architectures differ.
        MemoryLimitError: they do not fit.
    """
    states = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
    for number, state in enumerate(states):
        _check_same_architecture(number, states[0], state)
    differ = [
        name
        for name, weight in weights.items()
        if name in states[0] and not all(torch.equal(state[name].to(weight.device), weight) for state in states)
    ]
    if not differ:
        raise ModelError("All models have the same weights; an ensemble needs members that differ.")
    require(sum(weights[n].numel() * weights[n].element_size() for n in differ), len(models), device)
    stacked = {
        name: torch.empty((len(models), *weights[name].shape), dtype=weights[name].dtype, device=device)
        for name in differ
    }
    largest = sum(t.numel() * t.element_size() for t in states[0].values())
    size = max(1, _SLICE_BYTES // max(1, largest))
    for start in range(0, len(models), size):
        parameters, buffers = stack_module_state(list(models[start : start + size]))
        for name in differ:
            piece = parameters[name] if name in parameters else buffers[name]
            stacked[name][start : start + len(piece)] = piece.detach()
    return Members(len(models), {n: w.to(device) for n, w in weights.items() if n not in stacked}, stacked)


def _check_same_architecture(number: int, first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if missing := sorted(set(first) ^ set(other)):
        raise ModelError(f"Model {number} has not the weights of model 0: they differ in {', '.join(missing[:5])}.")
    for name, weight in first.items():
        if weight.shape != other[name].shape or weight.dtype != other[name].dtype:
            raise ModelError(
                f"{name!r} has shape {list(other[name].shape)} ({other[name].dtype}) in model {number} and "
                f"{list(weight.shape)} ({weight.dtype}) in model 0; members must have one architecture."
            )
