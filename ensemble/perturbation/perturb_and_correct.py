"""A hidden layer perturbed, and the next one refitted so that members agree on data and differ away from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Perturbation, as_patterns
from ensemble.perturbation.gaussian import Gaussian
from ensemble.perturbation.learned import Learned, Material
from ensemble.perturbation.low_rank import LowRank

if TYPE_CHECKING:
    from ensemble.learning.layers import Layer
    from ensemble.members import Members
    from ensemble.program.program import Program


@dataclass(frozen=True)
class PerturbAndCorrect(Learned, name="perturb_and_correct"):
    """A hidden layer with noise, and the next affine layer refitted by ridge least squares on calibration inputs.

    With A the activations that feed the next layer (W, b) in the trained model and A_i those of member i, on the
    calibration inputs: W_i = W + Δ and b_i = b + δ minimise |A_i Δᵀ + δ − (A − A_i) Wᵀ|² + λ |Δ|², δ free. So members
    agree with the trained model where there are data, as far as the layer's width allows, and differ away from them.
    Needs ``data=`` with inputs; targets are not used. Source: arXiv 2605.01632.

    The layer may be a linear layer or a convolution, and so may the next one; between them may stand anything. It can
    be chosen where all that the outputs learn of it goes through the next layer (or through several, as of a model with
    two heads, which are all refitted). With the last one members agree best on the data; with the first one they differ
    more away from them.

    Args:
        scale: of the noise on the hidden layer's weight and bias, relative to their root mean square, ≥ 0. No unit.
        layer: the hidden layer's name in the state dict, such as "features.3"; or its place among those that can be
            chosen and are followed by linear layers (all that can be chosen, where none is): 0 is the first, -1 the
            last.
        ridge: λ relative to the mean of the eigenvalues of A_iᵀ A_i (centred, where the layer has a bias), ≥ 0. With 0
            it is the least squares of least norm.
        rank: of the noise on the hidden weight, which is then stored as factors (:class:`LowRank`); dense by default.
        weights: names of the weights that differ between members: not to be given, and found in the model.

    Raises:
        RecipeError: numbers out of range.

    Example:
        >>> PerturbAndCorrect(scale=1.0, layer="fc1")
    """

    learns_from: ClassVar[Literal["inputs"]] = "inputs"

    scale: float = 1.0
    layer: str | int = -1
    ridge: float = 1e-3
    rank: int | None = None
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale", "ridge"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise RecipeError(f"{name} must be a finite number ≥ 0, however: {value!r}.")
            object.__setattr__(self, name, float(value))
        if isinstance(self.layer, bool) or not isinstance(self.layer, str | int) or self.layer == "":
            raise RecipeError(f"layer must be a layer's name such as 'fc1', or its place, however: {self.layer!r}.")
        self._noise()
        object.__setattr__(self, "weights", as_patterns(self.weights, "weights"))

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        """Scales and ridges, the middle ones first.

        Among them are scales so large that nothing of the hidden layer is left but random features: members still
        agree where there are data, and nothing else makes them differ as much away from them.
        """
        return [
            {"scale": scale, "ridge": ridge} for ridge in (1e-3, 1e-1, 1e-5) for scale in (1.0, 3.0, 0.3, 10.0, 0.1)
        ]

    def settled(self, program: Program) -> Self:
        layer, following = self._chosen(program)
        names = [name for each in (layer, *following) for name in each.weights]
        return dataclasses.replace(self, layer=layer.name, weights=tuple(names))

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        if not self.weights:
            raise RecipeError("perturb_and_correct finds its layers in the model: call settled(program) first.")
        return [name for name in weights if name in self.weights]

    def make(self, material: Material) -> Members:
        from ensemble.learning.correction import corrected
        from ensemble.members import draw

        if material.data is None:
            raise RecipeError("perturb_and_correct needs calibration inputs: give data=inputs.")
        layer, following = self._chosen(material.program)
        drawn = draw(
            self._noise(),
            material.program,
            material.weights,
            layer.weights,
            count=material.count,
            seed=material.seed,
            # Where the model is, which is what the program was made for.
            device=material.weights[layer.weight].device,
        )
        return corrected(
            material.program, material.weights, drawn, following, material.data, self.ridge, material.progress
        )

    def _noise(self) -> Perturbation:
        return Gaussian(self.scale) if self.rank is None else LowRank(self.scale, rank=self.rank)

    def _chosen(self, program: Program) -> tuple[Layer, list[Layer]]:
        """The hidden layer and those that follow it.

        Raises:
            RecipeError: there is none, or another was asked for; the text says which can be chosen.
        """
        from ensemble.learning.layers import cut, layers, listing

        if program.graph is None:
            raise RecipeError("perturb_and_correct needs the exported graph: make the ensemble without live=True.")
        every = layers(program.graph)
        choices = {layer.name: (layer, following) for layer in every if (following := cut(program.graph, layer))}
        if not choices:
            raise RecipeError(
                "perturb_and_correct needs a linear layer or convolution whose every way to the outputs leads through "
                f"another one; this model's layers are {listing(every)}."
            )
        if isinstance(self.layer, int):
            linear = [one for one in choices.values() if all(following.settings is None for following in one[1])]
            numbered = linear or list(choices.values())
            if not -len(numbered) <= self.layer < len(numbered):
                raise RecipeError(
                    f"layer={self.layer} is none of {listing(layer for layer, _ in numbered)}, of which 0 is the first."
                )
            return numbered[self.layer]
        name = next((layer.name for layer in every if self.layer in (layer.name, layer.weight)), None)
        if name not in choices:
            reason = "is no layer of this model" if name is None else "has a way to the outputs without another layer"
            raise RecipeError(
                f"{self.layer!r} {reason}; what can be chosen: {listing(layer for layer, _ in choices.values())}."
            )
        return choices[name]
