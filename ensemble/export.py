"""From an ``nn.Module`` to a :class:`~ensemble.program.Program` and its weights.

The model is captured once by ``torch.export`` with a dynamic batch dimension, in evaluation mode, and decomposed into
core ATen operators; so that recurrent layers, which ``vmap`` refuses (PyTorch issue 105982), become products that it
takes, and a saved model needs none of the code it was written in.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from ensemble.errors import ExportError, ModelError
from ensemble.graph import CHECKS, operation_name, skeleton, used_weights
from ensemble.program import Program, TensorSpec
from ensemble.structure import Arguments, Structure, as_call

_PREFIX = "model."
_BATCH = torch.export.Dim("batch", min=1, max=2**24)


@dataclasses.dataclass(frozen=True)
class Captured:
    """A model taken apart.

    Args:
        program: the function.
        weights: every tensor that it reads, by name: parameters, buffers, constants.
        trainable: which of them are parameters.
        unused: what the state dict holds beyond that, so that a member's state dict is complete.
        state_names: names of the state dict, in order, tied ones included.
        example: the flat example, at least two rows.
    """

    program: Program
    weights: dict[str, Tensor]
    trainable: frozenset[str]
    unused: dict[str, Tensor]
    state_names: tuple[str, ...]
    example: list[Tensor]


class _Flat(nn.Module):
    """A model with flat tensors in and out."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        _, flat = Structure.of(self.arguments.call(self.model, tensors), alone="output")
        return tuple(flat)


def capture(model: nn.Module, example: object, *, live: bool = False) -> Captured:
    """Take a model apart into a function and its weights.

    Args:
        model: any module; it is left as it was.
        example: what the model is called with: a tensor, a tuple of positional arguments, or a dict of named ones.
            The first dimension of every tensor is the batch.
        live: keep the module and its code instead of exporting it; such an ensemble cannot be saved.

    Raises:
        ModelError: the example does not run, rows of a batch influence each other, or the outputs have no batch
            dimension.
        ExportError: ``torch.export`` cannot capture it, or the captured graph gives another answer.
    """
    args, kwargs = as_call(example)
    arguments = Arguments.of(model.forward, args, kwargs)
    inputs = _at_least_two_rows(arguments, args, kwargs)
    with _evaluating(model), torch.no_grad():
        try:
            structure, expected = Structure.of(arguments.call(model, inputs), alone="output")
            _, one_row = Structure.of(arguments.call(model, [t[:1] for t in inputs]), alone="output")
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"The model does not run on the example: {_first_line(error)}") from error
        outputs = _output_specs(structure, expected, one_row, inputs[0].shape[0])
        specs = [TensorSpec(n, t.dtype, (-1, *t.shape[1:])) for n, t in zip(arguments.names, inputs, strict=True)]
        aliases = _aliases(model)
        state = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in aliases}
        make = _live_program if live else _exported_program
        program, weights, trainable = make(model, arguments, inputs, structure, specs, outputs, aliases)
        _check_answers(program, weights, inputs, expected, ModelError if live else ExportError)
    return Captured(
        program=program,
        weights=weights,
        trainable=frozenset(trainable),
        unused={name: tensor for name, tensor in state.items() if name not in weights},
        state_names=tuple(model.state_dict()),
        example=inputs,
    )


def _live_program(
    model: nn.Module,
    arguments: Arguments,
    inputs: Sequence[Tensor],
    results: Structure,
    specs: list[TensorSpec],
    outputs: list[TensorSpec],
    aliases: dict[str, str],
) -> tuple[Program, dict[str, Tensor], set[str]]:
    weights = {name: p.detach() for name, p in [*model.named_parameters(), *model.named_buffers()]}
    # The memo makes the copy take tensors without storage in the places of the real ones.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    try:
        module = _Flat(copy.deepcopy(model, memo), arguments)
    except Exception as error:
        raise ModelError(f"The model cannot be copied: {_first_line(error)}") from error
    program = Program(
        module,
        inputs=specs,
        outputs=outputs,
        arguments=arguments,
        results=results,
        weight_names=weights,
        aliases=aliases,
        graph=None,
    )
    return program, weights, {name for name, _ in model.named_parameters()}


def _exported_program(
    model: nn.Module,
    arguments: Arguments,
    inputs: Sequence[Tensor],
    results: Structure,
    specs: list[TensorSpec],
    outputs: list[TensorSpec],
    aliases: dict[str, str],
) -> tuple[Program, dict[str, Tensor], set[str]]:
    exported = _export(_Flat(model, arguments), inputs)
    graph, tensors, trainable = _with_weights_as_attributes(exported, aliases)
    weights = {name: tensors[name] for name in used_weights(graph)}
    program = Program(
        skeleton(graph, weights),
        inputs=specs,
        outputs=outputs,
        arguments=arguments,
        results=results,
        weight_names=weights,
        aliases=aliases,
        graph=graph,
    )
    return program, weights, trainable


