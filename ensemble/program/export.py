"""``torch.export`` of a model, rewritten into a graph that reads its weights by their names.

The batch dimension is dynamic and the graph is decomposed into core ATen operators; so that recurrent layers, which
``vmap`` refuses (PyTorch issue 105982), become products that it takes, and a saved model needs none of the code it was
written in.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from ensemble.errors import ExportError, ModelError
from ensemble.program.graph import skeleton, used_weights
from ensemble.program.operations import is_check, normalise, operation_name
from ensemble.program.program import Program, Signature
from ensemble.program.structure import Arguments, Structure

_PREFIX = "model."
_BATCH = torch.export.Dim("batch", min=1, max=2**24)


class Flat(nn.Module):
    """A model with flat tensors in and out."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        _, flat = Structure.of(self.arguments.call(self.model, tensors), alone="output")
        return tuple(flat)


def exported_program(
    model: nn.Module, signature: Signature, inputs: Sequence[Tensor]
) -> tuple[Program, dict[str, Tensor], set[str]]:
    """Export a model.

    Returns:
        The program, the weights that it reads, and which of them are parameters.

    Raises:
        ExportError: it cannot be captured; the text says why.
    """
    exported = _export(Flat(model, signature.arguments), inputs)
    graph, tensors, trainable = _with_weights_as_attributes(exported, signature.aliases)
    weights = {name: tensors[name] for name in used_weights(graph)}
    program = Program(skeleton(graph, weights), signature, weight_names=weights, graph=graph)
    try:
        # The first use rehearses the graph without data.
        _ = program.activation_bytes
    except Exception as error:
        raise ExportError(
            "The size of a value in this model depends on other values (a boolean mask as an index?); use torch.where, "
            "or multiply by the mask."
        ) from error
    return program, weights, trainable


def _export(module: nn.Module, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    table = torch.export.default_decompositions()
    # Kept whole: vmap and the layers above handle a linear layer as one product better than its pieces.
    del table[torch.ops.aten.linear.default]
    # Without a batching rule of its own vmap would loop over the members.
    table[torch.ops.aten._native_batch_norm_legit_no_training.default] = _batch_norm
    try:
        # Export prints the graph so far when it fails.
        with warnings.catch_warnings(), _silent("torch.export", "torch.fx"), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            dynamic = {"tensors": tuple({0: _BATCH} for _ in inputs)}
            exported = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic, strict=False)
            decomposed: torch.export.ExportedProgram = exported.run_decompositions(table)
            return decomposed
    except Exception as error:
        raise ExportError(
            f"torch.export cannot capture this model: {_cause(error)}. Change the model, or keep its code with "
            "live=True (an ensemble that runs here but cannot be saved or served)."
        ) from error


def _cause(error: Exception) -> str:
    text = str(error)
    if "batch" in text and ("specialized" in text or "Constraints violated" in text):
        return (
            "its code fixes the size of the first dimension (a reshape to a constant, or a Python branch or loop over "
            "the batch); the first dimension of every input must be a batch of any size"
        )
    if "data-dependent" in text or "unbacked" in text:
        return (
            "its Python code branches on, or takes a size from, the value of a tensor; torch.where or a mask does the "
            "same without branching"
        )
    line = first_line(error)
    return line if " " in line else f"{type(error).__name__} {line}"


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation with fixed statistics, as one scale and one shift of each channel."""
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    channels = [1, -1, *[1] * (x.ndim - 2)]
    nothing = x.new_empty((0,))
    return (x * scale.view(channels) + shift.view(channels)).to(x.dtype), nothing, nothing


def _with_weights_as_attributes(
    exported: torch.export.ExportedProgram, aliases: dict[str, str]
) -> tuple[fx.Graph, dict[str, Tensor], set[str]]:
    """Rewrite a graph whose weights are arguments into one that reads them by their names in the state dict."""
    signature = exported.graph_signature
    for spec in signature.output_specs:
        if spec.kind is OutputKind.TOKEN:
            raise ExportError(
                "The model uses an operation with an effect beyond its result, such as the checks in torch.linalg; a "
                "graph holds none. Use a variant without checks (torch.linalg.solve_ex), or live=True."
            )
        if spec.kind is not OutputKind.USER_OUTPUT:
            changed = (
                "its input" if spec.kind is OutputKind.USER_INPUT_MUTATION else f"its buffer {_plain(spec.target)!r}"
            )
            raise ExportError(
                f"The model changes {changed} while it runs; a member must be a function of its weights and inputs. "
                "Compute a new tensor instead, and return it if it is needed."
            )
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    trainable = set()
    for entry in signature.input_specs:
        if entry.kind is InputKind.USER_INPUT:
            continue
        target = str(entry.target)
        name = aliases.get(_plain(target), _plain(target))
        names[entry.arg.name] = name
        source = exported.constants if target in exported.constants else exported.state_dict
        tensors[name] = source[target].detach()
        if entry.kind is InputKind.PARAMETER:
            trainable.add(name)

    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    read: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            read[name] = copies[node] = read.get(name) or graph.get_attr(name)
        elif node.op == "placeholder":
            copies[node] = graph.placeholder(node.name)
        elif node.op == "call_function":
            if is_check(node.target):
                continue
            normalise(node)
            try:
                operation_name(node.target)
            except ModelError as error:
                raise ExportError(str(error)) from None
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta.clear()
        elif node.op == "output":
            graph.output(tuple(copies[value] for value in node.args[0]))
        # A branch of control flow is read as an attribute; the operation that uses it follows, and is refused.
    graph.eliminate_dead_code()
    return graph, tensors, trainable


def _plain(target: object) -> str:
    return str(target).removeprefix(_PREFIX)


@contextlib.contextmanager
def _silent(*loggers: str) -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    """What an error says first, without the full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]
