"""Running a graph on a batch in which each row has weights of its own, in one vectorised call.

The graph sees one row, a batch of one, and every operation is done for all rows at once: by ``torch.vmap`` of that
operation, or, where the rule that ``vmap`` has for it would fix the number of rows when the whole is exported, by one
of the rules here. What depends on no row, neither on its input nor on weights of its own, is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# The first dimension of what these take is the batch, whatever it holds.
_BATCHED_ANYWAY = {
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_group_norm", "grid_sampler_2d", "grid_sampler_3d",
    "im2col", "col2im", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
}  # fmt: skip
# An index that no table has.
_NOWHERE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A value that each row has of its own: (rows, *what the graph sees)."""

    tensor: Tensor


def run(
    graph: fx.Graph, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Run a graph on rows with weights of their own.

    Args:
        graph: an exported one, whose first dimension of each input is the batch.
        shared: weights that all rows have in common, each of the weight's shape.
        own: the others, each (rows, *shape).
        inputs: flat inputs, each (rows, ...).

    Returns:
        The flat outputs of every row as a batch of one, each (rows, *what the graph gives for one row).
    """
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        match node.op:
            case "placeholder":
                values[node] = _Rows(next(given).unsqueeze(1))
            case "get_attr":
                values[node] = _Rows(own[node.target]) if node.target in own else shared[node.target]
            case "call_function":
                args = fx.node.map_aggregate(node.args, lambda v: values[v] if isinstance(v, fx.Node) else v)
                kwargs = fx.node.map_aggregate(node.kwargs, lambda v: values[v] if isinstance(v, fx.Node) else v)
                values[node] = _call(node.target, args, kwargs)
    rows = inputs[0].shape[0]
    outputs: Any = graph.output_node().args[0]
    results = [values[node] for node in outputs]
    return [r.tensor if isinstance(r, _Rows) else r.unsqueeze(0).expand(rows, *r.shape) for r in results]


def _call(target: Any, args: Any, kwargs: Any) -> Any:
    found: list[Tensor] = []

    def note(value: Any) -> Any:
        if isinstance(value, _Rows):
            found.append(value.tensor)
        return value

    _map((args, kwargs), note)
    if not found:
        return target(*args, **kwargs)
    if target is aten.sym_size.int:
        tensor, dim = args[0].tensor, args[1]
        return tensor.shape[dim % (tensor.ndim - 1) + 1]
    if target is aten.sym_numel.default:
        return args[0].tensor[0].numel()
    if not isinstance(target, torch._ops.OpOverload):
        # Choosing one of several results; what computes sizes has no tensors.
        return target(*args, **kwargs)
    if (rule := _RULES.get(target)) and (made := rule(*args, **kwargs)) is not None:
        return made
    if target._schema.name.split("::")[1] in _BATCHED_ANYWAY and len(found) == 1 and isinstance(args[0], _Rows):
        return _mark(_split(target(args[0].tensor.flatten(0, 1), *args[1:], **kwargs)))
    return _mark(_vmapped(target, args, kwargs)(*found))


def _vmapped(target: Callable[..., Any], args: Any, kwargs: Any) -> Callable[..., Any]:
    def one(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        filled = _map((args, kwargs), lambda v: next(rest) if isinstance(v, _Rows) else v)
        return target(*filled[0], **filled[1])

    return torch.vmap(one)


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """A function of every leaf of nested tuples, lists and dicts."""
    match value:
        case tuple() | list():
            return (
                type(value)(_map(item, function) for item in value)
                if type(value) in (tuple, list)
                else tuple(_map(item, function) for item in value)
            )
        case dict():
            return {key: _map(item, function) for key, item in value.items()}
    return function(value)


def _mark(value: Any) -> Any:
    return _map(value, lambda v: _Rows(v) if isinstance(v, Tensor) else v)


def _split(value: Any) -> Any:
    return _map(value, lambda v: v.unsqueeze(1) if isinstance(v, Tensor) else v)


def _convolution(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any, extra: Any, groups: Any
) -> _Rows | None:
    """Rows' own kernels are groups of one convolution."""
    if not isinstance(x, _Rows):
        return None
    settings = (stride, padding, dilation, transposed, extra)
    rows, one, channels, *size = x.tensor.shape
    if not isinstance(weight, _Rows):
        value = aten.convolution.default(x.tensor.flatten(0, 1), weight, None, *settings, groups).unsqueeze(1)
    else:
        joined = x.tensor.transpose(0, 1).reshape(one, rows * channels, *size)
        kernels = weight.tensor.flatten(0, 1)
        value = aten.convolution.default(joined, kernels, None, *settings, rows * groups)
        outputs = kernels.shape[1] * groups if transposed else weight.tensor.shape[1]
        value = value.reshape(one, rows, outputs, *value.shape[2:]).transpose(0, 1)
    if bias is not None:
        each = bias.tensor.unsqueeze(1) if isinstance(bias, _Rows) else bias
        value = value + each.reshape(*each.shape, *[1] * len(size))
    return _Rows(value)


def _embedding(weight: Any, index: Any, *_: Any) -> _Rows | None:
    """Rows' own tables lie one below the other."""
    if not isinstance(weight, _Rows):
        return _Rows(aten.embedding.default(weight, index.tensor))
    rows, entries, _width = weight.tensor.shape
    each = index.tensor if isinstance(index, _Rows) else index.unsqueeze(0).expand(rows, *index.shape)
    first = torch.arange(0, rows * entries, entries, device=each.device)
    own = each + first.reshape(-1, *[1] * (each.ndim - 1))
    # An index beyond its own table would read another row's; beyond all of them it is refused.
    own = torch.where((each < 0) | (each >= entries), _NOWHERE, own)
    return _Rows(aten.embedding.default(weight.tensor.flatten(0, 1), own))


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, ...] | None:
    if not isinstance(x, _Rows):
        return None
    value, mean, rstd = aten.native_layer_norm.default(x.tensor, shape, None, None, eps)
    return _scaled(_Rows(value), weight, bias), _Rows(mean), _Rows(rstd)


