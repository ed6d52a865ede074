"""Products and convolutions with thin factors, as OpenVINO computes them fast."""

from __future__ import annotations

from math import prod

from torch import fx

from ensemble.backends.graphs import VIEWS, Inserter, arguments, aten, replace, reshape, shape_of, viewed

# Channels that a kernel for one of them computes.
_PADDED = 8


def products(traced: fx.GraphModule) -> None:
    """Products with a vector for each member as sums and outer products, which are fused with their neighbours; where
    all members have the same on their left, as inputs are, as one product with the matrix of their vectors."""
    for node in list(traced.graph.find_nodes(op="call_function", target=aten.bmm.default)):
        left, right = arguments(node)
        write = Inserter(node)
        # Integers are multiplied and summed, which is exact, whatever a product of matrices makes of them.
        floating = node.meta["val"].is_floating_point()
        if left.meta["val"].shape[2] == 1:
            new = write.call(aten.mul.Tensor, left, right)
        elif right.meta["val"].shape[2] == 1 and (common := _common(left)) is not None and floating:
            members, inner, _ = right.meta["val"].shape
            flat = write.view(common, [left.meta["val"].shape[1], inner])
            vectors = write.view(right, [members, inner])
            product = write.call(aten.mm.default, flat, write.call(aten.t.default, vectors))
            new = write.call(aten.unsqueeze.default, write.call(aten.t.default, product), 2)
        elif right.meta["val"].shape[2] == 1:
            row = write.call(aten.permute.default, right, [0, 2, 1])
            product = write.call(aten.mul.Tensor, left, row)
            new = write.call(aten.sum.dim_IntList, product, [2], True)
        else:
            continue
        # What follows may want the memory's order that the product had.
        replace(node, write.laid_out(new))
    traced.recompile()


def _common(batch: fx.Node) -> fx.Node | None:
    """What a batch of matrices repeats for each of them; None if they may differ."""
    count, node = batch.meta["val"].shape[0], batch
    while node.target in (*VIEWS, aten.expand.default):
        [source] = node.all_input_nodes
        before, after = list(source.meta["val"].shape), list(node.meta["val"].shape)
        if node.target == aten.expand.default and before != after:
            # Nothing but the first dimension is expanded, and that is the batch's.
            alone = [1, *after[1:]]
            return source if after[0] == count and before in (alone, alone[1:]) else None
        node = source
    return None


def convolutions(traced: fx.GraphModule) -> None:
    """Convolutions to one channel, with a kernel for each member, as products: of all channels of a point of space with
    what the member's kernel has for each of its taps, and then the sum of these, each from where its tap looks.

    ``vmap`` makes a grouped convolution of them, for which kernels compute eight channels or sixteen instead of one.
    Where numbers are infinite, the sum has NaN in places where the convolution has infinity.
    """
    for node in list(traced.graph.find_nodes(op="call_function", target=aten.convolution.default)):
        _convolution(node)
    traced.graph.eliminate_dead_code()
    reshape(traced)
    traced.recompile()


def _convolution(node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, members = arguments(node)
    outputs, channels, *kernel = weight.meta["val"].shape
    taps = prod(kernel)
    # For each tap the product takes all channels of all points, those that a stride passes over too, and the sum takes
    # all taps in a kernel for one channel. One tap needs no sum, and is left to the grouped kernel.
    worth = taps > 1 and channels * prod(stride) + _PADDED * taps <= _PADDED * channels
    if transposed or bias is not None or members == 1 or outputs != members or not worth:
        return
    source, back = _members_first(x), _turned_back(node)
    if source is None or back is None:
        return
    first, rows, third, *space = shape_of(source) or []
    if [first, third] != [members, channels]:
        return
    last, back_again = _channels_last(node, source)
    write = Inserter(node)
    points = write.view(last, [members, rows * prod(space), channels])
    each = write.call(aten.bmm.default, points, write.view(weight, [members, channels, taps]))
    each = write.view(each, [members * rows, *space, taps])
    each = write.call(aten.permute.default, each, back_again)
    value = weight.meta["val"]
    picks = write.call(aten.eye.default, taps, dtype=value.dtype, device=value.device)
    picks = write.view(picks, [1, taps, *kernel])
    summed = write.call(
        aten.convolution.default, each, picks, None, stride, padding, dilation, False, output_padding, 1
    )
    replace(back, write.view(summed, shape_of(back) or []))


def _swap(dimensions: int) -> list[int]:
    return [1, 0, *range(2, dimensions)]


def _members_first(x: fx.Node) -> fx.Node | None:
    """What ``vmap`` turned into (rows, members · channels, ...): (members, rows, channels, ...); None if that is not
    how it came about."""
    turned = viewed(x)
    if turned.target is aten.clone.default:
        turned = turned.all_input_nodes[0]
    if turned.target is not aten.permute.default:
        return None
    source, order = arguments(turned)
    shape = shape_of(source) or []
    if len(shape) < 3 or list(order) != _swap(len(shape)):
        return None
    members, rows, *rest = shape
    return source if shape_of(x) == [rows, members * rest[0], *rest[1:]] else None


def _turned_back(node: fx.Node) -> fx.Node | None:
    """The one use of a convolution in which members come first again, (members, rows, 1, ...); None if there are
    others."""
    rows, members, *space = shape_of(node) or [0, 0]
    used = node
    for targets in (VIEWS, (aten.permute.default,)):
        users = list(used.users)
        if len(users) != 1 or users[0].target not in targets:
            return None
        used = users[0]
    swapped = list(arguments(used)[1]) == _swap(3 + len(space))
    return used if swapped and shape_of(used) == [members, rows, 1, *space] else None


def _channels_last(node: fx.Node, source: fx.Node) -> tuple[fx.Node, list[int]]:
    """(members · rows, ..., channels) of (members, rows, channels, ...), for a convolution, and the permutation from
    that to (members · rows, channels, ...). What all share convolves the same, and takes it from there too."""
    members, rows, channels, *space = shape_of(source) or []
    whole = [members * rows, channels, *space]
    forth, back_again = [0, *range(2, 2 + len(space)), 1], [0, 1 + len(space), *range(1, 1 + len(space))]
    others = _convolved(viewed(source), whole)
    write = Inserter(min([node, *others]))
    last = write.laid_out(write.call(aten.permute.default, write.view(source, whole), forth))
    for other in others:
        other.update_arg(0, Inserter(other).call(aten.permute.default, last, back_again))
    return last, back_again


def _convolved(source: fx.Node, shape: list[int]) -> list[fx.Node]:
    """The convolutions of a value in this shape."""
    found, todo = [], [source]
    for node in todo:
        for user in node.users:
            if user.target in VIEWS or user.target is aten.clone.default:
                todo.append(user)
            elif user.target is aten.convolution.default and user.args[0] is node and shape_of(node) == shape:
                found.append(user)
    return found
