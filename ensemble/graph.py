"""An exported graph as plain JSON, and which operations it may hold.

PyTorch's own archive (.pt2) is not safe to open when it comes from outside: besides the pickles that it may hold, its
reader looks operators up by attribute access from ``torch`` down and hands symbolic shapes to ``sympy.sympify``,
which evaluates Python. So a graph is written here as a list of operations over named values, and read back through an
allow-list: functional, deterministic ATen operators, integer arithmetic for sizes, and nothing else. It is also
independent of the version of that archive.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ensemble.errors import ArtifactError, ModelError

# Sizes are computed with these; their operands may be sizes and numbers only.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "eq", "ne", "lt", "le", "gt", "ge")
} | {"torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_not": torch.sym_not,
     "torch.sym_float": torch.sym_float, "torch.sym_int": torch.sym_int}  # fmt: skip
_GETITEM = "operator.getitem"
# Read or write files, or have an effect beyond their result.
_FORBIDDEN = {"from_file", "save", "warn", "format", "_local_scalar_dense", "item", "get_gradients"}
# The modes that operators take as text: rounding, padding, gelu, reductions, meshgrid.
_WORDS = {"none", "tanh", "floor", "trunc", "ij", "xy", "constant", "reflect", "replicate", "circular",
          "sum", "prod", "mean", "amax", "amin", "left", "right", "linear", "nearest"}  # fmt: skip
_ATEN = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_CREATE = {getattr(torch.ops.aten, name) for name in ("full", "zeros", "ones", "empty", "eye", "scalar_tensor")}
# Checks that export writes between the operations; the signature is checked before a graph runs.
CHECKS = {"_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range",
          "sym_constrain_range_for_size"}  # fmt: skip


def operation_name(target: object) -> str:
    """How an operation is written: ``aten.addmm.default``, ``operator.mul``.

    Raises:
        ModelError: it is not on the allow-list; the text says what it is.
    """
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if reason := _refusal(target):
            raise ModelError(f"The model uses the operation {name}, {reason}.")
        return name
    for name, function in [*_ARITHMETIC.items(), (_GETITEM, operator.getitem)]:
        if target is function:
            return name
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise ModelError(
            f"The model uses control flow that depends on data ({target}), which members cannot share in one call. "
            "Replace it by torch.where, or use the library with live=True."
        )
    raise ModelError(f"The model uses {getattr(target, '__name__', target)}, which cannot be saved in a graph.")


def _refusal(op: torch._ops.OpOverload) -> str | None:
    if op.namespace != "aten":
        return "a custom operator; only PyTorch's own (aten) can be saved"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "which draws random numbers; a member must give the same answer each time (is the model in eval mode?)"
    if torch.Tag.data_dependent_output in op.tags:
        return "which turns tensor values into Python numbers; members cannot share that in one call"
    if op._schema.is_mutable or op._overloadpacket.__name__ in _FORBIDDEN:
        return "which has an effect beyond its result"
    return None


def _operation(name: object) -> Callable[..., Any]:
    if not isinstance(name, str):
        raise ArtifactError("graph: an operation's name must be text.")
    if name == _GETITEM:
        return operator.getitem
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    if match := _ATEN.fullmatch(name):
        packet = getattr(torch.ops.aten, match[1], None)
        # vars of the packet would miss overloads that were not used yet; only what is an overload counts.
        overload = getattr(packet, match[2], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
        if isinstance(overload, torch._ops.OpOverload):
            if reason := _refusal(overload):
                raise ArtifactError(f"graph: refused the operation {name}, {reason}.")
            return overload
    raise ArtifactError(f"graph: unknown or refused operation {name[:80]!r}.")


def to_json(graph: fx.Graph) -> dict[str, Any]:
    """Write a graph of get_attr, placeholder, call_function and output nodes.

    Raises:
        ModelError: an operation or argument that cannot be written.
    """
    nodes: list[dict[str, Any]] = []
    outputs: list[Any] = []
    for node in graph.nodes:
        match node.op:
            case "placeholder":
                nodes.append({"name": node.name, "input": True})
            case "get_attr":
                nodes.append({"name": node.name, "weight": node.target})
            case "output":
                outputs = [_write(value) for value in node.args[0]]
            case _:
                nodes.append({
                    "name": node.name,
                    "op": operation_name(node.target),
                    "args": [_write(value) for value in node.args],
                    "kwargs": {key: _write(value) for key, value in node.kwargs.items()},
                })  # fmt: skip
    return {"nodes": nodes, "outputs": outputs}


def _write(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"node": value.name}
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
            return [_write(item) for item in value]
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
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", name) or name in values:
            raise ArtifactError(f"graph: node {number} has an unusable or repeated name.")
        if "input" in entry:
            values[name] = graph.placeholder(name)
        elif "weight" in entry:
            values[name] = graph.get_attr(check_weight_name(entry["weight"]))
        else:
            target = _operation(entry.get("op"))
            args = tuple(_read(value, values, device) for value in _field(entry, "args", list))
            kwargs = _field(entry, "kwargs", dict)
            if not all(isinstance(key, str) and key.isidentifier() for key in kwargs):
                raise ArtifactError(f"graph: node {name} has an unusable argument name.")
            if not isinstance(target, torch._ops.OpOverload):
                _check_arithmetic(name, target, args, kwargs)
            read = {key: _read(value, values, device) for key, value in kwargs.items()}
            values[name] = graph.call_function(target, args, read)
    outputs = tuple(_read(value, values, device) for value in _field(data, "outputs", list))
    if not outputs or not all(isinstance(output, fx.Node) for output in outputs):
        raise ArtifactError("graph: every output must be a node.")
    graph.output(outputs)
    return graph


def _check_arithmetic(name: str, target: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> None:
    number = (int, float, fx.Node)
    fine = all(isinstance(arg, number) for arg in args) and len(args) in (1, 2) and not kwargs
    if target is operator.getitem:
        fine = fine and isinstance(args[0], fx.Node) and isinstance(args[-1], int) and len(args) == 2
    if not fine:
        raise ArtifactError(f"graph: node {name} calls Python arithmetic with something other than numbers.")


def _read(value: Any, values: dict[str, fx.Node], device: torch.device, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float):
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
        if kind == "device":
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


def check_weight_name(name: object) -> str:
    """A weight's name becomes a chain of attributes, so it may hold nothing that Python would resolve elsewhere.

    Raises:
        ArtifactError: it is not a dotted path of plain names.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise ArtifactError(f"graph: unusable weight name {str(name)[:80]!r}.")
    if any(part.startswith("__") for part in name.split(".")):
        raise ArtifactError(f"graph: unusable weight name {name[:80]!r}.")
    return name


