"""Members drawn from a Gaussian over what an optimiser passed through (SWAG)."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ensemble.errors import RecipeError
from ensemble.learning.snapshots import SwagSnapshots
from ensemble.memory import require
from ensemble.perturbation.base import as_patterns, choose
from ensemble.perturbation.learned import Learned, Material
from ensemble.random import standard_normal

if TYPE_CHECKING:
    from ensemble.members import Members

_SLICE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Swag(Learned, name="swag"):
    """θ_i = mean + scale · (√½ · std ∘ z_i + D z'_i / √(2 (K - 1))), z and z' standard normal.

    Mean and standard deviation are those of the snapshots, the K columns of D the last deviations from the running
    mean, so that weights vary together as they did in training. With fewer than two columns it is the diagonal form,
    θ_i = mean + scale · std ∘ z_i. Source: SWAG, arXiv 1902.02476 (whose scale multiplies the covariance: it is the
    square of this one).

    Snapshots are taken while the model is trained, once an epoch or so, at a constant learning rate that is rather
    high: :class:`SwagSnapshots`. Buffers, such as running statistics of batch normalisation, have the snapshots' mean
    in every member; what a member would find itself in another pass over the data differs from that a little. The
    members are kept with the ensemble, the snapshots are not.

    Args:
        snapshots: a :class:`SwagSnapshots`, or modules or state dicts in the order of training.
        scale: of the standard deviations, ≥ 0. No unit.
        rank: how many deviations to use, ≥ 0; as many as were kept at most.
        include: patterns of the parameters that differ between members; all by default. What else the snapshots hold
            has their mean.
        exclude: patterns of the names to leave as in the model that is perturbed.

    Raises:
        RecipeError: numbers out of range, or snapshots that are none.

    Example:
        >>> ens = perturb(model, Swag([epoch_18, epoch_19, epoch_20], scale=0.7), members=30, example=x)
    """

    learns_from: ClassVar[Literal["nothing"]] = "nothing"

    snapshots: SwagSnapshots | Iterable[nn.Module | Mapping[str, Tensor]] | None = field(
        default=None, repr=False, compare=False
    )
    scale: float = 1.0
    rank: int = 20
    include: str | tuple[str, ...] = ("*",)
    exclude: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int | float) or isinstance(self.scale, bool) or not 0 <= self.scale < math.inf:
            raise RecipeError(f"scale must be a finite number ≥ 0, however: {self.scale!r}.")
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "include", as_patterns(self.include, "include"))
        object.__setattr__(self, "exclude", as_patterns(self.exclude, "exclude"))
        empty = SwagSnapshots(self.rank)
        if self.snapshots is None or isinstance(self.snapshots, SwagSnapshots):
            return
        if isinstance(self.snapshots, nn.Module | Mapping) or not isinstance(self.snapshots, Iterable):
            raise RecipeError(
                "snapshots must be a SwagSnapshots, or several modules or state dicts, however: one "
                f"{type(self.snapshots).__name__}."
            )
        for one in self.snapshots:
            empty.update(one)
        object.__setattr__(self, "snapshots", empty)

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        """Scales, the paper's first."""
        return [{"scale": scale} for scale in (math.sqrt(0.5), 1.0, 0.5, 0.3, 2.0, 0.1)]

    def kept(self) -> Self:
        return dataclasses.replace(self, snapshots=None)

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "snapshots"}

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        floating = [name for name, weight in weights.items() if weight.is_floating_point() and name in trainable]
        include, exclude = as_patterns(self.include, "include"), as_patterns(self.exclude, "exclude")
        return choose(list(weights), floating, include, exclude)

    def make(self, material: Material) -> Members:
        from ensemble.members import Members

        seen = self._seen(material)
        names, weights, count = material.names, material.weights, material.count
        require([(weights[name].dtype, weights[name].shape) for name in names], count, material.device)
        stacked = {
            name: torch.empty((count, *weights[name].shape), dtype=weights[name].dtype, device=material.device)
            for name in names
        }
        columns = seen.columns(self.rank)
        joint = standard_normal(material.seed, range(count), "swag/deviations", (columns,))
        for done, name in enumerate(names):
            mean, std, last = seen.mean[name], seen.variance(name).sqrt(), seen.deviations(name, self.rank)
            size = max(1, _SLICE_BYTES // max(1, 4 * mean.numel()))
            for start in range(0, count, size):
                members = range(start, min(count, start + size))
                own = standard_normal(material.seed, members, name, mean.shape).to(mean.dtype).mul_(std)
                if columns > 1:
                    together = torch.einsum("mk,k...->m...", joint[start : members.stop].to(last.dtype), last)
                    own = own.mul_(math.sqrt(0.5)).add_(together, alpha=1 / math.sqrt(2 * (columns - 1)))
                stacked[name][start : members.stop] = own.mul_(self.scale).add_(mean)
            if material.progress:
                material.progress(done + 1, len(names))
        shared = {}
        for name, weight in weights.items():
            if name not in stacked:
                left = any(fnmatch.fnmatchcase(name, pattern) for pattern in as_patterns(self.exclude, "exclude"))
                value = weight if left else seen.mean.get(name, weight)
                shared[name] = value.to(material.device, weight.dtype, copy=True)
        return Members(count, shared, stacked)

    def _seen(self, material: Material) -> SwagSnapshots:
        """The snapshots, checked against the model.

        Raises:
            RecipeError: there are none, or they are of another model.
        """
        if not isinstance(self.snapshots, SwagSnapshots):
            raise RecipeError(
                "swag needs snapshots that were taken while the model was trained: Swag(snapshots), where snapshots is "
                "a SwagSnapshots or a list of modules or state dicts. (They are not kept with a saved ensemble.)"
            )
        if self.snapshots.count < 2:
            raise RecipeError(f"swag needs at least two snapshots, however: {self.snapshots.count}.")
        for name in material.names:
            found = self.snapshots.mean.get(name)
            if found is None or found.shape != material.weights[name].shape:
                shape = (
                    "is not in the snapshots" if found is None else f"has shape {list(found.shape)} in the snapshots"
                )
                raise RecipeError(
                    f"{name!r} of this model, {list(material.weights[name].shape)}, {shape}; take the snapshots of the "
                    "same model."
                )
        return self.snapshots
