"""What a hypernetwork gives: which weights of its target, and in what form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.errors import ModelError
from ensemble.perturbation.base import as_patterns, choose
from ensemble.perturbation.factors import Shape, columns
from ensemble.structured import LEFT, RIGHT

# How many names an error lists.
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Generated:
    """The form of a hypernetwork's output for n codes or contexts.

    Args:
        full: weights that it gives in full, each (n, *shape), by name.
        factored: weights to whose trained value it gives a low-rank delta, L Rᵀ: (n, rows, rank) and
            (n, columns, rank).
        vector: where the weights are one vector, (n, numbers), or chunks of one, (n, chunks, size): the names in the
            vector's order, each with its shape. A dict by name otherwise, and this is empty.
        aliases: tied weights: name in the target's state dict -> the name that holds the tensor.
    """

    full: dict[str, tuple[int, ...]]
    factored: dict[str, Shape]
    vector: tuple[tuple[str, tuple[int, ...]], ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(
        output: Any,
        count: int,
        target: nn.Module,
        weights: Mapping[str, Tensor],
        *,
        aliases: Mapping[str, str],
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
    ) -> Generated:
        """What an output is, found from one.

        Args:
            output: what the hypernetwork gave for ``count`` codes: a dict {name in the target's state dict: tensor of
                the weight's shape behind the codes, or a pair of factors}, or a vector of all chosen parameters.
            count: how many codes it was given.
            target: whose weights they are.
            weights: those that the target reads, by name.
            aliases: of the target's tied weights.
            include, exclude: patterns of the parameters that a vector holds, in the order of ``named_parameters``.

        Raises:
            ModelError: an unknown name, or a shape that does not fit; the text says what would.
            RecipeError: patterns that match nothing.
        """
        if isinstance(output, Mapping):
            return _named(output, count, weights, aliases)
        if not isinstance(output, Tensor):
            raise ModelError(
                "A hypernetwork returns one vector of weights, (codes, numbers), or a dict by the target's names, "
                f"however: a {type(output).__name__}."
            )
        parameters = {n: p for n, p in target.named_parameters() if p.is_floating_point()}
        chosen = choose(list(parameters), parameters, as_patterns(include, "include"), as_patterns(exclude, "exclude"))
        vector = tuple((name, tuple(parameters[name].shape)) for name in chosen)
        numbers = sum(math.prod(shape) for _, shape in vector)
        _check_vector(output, count, numbers)
        return Generated({n: shape for n, shape in vector if n in weights}, {}, vector)

    def read(self, output: Any) -> dict[str, Tensor]:
        """The weights in an output of this form.

        Returns:
            {name: (n, *shape)}, and of a factored weight name + LEFT, (n, rows, rank), and name + RIGHT.

        Raises:
            ModelError: the output is of another form.
        """
        if not self.vector:
            return self._by_name(output)
        if not isinstance(output, Tensor):
            raise ModelError(f"The hypernetwork gave a vector before, and now a {type(output).__name__}.")
        flat, found, start = output.flatten(1), {}, 0
        for name, shape in self.vector:
            stop = start + math.prod(shape)
            if name in self.full:
                found[name] = flat[:, start:stop].reshape(-1, *shape)
            start = stop
        return found

    def _by_name(self, output: Any) -> dict[str, Tensor]:
        if not isinstance(output, Mapping):
            raise ModelError(f"The hypernetwork gave a dict before, and now a {type(output).__name__}.")
        given = {self.aliases.get(name, name): value for name, value in output.items()}
        if given.keys() != self.full.keys() | self.factored.keys():
            raise ModelError(f"The hypernetwork gave {[*self.full, *self.factored]} before, and now {list(given)}.")
        found: dict[str, Tensor] = {}
        for name, value in given.items():
            if name in self.factored:
                found[name + LEFT], found[name + RIGHT] = value
            else:
                found[name] = value
        return found

    @property
    def names(self) -> list[str]:
        """The generated weights."""
        return [*self.full, *self.factored]

    def described(self) -> dict[str, str]:
        """The form of each, for people."""
        return dict.fromkeys(self.full, "full") | {n: f"rank {shape.rank}" for n, shape in self.factored.items()}


def _named(
    output: Mapping[str, Any], count: int, weights: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> Generated:
    full: dict[str, tuple[int, ...]] = {}
    factored: dict[str, Shape] = {}
    for given, value in output.items():
        name = aliases.get(given, given)
        if name not in weights or not weights[name].is_floating_point():
            raise ModelError(f"The hypernetwork gives {given!r}, no weight of the target: {_listing(weights)}.")
        if name in full or name in factored:
            raise ModelError(f"The hypernetwork gives {given!r} twice, under both names of a tied weight.")
        shape = tuple(weights[name].shape)
        if isinstance(value, Tensor):
            _check(f"{given!r}", value, (count, *shape))
            full[name] = shape
            continue
        if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)):
            raise ModelError(
                f"The hypernetwork must give a tensor for {given!r}, or a pair of factors (L, R) of a delta L Rᵀ, "
                f"however: a {type(value).__name__}."
            )
        if len(shape) < 2:
            raise ModelError(f"{given!r} has shape {list(shape)}, which has no factors; give it in full.")
        left, right = value
        rank = left.shape[-1] if left.ndim == 3 else 1
        if not 1 <= rank <= min(shape[0], columns(shape, "additive")):
            raise ModelError(
                f"The factors of {given!r} have rank {rank}; of a weight of shape {list(shape)} it is between 1 and "
                f"{min(shape[0], columns(shape, 'additive'))}."
            )
        factored[name] = Shape("additive", rank, shape)
        for side, tensor, size in zip(("left", "right"), (left, right), factored[name].factors, strict=True):
            _check(f"the {side} factor of {given!r}", tensor, (count, *size))
    if not full and not factored:
        raise ModelError("The hypernetwork gives no weight at all.")
    return Generated(full, factored, (), dict(aliases))


def _check(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"The hypernetwork gives {what} with shape {list(tensor.shape)} for {shape[0]} codes; it must be "
            f"{list(shape)}."
        )
    if not tensor.is_floating_point():
        raise ModelError(f"The hypernetwork gives {what} as {tensor.dtype}; weights are floating point.")


def _check_vector(output: Tensor, count: int, numbers: int) -> None:
    shape = list(output.shape)
    if len(shape) not in (2, 3) or shape[0] != count:
        raise ModelError(
            f"For {count} codes a hypernetwork must give [{count}, {numbers}] weights, or chunks of them, [{count}, "
            f"chunks, size], however: {shape}."
        )
    given = math.prod(shape[1:])
    # The last chunk may be longer than what is left.
    if given != numbers and not (len(shape) == 3 and given - shape[2] < numbers < given):
        raise ModelError(
            f"The hypernetwork gives {given} numbers for each code, and the target's chosen parameters have {numbers}. "
            "Choose others with include= and exclude=, or give a dict by name."
        )
    if not output.is_floating_point():
        raise ModelError(f"The hypernetwork gives {output.dtype}; weights are floating point.")


def _listing(weights: Collection[str]) -> str:
    names = list(weights)
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")


def in_full(own: dict[str, Tensor], weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Generated weights, those of these names with their deltas added up: (n, *shape) instead of factors."""
    found = dict(own)
    for name in names:
        left, right = found.pop(name + LEFT), found.pop(name + RIGHT)
        found[name] = weights[name] + (left @ right.transpose(1, 2)).reshape(-1, *weights[name].shape)
    return found


def first_bad(weights: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """A weight that is not finite, and of which code; None if all are."""
    for name, tensor in weights.items():
        bad = (~torch.isfinite(tensor)).flatten(1).any(1)
        if bool(bad.any()):
            return name.removesuffix(LEFT).removesuffix(RIGHT), int(bad.nonzero()[0])
    return None
