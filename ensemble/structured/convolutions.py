"""Convolutions with a factored kernel."""

from __future__ import annotations

from typing import Any

from torch import fx

from ensemble.structured.factored import Factored, Unfactorable, Writer, aten


def convolution(write: Writer, x: Any, w: Any, bias: Any = None, *settings: Any) -> fx.Node:
    """A convolution, or a transposed one, of any number of dimensions."""
    if not isinstance(w, Factored) or isinstance(x, Factored) or isinstance(bias, Factored) or not _is_kernel(w):
        raise Unfactorable(", where it is no kernel whose first dimension has a factor of its own")
    make = _scaled if w.form == "multiplicative" else _transposed if settings[3] else _thin
    value = make(write, x, w, *settings)
    return value if bias is None else write.plus(value, write.call(aten.view.default, bias, _channels(w)))


def _is_kernel(w: Factored) -> bool:
    """Whether the factors are along the dimensions where those of a weight as the model has it are."""
    rest = ("right", "right") if w.form == "additive" else ("right", "base")
    expected = ("left", rest[0], *[rest[1]] * (w.ndim - 2))
    return all(
        own == side or (own == "nothing" and size == 1)
        for own, side, size in zip(w.along, expected, w.size, strict=True)
    )


def _channels(w: Factored) -> list[int]:
    return [-1, *[1] * (w.ndim - 2)]


def _scaled(write: Writer, x: fx.Node, w: Factored, *settings: Any) -> fx.Node:
    *_, transposed, _, groups = settings
    # A transposed convolution's weight is (in, out / groups, ...): its factors change sides.
    inner, outer = (w.left, w.right) if transposed else (w.right, w.left)

    def channelwise(factor: fx.Node, whole: bool) -> fx.Node:
        vector = write.vector(factor)
        if not whole and groups > 1:
            vector = write.call(aten.repeat.default, vector, [groups])
        return write.call(aten.reshape.default, vector, _channels(w))

    scaled = write.call(aten.mul.Tensor, x, channelwise(inner, transposed))
    value = write.call(aten.convolution.default, scaled, w.base, None, *settings)
    return write.call(aten.mul.Tensor, value, channelwise(outer, not transposed))


def _thin(write: Writer, x: fx.Node, w: Factored, *settings: Any) -> fx.Node:
    """Two convolutions: to ``rank`` channels a group with the right factor, and from those with the left one."""
    groups = settings[-1]
    outputs, _, *kernel = w.size
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    shared = write.call(aten.convolution.default, x, w.base, None, *settings)
    thin = write.call(aten.convolution.default, x, _right(write, w, groups), None, *settings)
    if groups == 1 and w.rank == 1:
        # One channel times a vector: an outer product, which needs no convolution.
        own = write.call(aten.mul.Tensor, thin, write.call(aten.reshape.default, w.left, [outputs, *ones]))
    else:
        left = write.call(aten.reshape.default, w.left, [outputs, w.rank, *ones])
        own = write.call(aten.convolution.default, thin, left, None, ones, zeros, ones, False, zeros, groups)
    return write.call(aten.add.Tensor, shared, own)


def _transposed(write: Writer, x: fx.Node, w: Factored, *settings: Any) -> fx.Node:
    """Two convolutions: to ``rank`` channels a group with the left factor, and from those, transposed, with the right
    one."""
    groups = settings[-1]
    inputs, _, *kernel = w.size
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    shared = write.call(aten.convolution.default, x, w.base, None, *settings)
    left = write.call(aten.reshape.default, w.left, [groups, inputs // groups, w.rank])
    left = write.call(aten.clone.default, write.call(aten.permute.default, left, [0, 2, 1]))
    left = write.call(aten.reshape.default, left, [groups * w.rank, inputs // groups, *ones])
    thin = write.call(aten.convolution.default, x, left, None, ones, zeros, ones, False, zeros, groups)
    own = write.call(aten.convolution.default, thin, _right(write, w, groups), None, *settings)
    return write.call(aten.add.Tensor, shared, own)


def _right(write: Writer, w: Factored, groups: int) -> fx.Node:
    """The right factor as a kernel of ``rank`` channels a group: (groups · rank, second dimension, *kernel)."""
    _, second, *kernel = w.size
    right = write.call(aten.reshape.default, w.right, [-1, w.rank])
    right = write.call(aten.clone.default, write.call(aten.permute.default, right, [1, 0]))
    right = write.call(aten.reshape.default, right, [w.rank, second, *kernel])
    return right if groups == 1 else write.call(aten.repeat.default, right, [groups, 1, *[1] * len(kernel)])
