"""The model that a population trains: a function of its weights, and of noise around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.evolution.antithetic import Noise
from ensemble.members import Members
from ensemble.perturbation.base import as_patterns
from ensemble.perturbation.factors import Factors
from ensemble.perturbation.low_rank import LowRank
from ensemble.program.capture import capture
from ensemble.structured import LEFT, RIGHT, factorable, factored_program, structures


class Network:
    """A captured model, with the weights that are trained told from those that are not.

    Args:
        model: any ``nn.Module``; it is read in evaluation mode and left as it was.
        example: what it is called with.
        rank: of the noise on a matrix.
        include, exclude: patterns of the names that are trained.
        live: keep the module's own code instead of exporting it.

    Raises:
        ModelError, ExportError: the model cannot be captured; the text says why.
        RecipeError: a rank out of range, or patterns that match nothing.

    Attributes:
        start: the trained weights as they were, by name, in float32 or better: most of a small step would be rounded
            away in a shorter dtype.
        noise: the form of the noise on them.
        program: what runs members; products are on factors where weights have them.
        device: where it runs.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        rank: int,
        include: str | Sequence[str],
        exclude: str | Sequence[str],
        *,
        live: bool = False,
    ) -> None:
        # Its choice of weights and its factors; its scale, which is relative to each weight, plays no part.
        recipe = LowRank(1, rank=rank, include=as_patterns(include, "include"), exclude=as_patterns(exclude, "exclude"))
        captured = capture(model, example, live=live)
        trained = {n: captured.weights[n].detach() for n in recipe.select(captured.weights, captured.trainable)}
        self.start = {n: w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for n, w in trained.items()}
        self.noise = Noise(rank, {name: tuple(weight.shape) for name, weight in trained.items()})
        self.device = captured.example[0].device
        self._factored, _ = factorable(captured.program, structures(recipe, trained))
        self.program = factored_program(captured.program, self._factored) if self._factored else captured.program
        self._aliases = captured.program.aliases
        self._dtypes = {name: weight.dtype for name, weight in trained.items()}
        self._fixed = {n: w.detach().clone() for n, w in captured.weights.items() if n not in trained}
        self._unused = {name: tensor.detach().clone() for name, tensor in captured.unused.items()}
        self._state_names = captured.state_names

    def members(self, weights: Mapping[str, Tensor], noise: Mapping[str, Tensor], some: slice, sigma: float) -> Members:
        """Members around weights, ready to be run: W + σ E, E in factors where the model has products alone.

        Args:
            weights: the reference, as :attr:`start`.
            noise: of some pairs.
            some: which of the pairs' members, in order.
            sigma: σ.
        """
        stacked: dict[str, Tensor] = {}
        for name, weight in weights.items():
            dtype = self._dtypes[name]
            if name in self._factored:
                for side, factor in zip((LEFT, RIGHT), self.noise.both(name, noise, sigma), strict=True):
                    stacked[name + side] = factor[some].to(dtype)
            else:
                stacked[name] = self._dense(name, weight, noise, some, sigma).to(dtype)
        shared = {**self._fixed, **{name: weights[name].to(self._dtypes[name]) for name in self._factored}}
        return Members(len(next(iter(stacked.values()))), shared, stacked, self._factored)

    def member(
        self, weights: Mapping[str, Tensor], noise: Mapping[str, Tensor], index: int, sigma: float
    ) -> dict[str, Tensor]:
        """The state dict of one of the pairs' members; arguments as for :meth:`members`."""
        some = slice(index, index + 1)
        return self.state_dict({n: self._dense(n, w, noise, some, sigma).squeeze(0) for n, w in weights.items()})

    def state_dict(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model: copies, in the model's dtypes.

        Args:
            weights: those that are trained, each of its own shape.
        """
        own = {name: weight.to(self._dtypes[name]) for name, weight in weights.items()}
        every = {**self._unused, **self._fixed, **own}
        return {name: every[self._aliases.get(name, name)].clone() for name in self._state_names}

    def _dense(self, name: str, weight: Tensor, noise: Mapping[str, Tensor], some: slice, sigma: float) -> Tensor:
        """Full weights of some members, (members, *shape)."""
        own = [tensor[some].to(weight.dtype) for tensor in self.noise.both(name, noise, sigma)]
        return Factors("additive", *own).materialise(weight) if len(own) == 2 else weight + own[0]
