"""The affine layers of an exported graph: what they read and whom they feed.

A layer is a product of an activation with a weight, plus a bias: a linear layer or a convolution. Recipes that perturb
or refit layers, not weights one by one, find them here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from ensemble.program.graph import used_weights
from ensemble.program.program import Program

aten = torch.ops.aten
_LINEAR = aten.linear.default
_CONVOLUTION = aten.convolution.default
_PRODUCTS = {_LINEAR, _CONVOLUTION, aten.embedding.default, aten.mm.default, aten.addmm.default, aten.bmm.default}
_WEIGHT = ".weight"
# What they give depends on the shape of a value alone.
_SIZES = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One affine layer.

    Args:
        name: its weight's name in the state dict without ".weight": the module's name, as a rule.
        weight: the weight's name.
        bias: the bias's name; None without one.
        node: where it stands in the graph.
        settings: of a convolution (stride, padding, dilation, transposed, output padding, groups); None of a linear
            layer.
    """

    name: str
    weight: str
    bias: str | None
    node: fx.Node
    settings: tuple[Any, ...] | None

    @property
    def x(self) -> fx.Node:
        """The activation that it reads."""
        found = self.node.args[0]
        assert isinstance(found, fx.Node)
        return found

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its weight and bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def columns_are_inputs(self) -> bool:
        """Whether the weight's second dimension are all of its input features or channels."""
        return self.settings is None or (not self.settings[3] and self.settings[5] == 1)


def layers(graph: fx.Graph) -> list[Layer]:
    """Every product of an activation with a weight of the model that is used nowhere else, in order of the graph.

    A weight that is used twice, or computed from others (weight normalisation), is no layer's own.
    """
    found = []
    for node in graph.nodes:
        if node.target not in (_LINEAR, _CONVOLUTION) or node.kwargs:
            continue
        x, weight, bias = (*node.args, None)[:3]
        if not isinstance(x, fx.Node) or not _own(weight) or not (bias is None or _own(bias)):
            continue
        name = str(weight.target)
        settings = tuple(node.args[3:]) if node.target is _CONVOLUTION else None
        own_bias = None if bias is None else str(bias.target)
        found.append(Layer(name.removesuffix(_WEIGHT), name, own_bias, node, settings))
    return found


def _own(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr" and len(value.users) == 1


def inner(graph: fx.Graph) -> list[Layer]:
    """The layers whose activation was made by a trained layer or embedding before, so that they do not read inputs."""
    descends: set[fx.Node] = set()
    for node in graph.nodes:
        product = node.target in _PRODUCTS and any(_is_weight(value) for value in node.all_input_nodes)
        if product or (node.target not in _SIZES and not descends.isdisjoint(node.all_input_nodes)):
            descends.add(node)
    return [layer for layer in layers(graph) if layer.x in descends]


def _is_weight(node: fx.Node) -> bool:
    """A weight, or a view of one."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def cut(graph: fx.Graph, layer: Layer) -> list[Layer] | None:
    """The next layers after one: the first on each way from it to the outputs.

    Grouped and transposed convolutions do not count as layers here, and are gone through.

    Returns:
        Layers that together see all that the outputs learn of ``layer``, none of which feeds another; None where a
        way leads to an output without one.
    """
    known = {other.node: other for other in layers(graph) if other.columns_are_inputs}
    cut_off: dict[fx.Node, Layer] = {}
    seen, waiting = {layer.node}, [layer.node]
    while waiting:
        at = waiting.pop()
        for user in at.users:
            if user.op == "output":
                return None
            if user in seen or user.target in _SIZES:
                continue
            next_one = known.get(user)
            if next_one is not None and next_one.x is at:
                cut_off[user] = next_one
                continue
            seen.add(user)
            waiting.append(user)
    found = [other for other in known.values() if other.node in cut_off]
    # What the first of them gives anew would change what the second reads.
    beyond = _descendants(cut_off)
    return None if not found or any(other.node in beyond for other in found) else found


def _descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        for user in waiting.pop().users:
            if user not in found and user.target not in _SIZES:
                found.add(user)
                waiting.append(user)
    return found


def upto(program: Program, values: Sequence[fx.Node]) -> Program:
    """The part of a program that gives these values instead of its outputs.

    Args:
        program: an exported one.
        values: nodes of its graph.
    """
    assert program.graph is not None
    graph, copies = _copy(program.graph)
    graph.output(tuple(copies[value] for value in values))
    graph.eliminate_dead_code()
    return _part(program, graph)


def final(graph: fx.Graph) -> list[Layer]:
    """The layers that the outputs read without another layer in between, in order of the graph."""
    known = {layer.node: layer for layer in layers(graph)}
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    waiting = list(next(node for node in reversed(graph.nodes) if node.op == "output").all_input_nodes)
    while waiting:
        at = waiting.pop()
        if at in known:
            found.add(at)
        elif at not in seen and at.target not in _SIZES:
            seen.add(at)
            waiting += at.all_input_nodes
    return [layer for node, layer in known.items() if node in found]


def shifted(program: Program, layer: Layer) -> Program:
    """A program with one more input, which is added to what a layer gives, and the layer's activation as last output.

    The outputs as functions of that input at 0 are the outputs as functions of the layer's value.
    """
    assert program.graph is not None
    graph, copies = fx.Graph(), {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    shift = graph.placeholder("layer_shift")
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node is layer.node:
                copies[node] = graph.call_function(aten.add.Tensor, (copies[node], shift))
    outputs = next(node for node in reversed(program.graph.nodes) if node.op == "output").args[0]
    graph.output((*(copies[value] for value in outputs), copies[layer.x]))
    return _part(program, graph)


def _copy(source: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, copies


def _part(program: Program, graph: fx.Graph) -> Program:
    empty = program.empty_weights()
    return program.running(graph, {name: empty[name] for name in used_weights(graph)})


def listing(found: Iterable[Layer], most: int = 12) -> str:
    """Names of layers, for an error."""
    names = [layer.name for layer in found]
    shown = ", ".join(map(repr, names[:most])) or "(none)"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
