"""An exported graph as plain JSON, and the module that runs it.

PyTorch's own archive (.pt2) is not safe to open when it comes from outside: besides the pickles that it may hold, its
reader looks operators up by attribute access from ``torch`` down and hands symbolic shapes to ``sympy.sympify``,
which evaluates Python. So a graph is written here as a list of operations over named values, and read back through an
allow-list of operations. No text of a file becomes part of a program, names included: PyTorch generates Python source
from graphs. The format is also independent of the version of that archive.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ensemble.errors import ArtifactError, ModelError
from ensemble.program.operations import casts, creates, operation, operation_name

# The modes that operators take as text: rounding, padding, gelu, reductions, meshgrid.
_WORDS = {"none", "tanh", "floor", "trunc", "ij", "xy", "constant", "reflect", "replicate", "circular",
          "sum", "prod", "mean", "amax", "amin", "left", "right", "linear", "nearest"}  # fmt: skip
_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def to_json(graph: fx.Graph) -> dict[str, Any]:
    """Write a graph of get_attr, placeholder, call_function and output nodes.

    Raises:
        ModelError: an operation or argument that cannot be written.
    """
    nodes: list[dict[str, Any]] = []
    outputs: list[Any] = []
    # Numbered, so that a graph is written alike however its nodes were called.
    names = {node: f"v{number}" for number, node in enumerate(graph.nodes)}
    for node, name in names.items():
        match node.op:
            case "placeholder":
                nodes.append({"name": name, "input": True})
            case "get_attr":
                nodes.append({"name": name, "weight": node.target})
            case "output":
                outputs = [_write(value, names) for value in node.args[0]]
            case _:
                nodes.append({
                    "name": name,
                    "op": operation_name(node.target),
                    "args": [_write(value, names) for value in node.args],
                    "kwargs": {key: _write(value, names) for key, value in node.kwargs.items()},
                })  # fmt: skip
    return {"nodes": nodes, "outputs": outputs}


def _write(value: Any, names: Mapping[fx.Node, str]) -> Any:
    match value:
        case fx.Node():
            return {"node": names[value]}
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(value)}
        case str() if value in _WORDS:
            return {"word": value}
        case torch.device():
            return {"device": None}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.layout():
            return {"layout": str(value).removeprefix("torch.")}
        case torch.memory_format():
            return {"memory_format": str(value).removeprefix("torch.")}
        case list() | tuple():
            return [_write(item, names) for item in value]
    raise ModelError(f"An operation's argument cannot be saved: {type(value).__name__} {str(value)[:60]}.")


def from_json(data: Any, device: torch.device) -> fx.Graph:
    """Read a graph back; operations that name a device get ``device``.

    Raises:
        ArtifactError: anything that :func:`to_json` would not have written.
    """
    graph = fx.Graph()
    values: dict[str, fx.Node] = {}
    for number, entry in enumerate(_field(data, "nodes", list)):
        name = _field(entry, "name", str)
        if name in values:
            raise ArtifactError(f"graph: node {number} repeats a name.")
        if "input" in entry:
            values[name] = graph.placeholder(f"input_{number}")
        elif "weight" in entry:
            values[name] = graph.create_node("get_attr", _field(entry, "weight", str), name=f"weight_{number}")
        else:
            target = operation(entry.get("op"))
            args = tuple(_read(value, values, device) for value in _field(entry, "args", list))
            kwargs = _field(entry, "kwargs", dict)
            if isinstance(target, torch._ops.OpOverload):
                parameters = {argument.name for argument in target._schema.arguments}
                if not parameters.issuperset(kwargs) or len(args) + len(kwargs) > len(parameters):
                    raise ArtifactError(f"graph: node {number} has other arguments than {entry['op']} takes.")
            elif kwargs or not _arithmetic(target, args):
                raise ArtifactError(f"graph: node {number} calls Python arithmetic with something else than numbers.")
            read = {key: _read(value, values, device) for key, value in kwargs.items()}
            values[name] = graph.call_function(target, args, read)
    outputs = tuple(_read(value, values, device) for value in _field(data, "outputs", list))
    if not outputs or not all(isinstance(output, fx.Node) for output in outputs):
        raise ArtifactError("graph: every output must be a node.")
    graph.output(outputs)
    return graph


def _arithmetic(target: Callable[..., Any], args: Sequence[Any]) -> bool:
    if target is operator.getitem:
        return len(args) == 2 and isinstance(args[0], fx.Node) and isinstance(args[1], int)
    return len(args) in (1, 2) and all(isinstance(arg, int | float | fx.Node) for arg in args)


def _read(value: Any, values: dict[str, fx.Node], device: torch.device, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, list) and depth < 8:
        return [_read(item, values, device, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "node" and isinstance(content, str) and content in values:
            return values[content]
        if kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if kind == "word" and isinstance(content, str) and content in _WORDS:
            return content
        if kind == "device" and content is None:
            return device
        if kind in _NAMED and isinstance(content, str) and content.isidentifier():
            found = vars(torch).get(content)
            if isinstance(found, _NAMED[kind]):
                return found
    raise ArtifactError(f"graph: unreadable argument {str(value)[:80]!r}.")


def _field(entry: Any, key: str, kind: type) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ArtifactError(f"graph: {key!r} is missing or not a {kind.__name__}.")
    return value


def places(graph: fx.Graph) -> dict[str, str]:
    """Where the :func:`skeleton` of a graph keeps each weight, by the weight's name.

    Names of weights are free text, and some are names that modules use themselves ("graph", "code").
    """
    return {name: f"weight_{number}" for number, name in enumerate(used_weights(graph))}


def skeleton(graph: fx.Graph, weights: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The module that runs a graph, its weights without storage: ``functional_call`` puts real ones in.

    Args:
        graph: as :func:`from_json` gives it; left as it is.
        weights: a tensor of the right shape and dtype for each get_attr node.
    """
    root = nn.Module()
    where = places(graph)
    for name, place in where.items():
        root.register_buffer(place, torch.empty_like(weights[name], device="meta"))
    copy = _copied(graph)
    for node in copy.nodes:
        if node.op == "get_attr":
            node.target = where[node.target]
    return fx.GraphModule(root, copy)


