"""From an ``nn.Module`` to a :class:`~ensemble.program.program.Program` and its weights.

The model is run on the example in evaluation mode, captured (exported, or kept as it is), and what was captured is
compared with it: the answers must be the same, and each row's must not depend on the other rows.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.errors import ExportError, ModelError
from ensemble.program.export import Flat, exported_program, first_line
from ensemble.program.program import Program, Signature, TensorSpec
from ensemble.program.structure import Arguments, Structure, as_call


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
    # Inference mode, where the caller has it, would make tensors that do not tell whether they were changed.
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        inputs = _at_least_two_rows(arguments, args, kwargs)
        structure, expected = _run(model, arguments, inputs, "The model does not run on the example")
        alone = "The model does not run on the first row of the example alone (a batch may have any number of rows)"
        other, one_row = _run(model, arguments, [t[:1] for t in inputs], alone)
        if other != structure:
            raise ModelError("What the model returns besides tensors, or how many tensors, depends on the batch size.")
        outputs = _output_specs(structure, expected, one_row, inputs[0].shape[0])
        specs = [TensorSpec(n, t.dtype, (-1, *t.shape[1:])) for n, t in zip(arguments.names, inputs, strict=True)]
        signature = Signature(tuple(specs), tuple(outputs), arguments, structure, _aliases(model))
        # What modules add as extra state is no tensor, and belongs to no member.
        state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
        make = _live_program if live else exported_program
        program, weights, trainable = make(model, signature, inputs)
        for name in sorted(trainable & set(weights)):
            if bool(weights[name].isnan().any()):
                raise ModelError(f"The parameter {name!r} holds NaN; was the model trained to the end?")
        _check_answers(program, weights, inputs, expected, ModelError if live else ExportError)
    return Captured(
        program=program,
        weights=weights,
        trainable=frozenset(trainable),
        unused={n: t.detach() for n, t in state.items() if n not in weights and n not in signature.aliases},
        state_names=tuple(state),
        example=inputs,
    )


def _run(
    model: nn.Module, arguments: Arguments, inputs: Sequence[Tensor], failing: str
) -> tuple[Structure, list[Tensor]]:
    try:
        # Clones, since a model may write into its input.
        return Structure.of(arguments.call(model, [tensor.clone() for tensor in inputs]), alone="output")
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{failing}: {first_line(error)}.") from error


def _live_program(
    model: nn.Module, signature: Signature, _: Sequence[Tensor]
) -> tuple[Program, dict[str, Tensor], set[str]]:
    weights = {name: p.detach() for name, p in [*model.named_parameters(), *model.named_buffers()]}
    # The memo makes the copy take tensors without storage in the places of the real ones.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    try:
        module = Flat(copy.deepcopy(model, memo), signature.arguments)
    except Exception as error:
        raise ModelError(f"The model cannot be copied: {first_line(error)}") from error
    program = Program(module, signature, weight_names=weights, graph=None)
    return program, weights, {name for name, _ in model.named_parameters()}


def _at_least_two_rows(arguments: Arguments, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The example's tensors; a batch of one gets a second row, since export would take its size for a constant."""
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
    return [(_two_rows(t) if t.shape[0] == 1 else t).detach().clone() for t in tensors]


def _two_rows(row: Tensor) -> Tensor:
    # Another row where that is possible: between equal ones it would not show that they influence each other.
    return torch.cat([row, row / 2 if row.is_floating_point() else row])


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
    versions = {name: tensor._version for name, tensor in weights.items()}
    given = [tensor.clone() for tensor in inputs]
    with program.exclusively():
        together = program(weights, given)
        alone = program(weights, [tensor[:1].clone() for tensor in inputs])
    changed = [name for name, tensor in weights.items() if tensor._version != versions[name]]
    changed += [spec.name for spec, tensor in zip(program.inputs, given, strict=True) if tensor._version]
    if changed:
        raise error(f"The model changes {changed[0]!r} while it runs; compute a new tensor instead.")
    for spec, want, got, one in zip(program.outputs, expected, together, alone, strict=True):
        if not close(got, want):
            raise error(
                f"The captured model gives another {spec.name!r} than the model itself: it is no function of its "
                "weights and inputs alone. Does it draw random numbers (dropout while in eval mode), or keep state?"
            )
        if not close(one, got.narrow(spec.batch_dim, 0, 1)):
            raise error(
                f"In {spec.name!r} the rows of a batch influence each other. Is the first dimension the batch "
                "(a recurrent layer needs batch_first=True), and does a layer use statistics of the batch?"
            )


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs agree within what the order of operations may change."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    tolerance = 1e-4 if torch.finfo(a.dtype).eps < 1e-5 else 5e-2
    scale = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, its buffers and modes put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    kept = [
        (module, name, b, b.detach().clone())
        for module in modes
        for name, b in module._buffers.items()
        if b is not None
    ]
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
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
