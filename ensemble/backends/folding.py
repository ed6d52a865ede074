"""Members that stand in the batch, where ``vmap`` gave them a dimension of their own between convolutions.

What members share convolves the rows of all of them at once, (members · rows, channels, ...), and ``vmap`` views that
as (members, rows, channels, ...) for all that comes in between. The values are the same, but a view of more dimensions
has OpenVINO bring them from the order of memory that its convolutions like, channels last, into the plain one and back.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from ensemble.backends.graphs import VIEWS, Inserter, arguments, aten, is_contiguous, replace, reshape, shape_of, viewed

# What a member has for all of its rows, such as a bias, is repeated for each of them if that is so much smaller than
# the result.
_SMALLER = 16
# Members, rows, channels and a dimension of space.
_LEAST = 4


def fold(traced: fx.GraphModule, members: int) -> None:
    """Write elementwise operations on (members, rows, ...) as such on (members · rows, ...), where that is what the
    values are a view of. Views take any order of memory from then on."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if _changes_nothing(node):
                replace(node, node.all_input_nodes[0])
            elif torch.Tag.pointwise in node.target.tags:
                _elementwise(node, members)
            elif node.target in VIEWS:
                _view(node)
    traced.graph.eliminate_dead_code()
    reshape(traced)
    traced.recompile()


def _changes_nothing(node: fx.Node) -> bool:
    if node.target is aten.permute.default:
        order = arguments(node)[1]
        return [dim % len(order) for dim in order] == list(range(len(order)))
    if node.target is aten.clone.default:
        return is_contiguous(node) and is_contiguous(node.all_input_nodes[0])
    if node.target is aten.expand.default:
        return shape_of(node) is not None and shape_of(node) == shape_of(arguments(node)[0])
    return False


def _view(node: fx.Node) -> None:
    """Take the value that a view goes back to. Others stay views of what they were views of, lest a value that two of
    them flatten be brought into the plain order for each."""
    source, shape = node, shape_of(node)
    while source.target in VIEWS and shape is not None:
        source = source.all_input_nodes[0]
        if shape_of(source) == shape:
            replace(node, source)
            return


def _elementwise(node: fx.Node, members: int) -> None:
    shape = shape_of(node)
    if shape is None or len(shape) < _LEAST or shape[0] != members:
        return
    _, rows, *rest = shape
    sources = node.all_input_nodes
    write = Inserter(node)
    if not any(_is_folded(source, members, rows) for source in sources):
        _of_one_rank(write, node, len(shape))
        return
    folded = {}
    for source in sources:
        found = _folded(write, source, members, rows, rest)
        if found is None:
            return
        folded[source] = found
    args, kwargs = fx.map_arg((node.args, node.kwargs), folded.__getitem__)
    replace(node, write.view(write.call(node.target, *args, **kwargs), shape))


def _of_one_rank(write: Inserter, node: fx.Node, rank: int) -> None:
    """Write operands that lack dimensions of a result with more than four, as inputs do that all members have, with
    ones: OpenVINO would not compute the operation together with what follows."""
    for source in node.all_input_nodes if rank > 4 else ():
        shape = shape_of(source) or []
        if 1 < len(shape) < rank:
            node.replace_input_with(source, write.view(source, [1] * (rank - len(shape)) + shape))


def _is_folded(node: fx.Node, members: int, rows: int) -> bool:
    """Whether it is a view of (members · rows, ...)."""
    shape, before = shape_of(node), shape_of(viewed(node))
    return shape is not None and shape[:2] == [members, rows] and before == [members * rows, *shape[2:]]


def _folded(write: Inserter, node: fx.Node, members: int, rows: int, rest: list[int]) -> fx.Node | None:
    """An operand that goes with (members · rows, *rest) as it goes with (members, rows, *rest); None if that would take
    long."""
    shape = shape_of(node)
    if shape is None:
        return None
    if len(shape) <= len(rest):
        return node
    before, own = shape[: -len(rest)], shape[-len(rest) :]
    if prod(before) == 1:
        return write.view(node, own)
    if before != [members, rows]:
        if _SMALLER * prod(own) > prod(rest):
            return None
        node = write.laid_out(write.call(aten.expand.default, node, [members, rows, *own]))
    return write.view(node, [members * rows, *own])
