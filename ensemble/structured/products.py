"""Products with a factored weight: on the shared tensor, and on the factors.

Each takes the writer and the operation's arguments in order, among them the weight as :class:`Factored`, and gives what
the operation gives.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ensemble.structured.factored import Along, Factored, Unfactorable, Writer, aten
from ensemble.structured.views import permute, transpose

# How ``embedding_bag`` writes what it does with the rows.
_SUM, _MEAN = 0, 1
_OTHER: dict[Along, Along] = {"left": "right", "right": "left"}


def linear(write: Writer, x: Any, w: Any, bias: Any = None) -> fx.Node:
    """x Wᵀ + bias."""
    _needs(w, 2, x, bias)
    inner, outer = _sides(write, transpose(write, w))
    return write.plus(_product(write, x, w, inner, outer, aten.linear.default), bias)


def mm(write: Writer, x: Any, w: Any) -> fx.Node:
    """x W, or W x."""
    if isinstance(x, Factored):
        _needs(x, 2, w)
        # (xᵀ Wᵀ)ᵀ, of which the transposed input often is what the graph had before it.
        turned = w.target is aten.permute.default and len(w.args) == 2 and list(w.args[1]) == [1, 0]
        swapped = w.args[0] if turned else write.call(aten.permute.default, w, [1, 0])
        return write.call(aten.permute.default, linear(write, swapped, x), [1, 0])
    _needs(w, 2, x)
    return _product(write, x, w, *_sides(write, w), aten.mm.default)


def matmul(write: Writer, x: Any, w: Any) -> fx.Node:
    """x W, where x may have more dimensions."""
    _needs(w, 2, x)
    return linear(write, x, transpose(write, w))


def addmm(write: Writer, bias: Any, x: Any, w: Any, beta: Any, alpha: Any) -> fx.Node:
    """bias + x W."""
    if beta != 1 or alpha != 1 or isinstance(bias, Factored):
        raise Unfactorable
    return write.plus(mm(write, x, w), bias)


def bmm(write: Writer, x: Any, w: Any) -> fx.Node:
    """Products of a batch of matrices, among them those that ``einsum`` makes: with one matrix for all of the batch,
    or, where it is scaled, with one for each."""
    if isinstance(x, Factored):
        _needs(x, 3, w)
        swapped = bmm(write, write.call(aten.permute.default, w, [0, 2, 1]), permute(write, x, [0, 2, 1]))
        return write.call(aten.permute.default, swapped, [0, 2, 1])
    _needs(w, 3, x)
    if w.along[0] == "nothing":
        matrix = dataclasses.replace(
            w, base=write.call(aten.squeeze.dim, w.base, 0), along=w.along[1:], size=w.size[1:]
        )
        return linear(write, x, transpose(write, matrix))
    if w.form == "additive":
        raise Unfactorable(" with a matrix for each of the batch")
    for side in _OTHER:
        # Of size one in a view that has lost it, it is a number.
        if not w.owned(side):
            x = write.call(aten.mul.Tensor, x, write.call(aten.reshape.default, w.factor(side), [1, 1, 1]))
    # Of the batch, and along the input side.
    x = _scaled(write, x, w, 0, 0)
    x = _scaled(write, x, w, 1, 2)
    return _scaled(write, write.call(aten.bmm.default, x, w.base), w, 2, 2)


def _scaled(write: Writer, value: fx.Node, w: Factored, dim: int, at: int) -> fx.Node:
    """A batch of matrices times the factor along a weight's dimension, if there is one, along dimension ``at``."""
    if w.along[dim] not in _OTHER:
        return value
    shape = [1, 1, 1]
    shape[at] = w.size[dim]
    factor = write.call(aten.reshape.default, w.factor(w.along[dim]), shape)
    return write.call(aten.mul.Tensor, value, factor)


def embedding(write: Writer, w: Any, index: Any, *_: Any) -> fx.Node:
    """Rows of a table."""
    return _rows(write, w, index, lambda table: write.call(aten.embedding.default, table, index))


def indexed(write: Writer, w: Any, indices: Sequence[Any]) -> fx.Node:
    """Rows of a table, as ``w[index]``."""
    if not isinstance(w, Factored) or any(index is not None for index in indices[1:]) or indices[0] is None:
        raise Unfactorable
    return _rows(write, w, indices[0], lambda table: write.call(aten.index.Tensor, table, [indices[0]]))


def selected(write: Writer, w: Any, dim: int, index: Any) -> fx.Node:
    """Rows of a table, in one dimension."""
    if not isinstance(w, Factored) or dim % w.ndim != 0:
        raise Unfactorable
    return _rows(write, w, index, lambda table: write.call(aten.index_select.default, table, 0, index))


