"""A factored weight on its way through a graph: the shared tensor, its factors, and how both are written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import fx

from ensemble.perturbation.factors import Form, Shape

aten = torch.ops.aten
# A weight is no module, so nothing else can have these names.
LEFT, RIGHT = ".left", ".right"

# What varies along a dimension: the shared tensor and one of the factors, the shared tensor alone (a convolution's
# kernel, which multiplicative factors scale as a whole), or nothing, where it is of size one or repeats.
Along = Literal["left", "right", "base", "nothing"]


class Unfactorable(Exception):  # noqa: N818 - a finding about a weight, caught by the rewriting
    """A use of a weight that has no form on factors; the text goes on from the operation's name."""

    def __init__(self, text: str = ", which has no form on factors") -> None:
        super().__init__(text)


@dataclasses.dataclass(frozen=True)
class Factored:
    """A view of a factored weight.

    Attributes:
        form: of the factors.
        base: the shared tensor in this view, where it repeats of size one.
        left, right: the factors: the sizes of the dimensions along which each varies, in their order, and the rank.
        along: what varies along each dimension.
        size: of each dimension; a node if it is known only when the graph runs.
    """

    form: Form
    base: fx.Node
    left: fx.Node
    right: fx.Node
    along: tuple[Along, ...]
    size: tuple[Any, ...]
    rank: int

    @property
    def ndim(self) -> int:
        """How many dimensions the view has."""
        return len(self.along)

    def viewed(
        self, base: fx.Node, along: Iterable[Along], size: Iterable[Any], factors: Mapping[Along, fx.Node]
    ) -> Factored:
        """Another view, in which these factors are others."""
        return dataclasses.replace(
            self,
            base=base,
            along=tuple(along),
            size=tuple(size),
            left=factors.get("left", self.left),
            right=factors.get("right", self.right),
        )

    def factor(self, side: Along) -> fx.Node:
        """The factor of that side."""
        return self.left if side == "left" else self.right

    def owned(self, side: Along) -> list[int]:
        """The dimensions along which a factor varies."""
        return [dim for dim, own in enumerate(self.along) if own == side]


class Writer:
    """Writes operations into the new graph."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operation."""
        return self.graph.call_function(target, args, kwargs)

    def read(self, name: str, shape: Shape) -> Factored:
        """A factored weight as the graph's weights have it."""
        left, right = self.graph.get_attr(name + LEFT), self.graph.get_attr(name + RIGHT)
        rest = len(shape.size) - 2
        inner: Along = "right" if shape.form == "additive" else "base"
        if rest and inner == "right":
            right = self.call(aten.reshape.default, right, [*shape.size[1:], shape.rank])
        along: list[Along] = ["left", "right", *[inner] * rest]
        return Factored(shape.form, self.graph.get_attr(name), left, right, tuple(along), shape.size, shape.rank)

    def vector(self, factor: fx.Node) -> fx.Node:
        """A multiplicative factor without its rank, which is one."""
        return self.call(aten.squeeze.dim, factor, -1)

    def plus(self, value: fx.Node, bias: Any) -> fx.Node:
        """With a bias, if there is one."""
        return value if bias is None else self.call(aten.add.Tensor, value, bias)
