"""The last layer drawn from its Gaussian posterior."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.memory import require
from ensemble.perturbation.base import as_patterns
from ensemble.perturbation.learned import Learned, Material

if TYPE_CHECKING:
    from ensemble.learning.layers import Layer
    from ensemble.learning.posterior import Posterior
    from ensemble.members import Members
    from ensemble.program.program import Program
    from ensemble.tasks import Head

Covariance = Literal["auto", "full", "kron"]
_SLICE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Laplace(Learned, name="laplace"):
    """θ_i = θ + scale · (H + δ)^(-½) ε_i for weight and bias θ of the last linear layer, ε standard normal.

    H is the generalised Gauss-Newton matrix of the negative log-likelihood, summed over the data: give the training
    data, whose number counts. δ is the precision of a Gaussian prior around 0. Needs ``task=`` and ``data=``: inputs
    are enough for a classification and for a gaussian model; a regression also needs its noise variance, or targets
    from which to take it. Sources: MacKay 1992; Daxberger et al., "Laplace Redux", arXiv 2106.14806.

    The last layer is the linear layer that the outputs read with no other one in between; of several (the mean's and
    the variance's) each has a posterior of its own. What comes behind it, such as the softplus of a variance, is taken
    into account.

    Args:
        scale: of the standard deviations, ≥ 0; 1 is the posterior itself.
        prior_precision: δ > 0, 1 / (unit of the weights)²; by default that of greatest marginal likelihood.
        layer: the layer's name in the state dict, such as "head".
        covariance: "full", or "kron" for a Kronecker product of what comes in and what goes out, which is exact for a
            regression whose last layer gives the values; "auto" takes the full matrix up to 2048 weights.
        weights: names of the weights that differ between members: not to be given, and found in the model.

    Raises:
        RecipeError: numbers out of range.

    Example:
        >>> ens = perturb(model, Laplace(), members=64, data=(inputs, targets), task="classification")
    """

    # A regression wants targets, too, and says so.
    learns_from: ClassVar[Literal["inputs"]] = "inputs"

    scale: float = 1.0
    prior_precision: float | None = None
    layer: str | None = None
    covariance: Covariance = "auto"
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _number(self.scale) or self.scale < 0:
            raise RecipeError(f"scale must be a finite number ≥ 0, however: {self.scale!r}.")
        object.__setattr__(self, "scale", float(self.scale))
        if self.prior_precision is not None:
            if not _number(self.prior_precision) or self.prior_precision <= 0:
                raise RecipeError(
                    f"prior_precision must be a finite number above 0, however: {self.prior_precision!r}."
                )
            object.__setattr__(self, "prior_precision", float(self.prior_precision))
        if self.layer is not None and not (isinstance(self.layer, str) and self.layer):
            raise RecipeError(f"layer must be a layer's name such as 'head', however: {self.layer!r}.")
        if self.covariance not in get_args(Covariance):
            raise RecipeError(
                f"covariance must be one of {', '.join(get_args(Covariance))}, however: {self.covariance!r}."
            )
        object.__setattr__(self, "weights", as_patterns(self.weights, "weights"))

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        """Prior precisions and scales, the posterior of greatest marginal likelihood first."""
        return [
            {"prior_precision": precision, "scale": scale}
            for scale in (1.0, 0.3, 0.1)
            for precision in (None, 1.0, 10.0, 100.0, 1000.0)
        ]

    def settled(self, program: Program) -> Self:
        chosen = self._chosen(program)
        names = [name for layer in chosen for name in layer.weights]
        return dataclasses.replace(self, weights=tuple(names))

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        if not self.weights:
            raise RecipeError("laplace finds its layer in the model: call settled(program) first.")
        return [name for name in weights if name in self.weights]

    def make(self, material: Material) -> Members:
        from ensemble.members import Members

        head, noise_variance = self._asked(material)
        chosen = self._chosen(material.program)
        names = [name for layer in chosen for name in layer.weights]
        weights, count = material.weights, material.count
        require([(weights[name].dtype, weights[name].shape) for name in names], count, material.device)
        stacked: dict[str, Tensor] = {}
        for layer in chosen:
            posterior = self._posterior(layer, head, noise_variance, material)
            precision = posterior.evidence_precision() if self.prior_precision is None else self.prior_precision
            own = {name: torch.empty((count, *weights[name].shape), dtype=weights[name].dtype, device=material.device)
                   for name in layer.weights}  # fmt: skip
            size = max(1, _SLICE_BYTES // (8 * posterior.trained.numel()))
            for start in range(0, count, size):
                members = range(start, min(count, start + size))
                for name, value in posterior.draw(material.seed, members, precision, self.scale).items():
                    own[name][start : members.stop] = value
            stacked |= own
        shared = {name: w.to(material.device, copy=True) for name, w in weights.items() if name not in stacked}
        return Members(count, shared, stacked)

    def _posterior(self, layer: Layer, head: Head, noise_variance: float | None, material: Material) -> Posterior:
        from ensemble.learning.posterior import MOST_FULL, Posterior

        weights = sum(material.weights[name].numel() for name in layer.weights)
        full = self.covariance == "full" or (self.covariance == "auto" and weights <= MOST_FULL)
        posterior = Posterior(material.program, material.weights, layer, full=full)
        assert material.data is not None
        posterior.add_up(material.data, material.task, head, noise_variance, material.progress)
        posterior.decompose()
        return posterior

    def _asked(self, material: Material) -> tuple[Head, float | None]:
        """The model's one prediction, and the noise variance of a regression.

        Raises:
            RecipeError: what the recipe needs is missing.
        """
        from ensemble.learning.posterior import residual_variance
        from ensemble.tasks import heads

        if material.task == "raw":
            raise RecipeError(
                'laplace needs to know the likelihood: give task="classification", "regression" or "gaussian".'
            )
        if material.data is None:
            raise RecipeError("laplace needs the training data: give data=(inputs, targets).")
        found = heads(material.task, material.program.outputs)
        if len(found) > 1:
            raise RecipeError(
                f"laplace takes a model with one prediction; this one returns {[head.name for head in found]}."
            )
        if material.task != "regression" or material.noise_variance:
            return found[0], material.noise_variance
        if material.data.targets is None:
            raise RecipeError("laplace needs a regression's noise: give noise_variance=, or data=(inputs, targets).")
        estimated = residual_variance(material.program, material.weights, material.data, found[0])
        if estimated == 0:
            raise RecipeError("The model fits these targets exactly, which tells no noise: give noise_variance=.")
        return found[0], estimated

    def _chosen(self, program: Program) -> list[Layer]:
        """The last layer, or the last ones.

        Raises:
            RecipeError: there is none, or another was asked for that is none.
        """
        from ensemble.learning.layers import final, layers, listing

        if program.graph is None:
            raise RecipeError("laplace needs the exported graph: make the ensemble without live=True.")
        every = [layer for layer in layers(program.graph) if layer.settings is None]
        if self.layer is not None:
            found = [layer for layer in every if self.layer in (layer.name, layer.weight)]
            if not found:
                raise RecipeError(f"{self.layer!r} is no linear layer of this model; it has {listing(every)}.")
            return found
        found = [layer for layer in final(program.graph) if layer.settings is None]
        if not found:
            raise RecipeError(
                f"laplace needs a linear layer before the outputs; this model's linear layers are {listing(every)}."
            )
        return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
