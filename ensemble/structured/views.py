"""Operations on a weight before it is used that leave its factors apart: views, copies, multiples.

Each takes the writer and the operation's arguments in order, the weight among them as :class:`Factored`, and gives a
weight. The same is done to the shared tensor, and to each factor as far as it varies along what is changed.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ensemble.structured.factored import Along, Factored, Unfactorable, Writer, aten

_SIDES: tuple[Along, Along] = ("left", "right")


def same(_: Writer, w: Factored, *__: Any) -> Factored:
    """A copy, or another order in memory."""
    return w


def permute(write: Writer, w: Factored, order: Sequence[int]) -> Factored:
    """Dimensions in another order."""
    order = [dim % w.ndim for dim in order]
    factors: dict[Along, fx.Node] = {}
    for side in _SIDES:
        before = w.owned(side)
        after = [before.index(dim) for dim in order if dim in before]
        factors[side] = w.factor(side)
        if after != sorted(after):
            factors[side] = write.call(aten.permute.default, w.factor(side), [*after, len(after)])
    base = write.call(aten.permute.default, w.base, order)
    return w.viewed(base, (w.along[dim] for dim in order), (w.size[dim] for dim in order), factors)


def transpose(write: Writer, w: Factored, one: int = 0, other: int = 1) -> Factored:
    """Two dimensions exchanged."""
    order = list(range(w.ndim))
    order[one], order[other] = order[other], order[one]
    return permute(write, w, order)


def unsqueeze(write: Writer, w: Factored, dim: int) -> Factored:
    """A dimension more."""
    at = dim % (w.ndim + 1)
    base = write.call(aten.unsqueeze.default, w.base, at)
    return w.viewed(base, (*w.along[:at], "nothing", *w.along[at:]), (*w.size[:at], 1, *w.size[at:]), {})


def squeeze(write: Writer, w: Factored, dims: int | Sequence[int]) -> Factored:
    """Without these dimensions, as far as they are of size one."""
    chosen = {dim % w.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    for dim in sorted(chosen, reverse=True):
        if not isinstance(w.size[dim], int):
            raise Unfactorable
        if w.size[dim] == 1:
            w = _without(write, w, dim)
    return w


def _without(write: Writer, w: Factored, dim: int) -> Factored:
    side = w.along[dim]
    factors: dict[Along, fx.Node] = {}
    if side in _SIDES:
        factors[side] = write.call(aten.squeeze.dim, w.factor(side), w.owned(side).index(dim))
    base = write.call(aten.squeeze.dim, w.base, dim)
    return w.viewed(base, (*w.along[:dim], *w.along[dim + 1 :]), (*w.size[:dim], *w.size[dim + 1 :]), factors)


def expand(write: Writer, w: Factored, sizes: Sequence[Any], *_: Any) -> Factored:
    """Repeated along dimensions of size one; the shared tensor is not."""
    for _new in range(len(sizes) - w.ndim):
        w = unsqueeze(write, w, 0)
    size = list(w.size)
    for dim, wanted in enumerate(sizes):
        if wanted == -1 or wanted == size[dim]:
            continue
        if size[dim] != 1 or w.along[dim] != "nothing":
            raise Unfactorable
        size[dim] = wanted
    return dataclasses.replace(w, size=tuple(size))


def part(write: Writer, w: Factored, dim: int, start: int | None, end: int | None, step: int) -> Factored:
    """A slice along one dimension."""
    dim %= w.ndim
    if not isinstance(w.size[dim], int) or w.along[dim] == "nothing":
        raise Unfactorable
    side = w.along[dim]
    factors: dict[Along, fx.Node] = {}
    if side in _SIDES:
        factors[side] = write.call(aten.slice.Tensor, w.factor(side), w.owned(side).index(dim), start, end, step)
    count = len(range(w.size[dim])[slice(start, end, step)])
    base = write.call(aten.slice.Tensor, w.base, dim, start, end, step)
    return w.viewed(base, w.along, (*w.size[:dim], count, *w.size[dim + 1 :]), factors)


def split(write: Writer, w: Factored, sizes: Sequence[int], dim: int) -> list[Factored]:
    """Parts one after the other, as of packed projections: queries, keys and values of attention."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [part(write, w, dim, end - size, end, 1) for size, end in zip(sizes, ends, strict=True)]