def embedding_bag(
    write: Writer,
    w: Any,
    index: Any,
    offsets: Any,
    _gradients: bool,
    mode: int,
    sparse: bool,
    weights: Any,
    *settings: Any,
) -> list[fx.Node]:
    """Sums or means of rows of a table; of what the operation gives besides nothing."""
    _needs(w, 2, index, offsets, weights)
    if mode not in (_SUM, _MEAN):
        raise Unfactorable(" for a maximum, which is no product")
    own, along = _sides(write, w)

    def bags(table: fx.Node, scales: Any) -> fx.Node:
        whole = write.call(aten._embedding_bag.default, table, index, offsets, False, mode, sparse, scales, *settings)
        return write.call(operator.getitem, whole, 0)

    if w.form == "multiplicative":
        if mode != _SUM:
            raise Unfactorable(" for a mean, which has no form on factors that scale")
        scales = write.call(aten.index_select.default, write.vector(own), 0, index)
        scales = scales if weights is None else write.call(aten.mul.Tensor, scales, weights)
        return [write.call(aten.mul.Tensor, bags(w.base, scales), write.vector(along))]
    thin = write.call(aten.linear.default, bags(own, weights), along)
    return [write.call(aten.add.Tensor, bags(w.base, weights), thin)]


def _rows(write: Writer, w: Any, index: Any, read: Callable[[fx.Node], fx.Node]) -> fx.Node:
    _needs(w, 2, index)
    own, along = _sides(write, w)
    if w.form == "multiplicative":
        scale = write.call(aten.mul.Tensor, read(own), write.vector(along))
        return write.call(aten.mul.Tensor, read(w.base), scale)
    return write.call(aten.add.Tensor, read(w.base), write.call(aten.linear.default, read(own), along))


def _needs(w: Any, ndim: int, *others: Any) -> None:
    """That this is a weight of so many dimensions, and nothing else is one."""
    if not isinstance(w, Factored) or w.ndim != ndim or any(isinstance(other, Factored) for other in others):
        raise Unfactorable


def _sides(write: Writer, w: Factored) -> tuple[fx.Node, fx.Node]:
    """The factors of a matrix, (rows, rank) and (columns, rank)."""
    first, second = w.along
    # A dimension of size one, of which views may have lost whose it was, is the other factor's.
    if first in _OTHER:
        side, other = first, _OTHER[first]
    elif second in _OTHER:
        side, other = _OTHER[second], second
    else:
        side, other = "left", "right"
    if w.owned(side) not in ([0], []) or w.owned(other) not in ([1], []) or w.size[0] == 0 or w.size[1] == 0:
        raise Unfactorable(", where it is no matrix whose rows and columns have a factor each")
    return _thin(write, w, side, 0), _thin(write, w, other, 1)


def _thin(write: Writer, w: Factored, side: Along, dim: int) -> fx.Node:
    if w.owned(side):
        return w.factor(side)
    if w.size[dim] != 1 or w.along[dim] != "nothing":
        raise Unfactorable(", where it is no matrix whose rows and columns have a factor each")
    return write.call(aten.unsqueeze.default, w.factor(side), 0)


def _product(write: Writer, x: fx.Node, w: Factored, inner: fx.Node, outer: fx.Node, target: Any) -> fx.Node:
    """The operation ``target`` of x and a matrix.

    Args:
        inner, outer: the factors of the matrix's input side and its output side.
    """
    x = _in_order(write, x)
    if w.form == "multiplicative":
        scaled = write.call(aten.mul.Tensor, x, write.vector(inner))
        return write.call(aten.mul.Tensor, write.call(target, scaled, w.base), write.vector(outer))
    own = write.call(aten.linear.default, write.call(aten.matmul.default, x, inner), outer)
    return write.call(aten.add.Tensor, write.call(target, x, w.base), own)


def _in_order(write: Writer, x: fx.Node) -> fx.Node:
    """A value whose rows lie one after the other: a product with more than two dimensions is one large product then,
    and one for each row otherwise, for which the shared matrix would be repeated."""
    if x.target not in (aten.permute.default, aten.transpose.int):
        return x
    return write.call(aten.clone.default, x, memory_format=torch.contiguous_format)


PRODUCTS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: linear,
    aten.mm.default: mm,
    aten.matmul.default: matmul,
    aten.addmm.default: addmm,
    aten.bmm.default: bmm,
    aten.embedding.default: embedding,
    aten.index.Tensor: indexed,
    aten.index_select.default: selected,
    aten._embedding_bag.default: embedding_bag,
}
