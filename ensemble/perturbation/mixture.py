"""Members that several recipes give in turn, as one recipe."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.base import Perturbation
from ensemble.perturbation.factors import Factors, Shape

MAX_PARTS = 256


@dataclass(frozen=True)
class Mixture(Perturbation, name="mixture"):
    """Members 2k and 2k + 1 are those that part k mod K has under these numbers.

    An average over settings: fitting keeps several scales, weighted by how likely each makes the data, instead of the
    best alone. Two neighbours share a part, so that the antithetic pairs of a recipe stay together.

    Args:
        parts: the recipes, at least one, all of which perturb the same weights. Where they have factors of the same
            form and rank the members keep them; else a member is dense.
        weights: of each part in the mixture, ≥ 0 and not all 0; equal by default. A part's weight is shared by its
            members, and scaled so that all members together have 1.

    Raises:
        RecipeError: no parts, a part that is no perturbation or is a mixture itself, or weights that are none.

    Example:
        >>> Mixture(parts=(Rank1(scale=0.0), Rank1(scale=0.1)), weights=(0.25, 0.75))
    """

    parts: tuple[Perturbation, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts) if isinstance(self.parts, list | tuple) else (self.parts,))
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise RecipeError(f"parts must be between 1 and {MAX_PARTS} recipes, however: {len(self.parts)}.")
        for part in self.parts:
            if not isinstance(part, Perturbation) or isinstance(part, Mixture):
                raise RecipeError(
                    f"parts must be recipes that draw members from a seed, such as Rank1(scale=0.1), however: {part!r}."
                )
        if self.weights is None:
            return
        given = self.weights if isinstance(self.weights, list | tuple) else (self.weights,)
        fine = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < math.inf for w in given)
        if len(given) != len(self.parts) or not fine or not 0 < sum(given) < math.inf:
            raise RecipeError(
                f"weights must be a number ≥ 0 for each of the {len(self.parts)} parts, not all 0, however: {given!r}."
            )
        object.__setattr__(self, "weights", tuple(float(w) for w in given))

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        chosen = [part.select(weights, trainable) for part in self.parts]
        for first, other in pairwise(chosen):
            if first != other:
                raise RecipeError(
                    "All parts of a mixture must perturb the same weights; these differ in "
                    f"{', '.join(sorted(set(first) ^ set(other))[:5])}."
                )
        return chosen[0]

    def structure(self, shape: Sequence[int]) -> Shape | None:
        found = {part.structure(shape) for part in self.parts}
        return found.pop() if len(found) == 1 else None

    def mixture(self, count: int) -> Tensor | None:
        if self.weights is None or len(set(self.weights)) == 1 == len({*self._sizes(count)}):
            return None
        sizes = self._sizes(count)
        each = [weight / size if size else 0.0 for weight, size in zip(self.weights, sizes, strict=True)]
        weights = torch.tensor([each[self.part_of(member)] for member in range(count)], dtype=torch.float64)
        total = float(weights.sum())
        # Fewer members than parts: those that have a weight may not be among them.
        return weights / total if total > 0 else None

    def part_of(self, member: int) -> int:
        """Which part gives a member."""
        return member // 2 % len(self.parts)

    def draw(self, name: str, weight: Tensor, seed: int, members: range) -> Tensor:
        out = torch.empty((len(members), *weight.shape), dtype=weight.dtype, device=weight.device)
        for part, some, places in self._shared_out(members):
            out[places] = part.draw(name, weight, seed, some)
        return out

    def factors(self, name: str, weight: Tensor, seed: int, members: range) -> Factors | None:
        if self.structure(weight.shape) is None:
            return None
        found: list[Factors] = []
        for part, some, _ in self._shared_out(members):
            factors = part.factors(name, weight, seed, some)
            assert factors is not None
            found.append(factors)
        return Factors(found[0].form, torch.cat([f.left for f in found]), torch.cat([f.right for f in found]))

    def _shared_out(self, members: range) -> Iterator[tuple[Perturbation, range, slice]]:
        """Neighbouring members of one part, in order, and their places among ``members``."""
        start = 0
        while start < len(members):
            part, stop = self.part_of(members[start]), start + 1
            while stop < len(members) and self.part_of(members[stop]) == part:
                stop += 1
            yield self.parts[part], members[start:stop], slice(start, stop)
            start = stop

    def _sizes(self, count: int) -> list[int]:
        """How many of the first ``count`` members each part gives."""
        sizes = [0] * len(self.parts)
        for member in range(count):
            sizes[self.part_of(member)] += 1
        return sizes