def _group_norm(x: Any, weight: Any, bias: Any, n: Any, c: int, hw: int, groups: int, eps: float) -> Any:
    if not isinstance(x, _Rows):
        return None
    flat = x.tensor.flatten(0, 1)
    parts = aten.native_group_norm.default(flat, None, None, flat.shape[0], c, hw, groups, eps)
    value, mean, rstd = _mark(_split(parts))
    ones = [1] * (x.tensor.ndim - 3)
    return _scaled(value, _trailing(weight, ones), _trailing(bias, ones)), mean, rstd


def _batch_norm(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
    """With the statistics of what it is given: of one row, by itself (instance normalisation)."""
    if not isinstance(x, _Rows):
        return None
    over = [d for d in range(1, x.tensor.ndim) if d != 2]
    variance, mean = torch.var_mean(x.tensor, over, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    ones = [1] * (x.tensor.ndim - 3)
    value = _scaled(_Rows((x.tensor - mean) * rstd), _trailing(weight, ones), _trailing(bias, ones))
    return value, _Rows(mean.squeeze(over)), _Rows(rstd.squeeze(over))


def _scaled(value: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        value = _call(aten.mul.Tensor, (value, weight), {})
    return value if bias is None else _call(aten.add.Tensor, (value, bias), {})


def _trailing(value: Any, ones: list[int]) -> Any:
    """A vector of channels with further dimensions of size one."""
    if value is None:
        return None
    tensor = value.tensor if isinstance(value, _Rows) else value
    tensor = tensor.reshape(*tensor.shape, *ones)
    return _Rows(tensor) if isinstance(value, _Rows) else tensor


def _concatenate(parts: Any, dim: int = 0) -> _Rows:
    tensors = [part.tensor if isinstance(part, _Rows) else part for part in parts]
    rows = next(part.tensor.shape[0] for part in parts if isinstance(part, _Rows))
    whole = [
        tensor if isinstance(part, _Rows) else tensor.unsqueeze(0).expand(rows, *tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
    return _Rows(torch.cat(whole, dim + 1 if dim >= 0 else dim))


def _copy(to: Any, source: Any, non_blocking: bool = False) -> Any:
    shape = to.tensor.shape[1:] if isinstance(to, _Rows) else to.shape
    dtype = to.tensor.dtype if isinstance(to, _Rows) else to.dtype
    found = _call(aten.expand.default, (source, list(shape)), {})
    return _Rows(found.tensor.to(dtype)) if isinstance(found, _Rows) else None


def _slice_scatter(to: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> _Rows:
    rows = next(v.tensor.shape[0] for v in (to, source) if isinstance(v, _Rows))
    whole, part = (v.tensor if isinstance(v, _Rows) else v.unsqueeze(0).expand(rows, *v.shape) for v in (to, source))
    return _Rows(aten.slice_scatter.default(whole, part, dim + 1 if dim >= 0 else dim, start, end, step))


def _trilinear(one: Any, two: Any, three: Any, *dims: Any) -> _Rows:
    each = [v.tensor if isinstance(v, _Rows) else v.unsqueeze(0) for v in (one, two, three)]
    *expanded, summed = ([d + 1 for d in dim] for dim in dims[:4])
    return _Rows(aten._trilinear.default(*each, *expanded, summed))


_RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.embedding.default: _embedding,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm,
    aten.cat.default: _concatenate,
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten._trilinear.default: _trilinear,
}
