"""Low-rank noise for pairs of members that have it with opposite signs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ensemble.perturbation.factors import columns
from ensemble.random import standard_normal
from ensemble.structured import LEFT, RIGHT


@dataclasses.dataclass(frozen=True)
class Noise:
    """The E of pairs of members, of the form that :class:`~ensemble.LowRank` has, without a scale.

    Args:
        rank: of a matrix's.
        shapes: of the weights, by name.
    """

    rank: int
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes of one pair's."""
        return 4 * sum(
            self.rank * (shape[0] + columns(shape, "additive")) if len(shape) > 1 else math.prod(shape)
            for shape in self.shapes.values()
        )

    def draw(self, seed: int, pairs: range) -> dict[str, Tensor]:
        """Of a matrix A (pairs, rows, rank) and B (pairs, columns, rank), under its name + LEFT and RIGHT; of a vector
        E itself, under its name. On the CPU.

        Pair k's noise is a function of ``seed``, k, the rank and the shapes alone.
        """
        sizes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            if len(shape) > 1:
                sizes[name + LEFT] = (shape[0], self.rank)
                sizes[name + RIGHT] = (columns(shape, "additive"), self.rank)
            else:
                sizes[name] = shape
        # One stream for all weights of a pair: to begin one takes longer than to draw a few hundred numbers.
        numbers = [math.prod(size) for size in sizes.values()]
        every = torch.split(standard_normal(seed, pairs, "pair", (sum(numbers),)), numbers, 1)
        return {name: part.reshape(-1, *size) for (name, size), part in zip(sizes.items(), every, strict=True)}

    def both(self, name: str, noise: Mapping[str, Tensor], sigma: float) -> tuple[Tensor, ...]:
        """σE of both members of each pair, one after the other: a pair of factors, or of a vector σE alone."""
        if name in noise:
            return (_signed(noise[name]) * sigma,)
        right = noise[name + RIGHT] * (sigma / math.sqrt(self.rank))
        return _signed(noise[name + LEFT]), right.repeat_interleave(2, 0)

    def weighted(self, name: str, noise: Mapping[str, Tensor], worth: Tensor) -> Tensor:
        """Σ_k worth_k E_k over the pairs, as one product; of the weight's shape."""
        shape = self.shapes[name]
        if name in noise:
            return (worth @ noise[name].to(worth.dtype).reshape(len(worth), -1)).view(shape)
        left = (noise[name + LEFT].to(worth.dtype) * (worth / math.sqrt(self.rank)).view(-1, 1, 1)).transpose(0, 1)
        right = noise[name + RIGHT].to(worth.dtype).transpose(1, 2)
        return (left.flatten(1) @ right.flatten(0, 1)).view(shape)


def _signed(noise: Tensor) -> Tensor:
    return torch.stack([noise, -noise], 1).flatten(0, 1)