def skeleton(graph: fx.Graph, weights: dict[str, torch.Tensor]) -> fx.GraphModule:
    """The module that runs a graph, its weights without storage: ``functional_call`` puts real ones in.

    Args:
        graph: as :func:`from_json` gives it.
        weights: a tensor of the right shape and dtype for each get_attr node.
    """
    root = nn.Module()
    for name, weight in weights.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        owner.register_buffer(last, torch.empty_like(weight, device="meta"))
    return fx.GraphModule(root, graph)


def retarget(graph: fx.Graph, device: torch.device, dtype: tuple[torch.dtype, torch.dtype] | None = None) -> fx.Graph:
    """The same graph for another device, and for weights of another dtype.

    Args:
        graph: left as it is.
        device: replaces every device that the graph names.
        dtype: (old, new): tensors that the graph creates from nothing as old, such as a first hidden state, become
            new; casts stay, since a model that computes something in float32 on purpose should go on doing so.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in copy.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
            creates = getattr(node.target, "overloadpacket", None) in _CREATE
            if dtype and creates and node.kwargs.get("dtype") == dtype[0]:
                node.kwargs = {**node.kwargs, "dtype": dtype[1]}
    return copy


def used_weights(graph: fx.Graph) -> Iterable[str]:
    """Names of the weights that a graph reads, in order, each once."""
    return dict.fromkeys(node.target for node in graph.nodes if node.op == "get_attr")
