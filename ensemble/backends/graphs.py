"""Traced graphs that are rewritten, with what each node gives known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


class Inserter:
    """Puts nodes before one that is there.

    Args:
        before: a node of a graph that :func:`~ensemble.backends.tracing.trace` made.
    """

    def __init__(self, before: fx.Node) -> None:
        self._before = before

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node, with the tensor without data that it gives."""
        graph = self._before.graph
        with graph.inserting_before(self._before):
            node = graph.call_function(target, args, kwargs)
        given, named = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
        with torch.no_grad(), self._before.meta["val"].fake_mode:
            node.meta["val"] = target(*given, **named)
        return node

    def view(self, source: fx.Node, shape: list[int]) -> fx.Node:
        """A value in another shape; without a view of what is one already, or of the same shape."""
        source = viewed(source)
        return source if shape_of(source) == shape else self.call(aten.reshape.default, source, shape)

    def laid_out(self, source: fx.Node) -> fx.Node:
        """A value in memory in the order of its dimensions."""
        return self.call(aten.clone.default, source, memory_format=torch.contiguous_format)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """An operation's positional arguments; its schema says what they are."""
    return node.args


def viewed(node: fx.Node) -> fx.Node:
    """What a node is a view of, in another shape, as far as that is known; the node itself if it is none."""
    while node.target in VIEWS and shape_of(source := node.all_input_nodes[0]) is not None:
        node = source
    return node


def shape_of(node: fx.Node) -> list[int] | None:
    """Of the tensor that a node gives; None if it gives something else."""
    value = node.meta.get("val")
    return list(value.shape) if isinstance(value, Tensor) else None


def is_contiguous(node: fx.Node) -> bool:
    """Whether a node is known to give a tensor that is in memory in the order of its dimensions."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_contiguous()


def is_functional(traced: fx.GraphModule) -> bool:
    """Whether nothing in it writes into what something else reads, so that values may stand for their copies."""
    targets = [node.target for node in traced.graph.nodes]
    return not any(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable for target in targets)


def replace(node: fx.Node, new: fx.Node) -> None:
    """Use one node instead of another, which is erased."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def reshape(traced: fx.GraphModule) -> None:
    """Have views take what is in memory in any order: rewriting may leave it in another one than tracing did, as where
    what members have in common is added to their own, or where a convolution is given its channels last."""
    for target in VIEWS:
        for node in traced.graph.find_nodes(op="call_function", target=target):
            node.target = aten.reshape.default