def chosen(_: Writer, parts: Sequence[Any], index: int) -> Any:
    """One of several results."""
    if not 0 <= index < len(parts):
        raise Unfactorable
    return parts[index]


def reshape(write: Writer, w: Factored, shape: Sequence[Any]) -> Factored:
    """Dimensions joined or divided, as long as no one comes from both factors."""
    if not all(isinstance(size, int) for size in (*w.size, *shape)) or math.prod(w.size) == 0:
        raise Unfactorable(", where its size depends on the batch")
    sizes = [size if size != -1 else -math.prod(w.size) // math.prod(shape) for size in shape]
    along = _regrouped(w, sizes)
    factors: dict[Along, fx.Node] = {}
    for side in _SIDES:
        after = [size for size, own in zip(sizes, along, strict=True) if own == side]
        factors[side] = w.factor(side)
        if after != [w.size[dim] for dim in w.owned(side)]:
            factors[side] = write.call(aten.reshape.default, w.factor(side), [*after, w.rank])
    base = write.call(aten.reshape.default, w.base, sizes)
    return w.viewed(base, along, sizes, factors)


def _regrouped(w: Factored, sizes: Sequence[int]) -> list[Along]:
    """What varies along the dimensions of a weight that is given these sizes."""
    along: list[Along] = ["nothing"] * len(sizes)
    before = [(size, own) for size, own in zip(w.size, w.along, strict=True) if size != 1]
    after = [dim for dim, size in enumerate(sizes) if size != 1]
    while before:
        (had, own), dim = before.pop(0), after.pop(0)
        group, made = [dim], sizes[dim]
        owners = {own}
        # The smallest groups of dimensions whose products agree are each other's.
        while had != made:
            if had < made:
                size, own = before.pop(0)
                had, owners = had * size, owners | {own}
            else:
                group.append(after.pop(0))
                made *= sizes[group[-1]]
        if len(owners) > 1:
            raise Unfactorable(", which joins dimensions of different factors")
        if owners == {"nothing"}:
            raise Unfactorable(", which joins the copies of a repeated weight")
        for dim in group:
            along[dim] = own
    return along


def multiple(write: Writer, target: Any, w: Factored, number: Any) -> Factored:
    """A weight times a number, or divided by one."""
    if not isinstance(w, Factored) or not isinstance(number, int | float):
        raise Unfactorable
    left = write.call(target, w.left, number) if w.form == "additive" else w.left
    return dataclasses.replace(w, base=write.call(target, w.base, number), left=left)


def times(write: Writer, w: Factored, number: Any) -> Factored:
    """A weight times a number."""
    return multiple(write, aten.mul.Tensor, w, number)


def divided(write: Writer, w: Factored, number: Any) -> Factored:
    """A weight divided by a number."""
    return multiple(write, aten.div.Tensor, w, number)


def negative(write: Writer, w: Factored) -> Factored:
    """A weight with the other sign."""
    return multiple(write, aten.mul.Tensor, w, -1)


def cast(write: Writer, w: Factored, dtype: torch.dtype | None, _layout: Any, device: Any, *_: Any) -> Factored:
    """A weight in another floating-point type."""
    if dtype is None or not dtype.is_floating_point:
        raise Unfactorable
    options = {"dtype": dtype} if device is None else {"dtype": dtype, "device": device}
    base, left, right = (write.call(aten._to_copy.default, value, **options) for value in (w.base, w.left, w.right))
    return dataclasses.replace(w, base=base, left=left, right=right)


VIEWS: dict[Any, Callable[..., Any]] = {
    aten.clone.default: same,
    aten.alias.default: same,
    aten.detach.default: same,
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.t.default: transpose,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.dim: squeeze,
    aten.squeeze.dims: squeeze,
    aten.expand.default: expand,
    aten.slice.Tensor: part,
    aten.split_with_sizes.default: split,
    operator.getitem: chosen,
    aten.reshape.default: reshape,
    aten.view.default: reshape,
    aten.mul.Tensor: times,
    aten.mul.Scalar: times,
    aten.div.Tensor: divided,
    aten.div.Scalar: divided,
    aten.neg.default: negative,
    aten._to_copy.default: cast,
}
