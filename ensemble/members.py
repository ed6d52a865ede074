"""The members' weights: what all share, and what each has of its own.

``stacked`` tensors have one leading member dimension, laid out as ``torch.func.stack_module_state`` does; ``shared``
ones stand once for all members.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from ensemble.errors import MemoryLimitError, ModelError
from ensemble.memory import require
from ensemble.perturbation import Perturbation
from ensemble.perturbation.factors import Factors, Shape
from ensemble.program.program import Program, Weights
from ensemble.structured import LEFT, RIGHT, factorable, structures

_SLICE_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Members:
    """Weights of ``count`` members.

    Args:
        count: how many members, N.
        shared: weights that no member has of its own, each of the weight's shape.
        stacked: weights that differ, each (N, *shape); of a factored weight its factors, under its name + LEFT and
            its name + RIGHT, while its trained value is shared.
        factored: the factored weights.
        mixture: weights of the members in the mixture that they are, (N,) float64 on the CPU, ≥ 0 and of sum 1; None
            if all are equal.
    """

    count: int
    shared: dict[str, Tensor]
    stacked: dict[str, Tensor]
    factored: dict[str, Shape] = dataclasses.field(default_factory=dict)
    mixture: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mixture is not None and not proper_mixture(self.mixture, self.count):
            raise ModelError(
                f"The members' weights in the mixture must be {self.count} numbers of at least 0 that sum to 1."
            )

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        """The stacked weights of members [start, stop), as views."""
        return {name: tensor[start:stop] for name, tensor in self.stacked.items()}

    def one(self, index: int) -> dict[str, Tensor]:
        """All weights of one member, as views; factors where it has factors."""
        return {**self.shared, **{name: tensor[index] for name, tensor in self.stacked.items()}}

    def whole(self, index: int) -> dict[str, Tensor]:
        """All weights of one member in full, as the original model has them."""
        weights = self.one(index)
        for name, shape in self.factored.items():
            left, right = weights.pop(name + LEFT), weights.pop(name + RIGHT)
            full = Factors(shape.form, left.unsqueeze(0), right.unsqueeze(0)).materialise(weights[name])
            weights[name] = full.squeeze(0).to(weights[name].dtype)
        return weights

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Members:
        """The same members elsewhere; ``dtype`` applies to floating weights."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if dtype and tensor.is_floating_point() else tensor.dtype)

        return Members(
            self.count,
            {name: moved(tensor) for name, tensor in self.shared.items()},
            {name: moved(tensor) for name, tensor in self.stacked.items()},
            self.factored,
            self.mixture,
        )

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of each of the original model's weights."""
        factors = {name + side for name in self.factored for side in (LEFT, RIGHT)}
        return {n: w.dtype for n, w in {**self.shared, **self.stacked}.items() if n not in factors}

    @property
    def nbytes(self) -> int:
        """Bytes that the weights of all members take."""
        return self.shared_nbytes + sum(tensor.nbytes for tensor in self.stacked.values())

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the weights that all members share."""
        return sum(tensor.nbytes for tensor in self.shared.values())


def proper_mixture(weights: Tensor, count: int) -> bool:
    """Whether these are weights of so many members in a mixture."""
    fine = weights.shape == (count,) and weights.dtype == torch.float64 and bool((weights >= 0).all())
    return fine and math.isclose(float(weights.sum()), 1, abs_tol=1e-6)


# Called with (members done, members in all) while members are made.
Progress = Callable[[int, int], None]


def draw(
    recipe: Perturbation,
    program: Program,
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
    the stack and one slice. Where the recipe has factors and the program uses the weight in products alone, the
    factors are stacked and the trained weight is shared.

    Args:
        recipe: how.
        program: what will run them.
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

    factored, dense = factorable(program, structures(recipe, {name: weights[name] for name in names}))
    shapes = own_shapes({name: weights[name].shape for name in names}, factored, {name: kept(name) for name in names})
    try:
        stacked = draw_own(recipe, weights, shapes, factored, count=count, seed=seed, device=device, progress=progress)
    except MemoryLimitError as error:
        if not dense:
            raise
        reasons = "; ".join(f"{name!r}, {reason}" for name, reason in dense.items())
        raise MemoryLimitError(f"{error} Members hold in full, though the recipe has factors: {reasons}.") from None
    # Copies, so that training the model further does not change the ensemble.
    shared = {n: w.to(device, kept(n), copy=True) for n, w in weights.items() if n not in stacked}
    return Members(count, shared, stacked, factored, recipe.mixture(count))


# Of what a member has of its own: dtype and shape by name.
Own = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def own_shapes(
    sizes: Mapping[str, Sequence[int]], factored: Mapping[str, Shape], dtypes: Mapping[str, torch.dtype]
) -> Own:
    """What one member has of its own.

    Args:
        sizes: shapes of the weights that differ between members.
        factored: those of them that have factors.
        dtypes: of the weights.
    """
    shapes: Own = {}
    for name, size in sizes.items():
        if name in factored:
            left, right = factored[name].factors
            shapes |= {name + LEFT: (dtypes[name], left), name + RIGHT: (dtypes[name], right)}
        else:
            shapes[name] = (dtypes[name], tuple(size))
    return shapes


def draw_own(
    recipe: Perturbation,
    weights: Weights,
    shapes: Own,
    factored: Mapping[str, Shape],
    *,
    count: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """What members have of their own, stacked, without what they share.

    Args:
        recipe: how.
        weights: the trained weights, by name.
        shapes: from :func:`own_shapes`.
        factored: the weights of which only factors are drawn.
        count, seed, device, progress: as for :func:`draw`.

    Returns:
        A tensor (count, *shape) for each of ``shapes``.

    Raises:
        MemoryLimitError: they do not fit, before anything is allocated.
    """
    # A recipe that has factors would have drawn them where that is possible.
    has_factors = bool(factored or structures(recipe, {name: weights[name] for name in shapes}))
    require(shapes.values(), count, device, factors="" if has_factors else "LowRank")
    stacked = {name: torch.empty((count, *shape), dtype=kind, device=device) for name, (kind, shape) in shapes.items()}
    sides = {name + side for name in factored for side in (LEFT, RIGHT)}
    names = [*(name for name in shapes if name not in sides), *factored]
    # Drawing works in float32 with a few temporaries of the slice's size.
    size = max(1, _SLICE_BYTES // max(1, 4 * max(math.prod(shape) for _, shape in shapes.values())))
    for start in range(0, count, size):
        members = range(start, min(count, start + size))
        for name in names:
            if name not in factored:
                stacked[name][start : members.stop] = recipe.draw(name, weights[name], seed, members)
                continue
            factors = recipe.factors(name, weights[name], seed, members)
            assert factors is not None
            stacked[name + LEFT][start : members.stop] = factors.left
            stacked[name + RIGHT][start : members.stop] = factors.right
        if progress:
            progress(members.stop, count)
    return stacked


def bytes_of(shapes: Own) -> int:
    """Bytes that one member has of its own."""
    return sum(math.prod(shape) * kind.itemsize for kind, shape in shapes.values())


def stack(models: Sequence[nn.Module], weights: Weights, *, device: torch.device) -> Members:
    """Stack separately trained models; what is equal in all of them is shared.

    Args:
        models: modules of one architecture, all in evaluation mode.
        weights: the first model's weights, by name, as they were captured; constants among them are shared.
        device: where the members live.

    Raises:
        ModelError: the architectures differ.
        MemoryLimitError: they do not fit.
    """
    same_architecture(models)
    states = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
    differ = [
        name
        for name, weight in weights.items()
        if name in states[0] and not all(torch.equal(state[name].to(weight.device), weight) for state in states)
    ]
    if not differ:
        raise ModelError("All models have the same weights; an ensemble needs members that differ.")
    require([(weights[name].dtype, weights[name].shape) for name in differ], len(models), device)
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
    shared = {n: w.to(device, copy=True) for n, w in weights.items() if n not in stacked}
    return Members(len(models), shared, stacked)


def same_architecture(models: Sequence[nn.Module]) -> None:
    """That models are of one class and have weights of the same names, shapes and dtypes.

    Raises:
        ModelError: they differ; the text says in what.
    """
    first = dict([*models[0].named_parameters(), *models[0].named_buffers()])
    for number, model in enumerate(models):
        if type(model) is not type(models[0]):
            raise ModelError(f"Model {number} is a {type(model).__name__}, model 0 a {type(models[0]).__name__}.")
        _check_same_architecture(number, first, dict([*model.named_parameters(), *model.named_buffers()]))


def _check_same_architecture(number: int, first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if missing := sorted(set(first) ^ set(other)):
        raise ModelError(f"Model {number} has not the weights of model 0: they differ in {', '.join(missing[:5])}.")
    for name, weight in first.items():
        if weight.shape != other[name].shape or weight.dtype != other[name].dtype:
            raise ModelError(
                f"{name!r} has shape {list(other[name].shape)} ({other[name].dtype}) in model {number} and "
                f"{list(weight.shape)} ({weight.dtype}) in model 0; members must have one architecture."
            )
