"""Rewriting a graph where members' weights are thin factors on a shared tensor, so that none is ever formed in full.

A factored weight is followed from where it is read to where it is used in a product, and the product is written anew:

    additive, W + L Rᵀ            x Wᵀ  becomes  x Wᵀ + (x R) Lᵀ
    multiplicative, W ∘ (l rᵀ)    x Wᵀ  becomes  ((x ∘ r) Wᵀ) ∘ l

Under ``vmap`` the product with the shared W is then one large product over the rows of all members, computed once
where x is the same for all of them. A use that is no such product (a weight that is added, indexed, normalised by)
leaves that weight dense: its members are stacked in full, and the reason is told.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ensemble.perturbation.base import Recipe
from ensemble.perturbation.factors import Shape
from ensemble.program.graph import used_weights
from ensemble.program.program import Program

aten = torch.ops.aten
# A weight is no module, so nothing else can have these names.
LEFT, RIGHT = ".left", ".right"


@dataclasses.dataclass(frozen=True)
class _Factored:
    """A factored weight on its way through the new graph; ``flipped`` once it was transposed."""

    base: fx.Node
    left: fx.Node
    right: fx.Node
    shape: Shape
    flipped: bool = False


class _Unfactorable(Exception):  # noqa: N818 - a finding about a weight, caught in this module
    """The weight is used in a way that has no factored form."""


def rewrite(graph: fx.Graph, weights: Mapping[str, Shape]) -> tuple[fx.Graph, dict[str, str]]:
    """Write a graph anew with products on factors.

    Args:
        graph: left as it is.
        weights: the factored weights, by name. The new graph reads the trained value of each under its own name, and
            its factors under name + LEFT, (rows, rank), and name + RIGHT, (columns, rank).

    Returns:
        The new graph, and for each weight that must stay dense the operation that is the reason.
    """
    dense: dict[str, str] = {}
    while True:
        remaining = {name: shape for name, shape in weights.items() if name not in dense}
        rewriter = _Rewriter(graph, remaining)
        found = rewriter.run()
        if found is None:
            return rewriter.graph, dense
        dense |= found


class _Rewriter:
    """One pass over a graph. The handler of an operation is the method of its name."""

    def __init__(self, source: fx.Graph, weights: Mapping[str, Shape]) -> None:
        self.source = source
        self.weights = weights
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        # Which weight a value is or comes from, to name it when it cannot be factored.
        self.origin: dict[fx.Node, str] = {}

    def run(self) -> dict[str, str] | None:
        """Rewrite; {weight: operation} if one cannot be factored."""
        for node in self.source.nodes:
            if node.op == "get_attr" and node.target in self.weights:
                self.values[node] = self._read(str(node.target))
                self.origin[node] = str(node.target)
                continue
            factored = [n for n in node.all_input_nodes if n in self.origin]
            if not factored:
                self.values[node] = self.graph.node_copy(node, lambda n: self.values[n])
                continue
            name = self.origin[factored[0]]
            handler = _HANDLERS.get(node.target)
            try:
                if len(factored) > 1 or handler is None:
                    raise _Unfactorable
                self.values[node] = handler(self, *self._arguments(node))
            except _Unfactorable:
                return {name: getattr(node.target, "__name__", str(node.target)) if node.op != "output" else "output"}
            if isinstance(self.values[node], _Factored | list):
                self.origin[node] = name
        self.graph.eliminate_dead_code()
        return None

    def _arguments(self, node: fx.Node) -> list[Any]:
        """Arguments by position, those that were given by name or left out put in their places."""
        schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else []
        rest = schema[len(node.args) :]
        given = [*node.args, *(node.kwargs.get(argument.name, argument.default_value) for argument in rest)]
        mapped: Any = fx.node.map_aggregate(tuple(given), lambda v: self.values[v] if isinstance(v, fx.Node) else v)
        return list(mapped)

    def _read(self, name: str) -> _Factored:
        return _Factored(
            self.graph.get_attr(name),
            self.graph.get_attr(name + LEFT),
            self.graph.get_attr(name + RIGHT),
            self.weights[name],
        )

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    # Views of a weight: which rows, which way round.

    def permute(self, w: Any, order: list[int]) -> _Factored:
        if not isinstance(w, _Factored) or len(w.shape.size) != 2 or [d % 2 for d in order] != [1, 0]:
            raise _Unfactorable
        return dataclasses.replace(w, base=self.call(aten.permute.default, w.base, [1, 0]), flipped=not w.flipped)

    def transpose(self, w: Any) -> _Factored:
        return self.permute(w, [1, 0])

    def split(self, w: Any, sizes: list[int], dim: int) -> list[_Factored]:
        """The rows of packed projections: queries, keys and values of attention."""
        if not isinstance(w, _Factored) or dim != 0 or w.flipped:
            raise _Unfactorable
        bases = self.call(aten.split_with_sizes.default, w.base, sizes, 0)
        lefts = self.call(aten.split_with_sizes.default, w.left, sizes, 0)
        return [
            _Factored(
                self.call(operator.getitem, bases, i),
                self.call(operator.getitem, lefts, i),
                w.right,
                dataclasses.replace(w.shape, size=(size, *w.shape.size[1:])),
            )
            for i, size in enumerate(sizes)
        ]

    def getitem(self, parts: Any, index: int) -> Any:
        return parts[index]

    def rows(self, w: Any, dim: int, start: int | None, end: int | None, step: int) -> _Factored:
        if not isinstance(w, _Factored) or dim != 0 or w.flipped:
            raise _Unfactorable
        count = len(range(w.shape.size[0])[slice(start, end, step)])
        return dataclasses.replace(
            w,
            base=self.call(aten.slice.Tensor, w.base, 0, start, end, step),
            left=self.call(aten.slice.Tensor, w.left, 0, start, end, step),
            shape=dataclasses.replace(w.shape, size=(count, *w.shape.size[1:])),
        )

    # Products.

    def linear(self, x: Any, w: Any, bias: Any = None) -> fx.Node:
        if not isinstance(w, _Factored) or len(w.shape.size) != 2:
            raise _Unfactorable
        return self._plus(self._times(x, dataclasses.replace(w, flipped=not w.flipped), aten.linear.default), bias)

    def mm(self, x: Any, w: Any) -> fx.Node:
        if not isinstance(w, _Factored) or len(w.shape.size) != 2:
            raise _Unfactorable
        return self._times(x, w, aten.mm.default)

    def addmm(self, bias: Any, x: Any, w: Any, beta: Any, alpha: Any) -> fx.Node:
        if beta != 1 or alpha != 1:
            raise _Unfactorable
        return self._plus(self.mm(x, w), bias)

    def _times(self, x: fx.Node, w: _Factored, product: Any) -> fx.Node:
        """x times a matrix whose input side are the rows of ``w``, or its columns if it is flipped."""
        inner, outer = (w.right, w.left) if w.flipped else (w.left, w.right)
        x = self._in_order(x)
        if w.shape.form == "multiplicative":
            scaled = self.call(aten.mul.Tensor, x, self._vector(inner))
            return self.call(aten.mul.Tensor, self.call(product, scaled, w.base), self._vector(outer))
        thin = self.call(aten.matmul.default, x, inner)
        own = self.call(aten.linear.default, thin, outer)
        return self.call(aten.add.Tensor, self.call(product, x, w.base), own)

    def _in_order(self, x: fx.Node) -> fx.Node:
        """A value whose rows lie one after the other: a product with more than two dimensions is one large product
        then, and one for each row otherwise, for which the shared matrix would be repeated."""
        if x.target not in (aten.permute.default, aten.transpose.int):
            return x
        return self.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})

    def _vector(self, factor: fx.Node) -> fx.Node:
        return self.call(aten.squeeze.dim, factor, -1)

    def _plus(self, value: fx.Node, bias: Any) -> fx.Node:
        return value if bias is None else self.call(aten.add.Tensor, value, bias)

    def embedding(self, w: Any, index: Any, *_: Any) -> fx.Node:
        if not isinstance(w, _Factored) or w.flipped:
            raise _Unfactorable
        shared = self.call(aten.embedding.default, w.base, index)
        own = self.call(aten.embedding.default, w.left, index)
        if w.shape.form == "multiplicative":
            return self.call(aten.mul.Tensor, shared, self.call(aten.mul.Tensor, own, self._vector(w.right)))
        return self.call(aten.add.Tensor, shared, self.call(aten.linear.default, own, w.right))

    def convolution(self, x: Any, w: Any, bias: Any, *settings: Any) -> fx.Node:
        if not isinstance(w, _Factored) or w.flipped:
            raise _Unfactorable
        spatial = len(w.shape.size) - 2
        _stride, _padding, _dilation, transposed, _extra, _groups = settings
        channels = [-1, *[1] * spatial]
        if w.shape.form == "multiplicative":
            value = self._scaled_convolution(x, w, settings, channels)
        elif transposed:
            raise _Unfactorable
        else:
            value = self._thin_convolution(x, w, settings)
        return value if bias is None else self._plus(value, self.call(aten.view.default, bias, channels))

    def _scaled_convolution(self, x: fx.Node, w: _Factored, settings: Any, channels: list[int]) -> fx.Node:
        *_, transposed, _, groups = settings
        # A transposed convolution's weight is (in, out / groups, ...): its factors change sides.
        inner, outer = (w.left, w.right) if transposed else (w.right, w.left)

        def channelwise(factor: fx.Node, whole: bool) -> fx.Node:
            vector = self._vector(factor)
            if not whole and groups > 1:
                vector = self.call(aten.repeat.default, vector, [groups])
            return self.call(aten.view.default, vector, channels)

        scaled = self.call(aten.mul.Tensor, x, channelwise(inner, transposed))
        value = self.call(aten.convolution.default, scaled, w.base, None, *settings)
        return self.call(aten.mul.Tensor, value, channelwise(outer, not transposed))

    def _thin_convolution(self, x: fx.Node, w: _Factored, settings: Any) -> fx.Node:
        """Two convolutions: to ``rank`` channels a group with the right factor, and from those with the left one."""
        groups = settings[-1]
        rank, (outputs, inputs, *kernel) = w.shape.rank, w.shape.size
        shared = self.call(aten.convolution.default, x, w.base, None, *settings)
        right = self.call(aten.permute.default, w.right, [1, 0])
        right = self.call(aten.view.default, self.call(aten.clone.default, right), [rank, inputs, *kernel])
        if groups > 1:
            right = self.call(aten.repeat.default, right, [groups, 1, *[1] * len(kernel)])
        thin = self.call(aten.convolution.default, x, right, None, *settings)
        ones = [1] * len(kernel)
        if groups == 1 and rank == 1:
            # One channel times a vector: an outer product, which needs no convolution.
            own = self.call(aten.mul.Tensor, thin, self.call(aten.view.default, w.left, [outputs, *ones]))
        else:
            left = self.call(aten.view.default, w.left, [outputs, rank, *ones])
            zeros = [0] * len(kernel)
            own = self.call(aten.convolution.default, thin, left, None, ones, zeros, ones, False, zeros, groups)
        return self.call(aten.add.Tensor, shared, own)


_HANDLERS: dict[Any, Any] = {
    aten.permute.default: _Rewriter.permute,
    aten.t.default: _Rewriter.transpose,
    aten.split_with_sizes.default: _Rewriter.split,
    operator.getitem: _Rewriter.getitem,
    aten.slice.Tensor: _Rewriter.rows,
    aten.linear.default: _Rewriter.linear,
    aten.mm.default: _Rewriter.mm,
    aten.matmul.default: _Rewriter.mm,
    aten.addmm.default: _Rewriter.addmm,
    aten.embedding.default: _Rewriter.embedding,
    aten.convolution.default: _Rewriter.convolution,
}


def factored_program(program: Program, forms: Mapping[str, Shape]) -> Program:
    """The same program, its products with these weights on factors.

    Args:
        program: an exported one.
        forms: weights that :func:`factorable` found.
    """
    assert program.graph is not None
    graph, dense = rewrite(program.graph, forms)
    assert not dense
    empty = {}
    for name, weight in program.empty_weights().items():
        empty[name] = weight
        if name in forms:
            left, right = forms[name].factors
            empty[name + LEFT] = weight.new_empty(left)
            empty[name + RIGHT] = weight.new_empty(right)
    used = list(used_weights(graph))
    return program.running(graph, {name: empty[name] for name in used})


def factorable(program: Program, wanted: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, str]]:
    """Which of these weights the program uses in products alone.

    Returns:
        Those, and for each other one the reason why its members are dense.
    """
    if program.graph is None:
        return {}, dict.fromkeys(wanted, "the live module, which has no graph to rewrite")
    _, dense = rewrite(program.graph, wanted)
    return {name: shape for name, shape in wanted.items() if name not in dense}, dense


def structures(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The weights for which a recipe has factors, and of what form."""
    found = {name: recipe.structure(weight.shape) for name, weight in weights.items()}
    return {name: shape for name, shape in found.items() if shape is not None}