def _copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def retarget(
    graph: fx.Graph,
    device: torch.device,
    dtype: tuple[torch.dtype, torch.dtype] | None = None,
    integral: Collection[str] = (),
) -> fx.Graph:
    """The same graph for another device, and for weights of another dtype.

    Args:
        graph: left as it is.
        device: replaces every device that the graph names.
        dtype: (old, new): tensors that the graph makes as old from nothing, such as a first hidden state, or from
            integers, such as a mask, become new. Other casts stay, since a model that computes something in float32
            on purpose should go on doing so.
        integral: names of the nodes whose values are not floating point.
    """
    copy = _copied(graph)

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for old, node in zip(graph.nodes, copy.nodes, strict=True):
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
            source = str(old.args[0]) if old.args else ""
            from_nothing = creates(node.target) or (casts(node.target) and source in integral)
            if dtype and from_nothing and node.kwargs.get("dtype") == dtype[0]:
                node.kwargs = {**node.kwargs, "dtype": dtype[1]}
    return copy


def readable_sizes(graph: fx.Graph) -> fx.Graph:
    """The same graph, to be run: sizes are read from tensors by Python, as ``vmap`` can where a tensor has dimensions
    that the graph does not see. It cannot be written any more."""
    copy = _copied(graph)
    for node in copy.nodes:
        if node.op == "call_function":
            node.target = _SIZES.get(node.target, node.target)
    return copy


def _size(tensor: torch.Tensor, dim: int) -> int:
    return tensor.size(dim)


def _stride(tensor: torch.Tensor, dim: int) -> int:
    return tensor.stride(dim)


def _numel(tensor: torch.Tensor) -> int:
    return tensor.numel()


_SIZES: dict[Any, Callable[..., int]] = {
    torch.ops.aten.sym_size.int: _size,
    torch.ops.aten.sym_stride.int: _stride,
    torch.ops.aten.sym_numel.default: _numel,
}


def used_weights(graph: fx.Graph) -> Iterable[str]:
    """Names of the weights that a graph reads, in order, each once."""
    return dict.fromkeys(node.target for node in graph.nodes if node.op == "get_attr")