def _export(module: nn.Module, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    table = torch.export.default_decompositions()
    # Kept whole: vmap and the layers above handle a linear layer as one product better than its pieces.
    del table[torch.ops.aten.linear.default]
    # Without a batching rule of its own vmap would loop over the members.
    table[torch.ops.aten._native_batch_norm_legit_no_training.default] = _batch_norm
    try:
        with warnings.catch_warnings(), _silent("torch.export", "torch.fx", "torch._dynamo"):
            warnings.simplefilter("ignore")
            dynamic = {"tensors": tuple({0: _BATCH} for _ in inputs)}
            exported = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic, strict=False)
            decomposed: torch.export.ExportedProgram = exported.run_decompositions(table)
            return decomposed
    except Exception as error:
        text = _first_line(error)
        if "batch" in str(error) and ("specialized" in str(error) or "Constraints violated" in str(error)):
            text = (
                "its code fixes the size of the first dimension (a reshape to a constant, or a Python branch on the "
                "batch size); the first dimension of every input must be a batch of any size"
            )
        raise ExportError(
            f"torch.export cannot capture this model: {text}. Change the model, or keep its code with live=True "
            "(an ensemble that runs here but cannot be saved or served)."
        ) from error


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
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise ExportError(
                f"The model changes {spec.target!r} while it runs ({spec.kind.name.lower().replace('_', ' ')}); a "
                "member must be a function of its weights and inputs. Return the new value instead."
            )
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    trainable = set()
    for entry in signature.input_specs:
        if entry.kind is InputKind.USER_INPUT:
            continue
        target = str(entry.target)
        plain = target.removeprefix(_PREFIX)
        name = aliases.get(plain, plain)
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
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.split("::")[1] in CHECKS:
                continue
            try:
                operation_name(node.target)
            except ModelError as error:
                raise ExportError(str(error)) from None
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta.clear()
        elif node.op == "output":
            graph.output(tuple(copies[value] for value in node.args[0]))
        else:
            raise ExportError(f"The exported graph holds a {node.op} node ({node.target}), which cannot be saved.")
    graph.eliminate_dead_code()
    return graph, tensors, trainable


def _at_least_two_rows(arguments: Arguments, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The example's tensors; a batch of one is doubled, since export would take its size for a constant."""
    tensors = arguments.bind(args, kwargs)
    if not tensors:
        raise ModelError("The example holds no tensor; give what the model is called with.")
    for name, tensor in zip(arguments.names, tensors, strict=True):
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise ModelError(f"The first dimension of {name!r} must be a batch of at least one row.")
    rows = {name: t.shape[0] for name, t in zip(arguments.names, tensors, strict=True)}
    if len(set(rows.values())) != 1:
        raise ModelError(f"The first dimension of every input must be the batch, got sizes {rows}.")
    # Copies, so that two inputs that share storage are not taken for one.
    return [(t.repeat(2, *[1] * (t.ndim - 1)) if t.shape[0] == 1 else t).detach().clone() for t in tensors]


def _output_specs(structure: Structure, outputs: list[Tensor], one_row: list[Tensor], rows: int) -> list[TensorSpec]:
    """Name, dtype and shape of each output, its batch dimension found by what changes with the number of rows."""
    if not outputs:
        raise ModelError("The model returns no tensor.")
    specs = []
    for name, many, one in zip(structure.names, outputs, one_row, strict=True):
        changed = [d for d, (m, o) in enumerate(zip(many.shape, one.shape, strict=False)) if m != o]
        if many.ndim != one.ndim or len(changed) != 1 or many.shape[changed[0]] != rows or one.shape[changed[0]] != 1:
            raise ModelError(
                f"Every output must have one dimension that is the batch. For {rows} rows {name!r} has shape "
                f"{list(many.shape)}, for one row {list(one.shape)}; is the first dimension of each input the batch?"
            )
        shape = [-1 if d == changed[0] else size for d, size in enumerate(many.shape)]
        specs.append(TensorSpec(name, many.dtype, tuple(shape)))
    return specs


def _aliases(model: nn.Module) -> dict[str, str]:
    """Tied weights: every further name of a tensor -> its first name."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        if first.setdefault(id(tensor), name) != name:
            found[name] = first[id(tensor)]
    return found


def _check_answers(
    program: Program,
    weights: dict[str, Tensor],
    inputs: list[Tensor],
    expected: list[Tensor],
    error: type[ModelError],
) -> None:
    """The program must give the model's answer, and for each row the answer that the row gets alone."""
    with program.exclusively():
        together = program(weights, inputs)
        alone = program(weights, [tensor[:1] for tensor in inputs])
    for spec, want, got, one in zip(program.outputs, expected, together, alone, strict=True):
        if not _close(got, want):
            raise error(f"The captured model gives another {spec.name!r} than the model itself; it cannot be used.")
        if not _close(one, got.narrow(spec.batch_dim, 0, 1)):
            raise error(
                f"In {spec.name!r} the rows of a batch influence each other. Is the first dimension the batch "
                "(a recurrent layer needs batch_first=True), and does a layer use statistics of the batch?"
            )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = 1e-4 if torch.finfo(a.dtype).eps < 1e-5 else 5e-2
    scale = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoderLayer has no batching rule for vmap.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]
