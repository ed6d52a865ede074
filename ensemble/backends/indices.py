"""Indices beyond a table's end, which PyTorch refuses and OpenVINO reads as zeros: a traced call that tells of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def tell_of_bad_indices(traced: fx.GraphModule, first_input: int) -> None:
    """Add an output, where the call reads tables at indices that come from its inputs: whether one is out of range.

    Args:
        traced: what :func:`~ensemble.backends.tracing.trace` gave; it is changed.
        first_input: position of the first argument that is no weight.
    """
    graph = traced.graph
    inputs = set(graph.find_nodes(op="placeholder")[first_input:])
    given = set(inputs)
    for node in graph.nodes:
        if given.intersection(node.all_input_nodes):
            given.add(node)
    tests: dict[tuple[fx.Node, int, int], None] = {}
    for node in graph.nodes:
        for index, low, size in _reads(node):
            if index in given and index.meta["val"].dtype in _INTEGERS:
                tests[index, low, size] = None
    output = graph.output_node()
    bad: fx.Node | None = None
    with graph.inserting_before(output):
        for index, low, size in tests:
            below = graph.call_function(aten.lt.Scalar, (index, low))
            above = graph.call_function(aten.ge.Scalar, (index, size))
            outside = graph.call_function(aten.logical_or.default, (below, above))
            some = graph.call_function(aten.any.default, (outside,))
            bad = some if bad is None else graph.call_function(aten.logical_or.default, (bad, some))
    for index, low, size in tests:
        for node in [user for user in index.users if user.target is aten.gather.default]:
            # Its kernel refuses by itself, but with one thread the error is lost, and with it all that comes after.
            with graph.inserting_before(node):
                node.replace_input_with(index, graph.call_function(aten.clamp.default, (index, low, size - 1)))
    if bad is not None:
        output.args = ((*output.args[0], bad),)  # type: ignore[misc]  # an output's first argument is a tuple
    traced.recompile()


def _reads(node: fx.Node) -> list[tuple[fx.Node, int, int]]:
    """Where an operation reads a table: the index, the least that it may be, and the size that it must be below."""
    arguments: Any = node.args
    if node.target is aten.embedding.default:
        return [(arguments[1], 0, _shape(arguments[0])[0])]
    if node.target in (aten.gather.default, aten.index_select.default):
        return [(arguments[2], 0, _shape(arguments[0])[arguments[1]])]
    if node.target is aten.index.Tensor:
        shape = _shape(arguments[0])
        return [(index, -shape[at], shape[at]) for at, index in enumerate(arguments[1]) if index is not None]
    return []


def _shape(table: fx.Node) -> tuple[int, ...]:
    return tuple(table.meta["val"].shape)
