"""Monte-Carlo dropout with a mask that a member keeps."""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Perturbation, as_patterns, choose
from ensemble.perturbation.factors import Factors, Shape, columns
from ensemble.random import standard_normal

if TYPE_CHECKING:
    from ensemble.program.program import Program


@dataclass(frozen=True)
class Dropout(Perturbation, name="dropout"):
    """W_i = W · diag(m_i) / (1 - p) with m_i of zeros (probability p) and ones, drawn once for each member.

    A mask on the second dimension of a weight is a mask on the features that a linear layer reads, and on the channels
    that a convolution reads (spatial dropout). A member keeps its masks and so is a function, the same for every row;
    the mean over members is that of Monte-Carlo dropout (arXiv 1506.02142; fixed masks: Masksembles, arXiv 2012.08334).
    Every weight has a mask of its own, also where several read the same activation. Biases stay as trained.

    By default every linear layer and convolution that does not read the model's inputs is masked: where a network has
    its ``nn.Dropout`` as a rule. The exported graph, which is of evaluation mode, does not show where they were; where
    a model has them at other places, or only at some, name the weights that read what they drop, such as
    ``include="head.weight"``. Dropout on attention's probabilities is no mask on features, and has no form here.

    Args:
        p: probability of a feature to be dropped, 0 ≤ p < 1; best what the model was trained with.
        include: patterns of the weights to mask, each with at least two dimensions; see above for the default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: a probability out of range, or patterns that are not text.

    Example:
        >>> Dropout(p=0.1, include="head.weight")
        Dropout(p=0.1, include=('head.weight',), exclude=())
    """

    p: float
    include: str | tuple[str, ...] | None = None
    exclude: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float) or isinstance(self.p, bool) or not 0 <= self.p < 1:
            raise RecipeError(f"p must be a probability of at least 0 and below 1, however: {self.p!r}.")
        object.__setattr__(self, "p", float(self.p))
        if self.include is not None:
            object.__setattr__(self, "include", as_patterns(self.include, "include"))
        object.__setattr__(self, "exclude", as_patterns(self.exclude, "exclude"))

    @classmethod
    def candidates(cls) -> Sequence[Mapping[str, float]]:
        """Probabilities, the usual ones first."""
        return [{"p": p} for p in (0.1, 0.05, 0.2, 0.02, 0.3, 0.5, 0.01)]

    def settled(self, program: Program) -> Self:
        from ensemble.learning.layers import inner

        if self.include is not None:
            return self
        if program.graph is None:
            raise RecipeError(
                "Without an exported graph it is not known which weights read the inputs: give include= with the "
                "weights to mask, or make the ensemble without live=True."
            )
        names = [layer.weight for layer in inner(program.graph) if layer.columns_are_inputs]
        if not names:
            raise RecipeError(
                "This model has no linear layer or ungrouped convolution behind another layer, so no features to drop; "
                'give include= with the weights to mask, such as include="fc.weight".'
            )
        return dataclasses.replace(self, include=tuple(glob.escape(name) for name in names))

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        if self.include is None:
            raise RecipeError("dropout finds its layers in the model: call settled(program) first, or give include=.")
        matrices = [name for name, weight in weights.items() if weight.is_floating_point() and weight.ndim > 1]
        chosen = choose(
            list(weights), matrices, as_patterns(self.include, "include"), as_patterns(self.exclude, "exclude")
        )
        if narrow := [name for name in chosen if weights[name].shape[1] < 2]:
            raise RecipeError(
                f"{narrow[0]!r} has shape {list(weights[narrow[0]].shape)}, one feature in its second dimension, and "
                "nothing would be left without it; exclude it."
            )
        return chosen

    def structure(self, shape: Sequence[int]) -> Shape | None:
        return Shape("multiplicative", 1, tuple(shape)) if len(shape) > 1 else None

    def factors(self, name: str, weight: Tensor, seed: int, members: range) -> Factors | None:
        if weight.ndim < 2:
            return None
        exact = torch.promote_types(weight.dtype, torch.float32)
        noise = standard_normal(seed, members, f"{name}/mask", (columns(weight.shape, "multiplicative"), 1))
        kept = (noise > self._threshold).to(exact).mul_(1 / (1 - self.p))
        return Factors("multiplicative", kept.new_ones((len(members), weight.shape[0], 1)), kept)

    def draw(self, name: str, weight: Tensor, seed: int, members: range) -> Tensor:
        factors = self.factors(name, weight, seed, members)
        if factors is None:
            raise RecipeError(f"{name!r} has no features that could be dropped.")
        exact = torch.promote_types(weight.dtype, torch.float32)
        return factors.materialise(weight.detach().to("cpu", exact)).to(weight.device, weight.dtype)

    @property
    def _threshold(self) -> float:
        """What a standard normal number exceeds with probability 1 - p, on a grid that every machine rounds to."""
        return -math.inf if self.p == 0 else math.ldexp(round(math.ldexp(NormalDist().inv_cdf(self.p), 20)), -20)
