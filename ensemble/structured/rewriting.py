"""Rewriting a graph where members' weights are thin factors on a shared tensor, so that none is ever formed in full.

A factored weight is followed from where it is read to where it is used in a product, and the product is written anew:

    additive, W + L Rᵀ            x Wᵀ  becomes  x Wᵀ + (x R) Lᵀ
    multiplicative, W ∘ (l rᵀ)    x Wᵀ  becomes  ((x ∘ r) Wᵀ) ∘ l

Under ``vmap`` the product with the shared W is then one large product over the rows of all members, computed once
where x is the same for all of them. A use that is no such product (a weight that is added, summed, normalised by)
leaves that weight dense: its members are stacked in full, and the reason is told.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ensemble.perturbation.base import Recipe
from ensemble.perturbation.factors import Shape
from ensemble.program.graph import used_weights
from ensemble.program.program import Program
from ensemble.structured.convolutions import convolution
from ensemble.structured.factored import LEFT, RIGHT, Factored, Unfactorable, Writer, aten
from ensemble.structured.products import PRODUCTS
from ensemble.structured.views import VIEWS

_HANDLERS: dict[Any, Any] = {**VIEWS, **PRODUCTS, aten.convolution.default: convolution}
# Of operations that users write under another name than export does.
_WRITTEN = {
    "_trilinear": "bilinear", "_to_copy": "to", "_unsafe_view": "view", "split_with_sizes": "split",
    "constant_pad_nd": "pad", "_unsafe_index": "index", "convolution": "a convolution",
}  # fmt: skip


def rewrite(graph: fx.Graph, weights: Mapping[str, Shape]) -> tuple[fx.Graph, dict[str, str]]:
    """Write a graph anew with products on factors.

    Args:
        graph: left as it is.
        weights: the factored weights, by name. The new graph reads the trained value of each under its own name, and
            its factors under name + LEFT, (rows, rank), and name + RIGHT, (columns, rank).

    Returns:
        The new graph, and for each weight that must stay dense the reason: "used by sum, which ...".
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
    """One pass over a graph."""

    def __init__(self, source: fx.Graph, weights: Mapping[str, Shape]) -> None:
        self.source = source
        self.weights = weights
        self.write = Writer()
        self.values: dict[fx.Node, Any] = {}
        # Which weight a value is or comes from, to name it when it cannot be factored.
        self.origin: dict[fx.Node, str] = {}

    @property
    def graph(self) -> fx.Graph:
        """What was written."""
        return self.write.graph

    def run(self) -> dict[str, str] | None:
        """Rewrite; {weight: reason} if one cannot be factored."""
        for node in self.source.nodes:
            if node.op == "get_attr" and node.target in self.weights:
                self.values[node] = self.write.read(node.target, self.weights[node.target])
                self.origin[node] = node.target
                continue
            factored = [n for n in node.all_input_nodes if n in self.origin]
            if not factored:
                self.values[node] = self.graph.node_copy(node, lambda n: self.values[n])
                continue
            name = self.origin[factored[0]]
            handler = _HANDLERS.get(node.target)
            try:
                if len(factored) > 1:
                    raise Unfactorable(" together with another weight that has factors")
                if handler is None:
                    raise Unfactorable
                self.values[node] = handler(self.write, *self._arguments(node))
            except Unfactorable as found:
                return {name: f"used by {_written(node)}{found}"}
            if isinstance(self.values[node], Factored | list):
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


def _written(node: fx.Node) -> str:
    """An operation as a user writes it."""
    if node.op == "output":
        return "the output"
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    name = node.target._schema.name.split("::")[1]
    return _WRITTEN.get(name, name.lstrip("_"))


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
        Those, and for each other one the reason why its members are dense, as :func:`rewrite` gives it.
    """
    if program.graph is None:
        return {}, dict.fromkeys(wanted, "used by the module's own code, which cannot be rewritten")
    _, dense = rewrite(program.graph, wanted)
    return {name: shape for name, shape in wanted.items() if name not in dense}, dense


def structures(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The weights for which a recipe has factors, and of what form."""
    found = {name: recipe.structure(weight.shape) for name, weight in weights.items()}
    return {name: shape for name, shape in found.items() if shape is not None}
