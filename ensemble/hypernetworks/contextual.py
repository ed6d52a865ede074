"""A model whose weights another network gives for each row, from an additional input.

It is an ``nn.Module`` as any other: trained with an optimiser, exported as one graph that holds both networks,
perturbed by any recipe, and served.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ensemble.errors import ExportError, InputError, ModelError, first_line
from ensemble.hypernetworks.generated import Generated, in_full
from ensemble.hypernetworks.rows import run
from ensemble.program.capture import Captured, capture, evaluating
from ensemble.program.graph import retarget
from ensemble.program.program import TensorSpec
from ensemble.program.structure import as_call
from ensemble.structured import rewrite


class Contextual(nn.Module):
    """A target network and the hypernetwork that generates weights of it from a context (arXiv 1609.09106).

    Called as the target is, with the context as one more argument, under its name or after the positional ones. Each
    row is answered with the weights that its own context gives; all rows in one vectorised call. Weights that the
    hypernetwork does not give are the target's own, as is what a low-rank delta is added to; they are parameters of
    this module and are trained with it unless they are frozen (``target.requires_grad_(False)``).

    The target runs in evaluation mode, as it is captured: without dropout, with the running statistics of batch
    normalisation.

    Args:
        hypernetwork: called with contexts (rows, ...), gives the weights of each: one vector, (rows, numbers), of the
            target's parameters in order, or chunks of one, (rows, chunks, size); or a dict by the target's names, of
            full weights, (rows, *shape), or pairs of factors (L, R) of low-rank deltas on the target's own weights:
            (rows, outputs, rank) and (rows, inputs, rank), inputs being all dimensions after the first.
        target: the network that gets the weights.
        context: the name of the additional input.
        example: what the model will be called with: a tuple of the target's positional arguments and the context
            after them, or a dict of named ones. The first dimension of every tensor is the batch.
        include, exclude: patterns of the parameters that a vector holds; all by default.

    Raises:
        ModelError, ExportError: the target cannot be captured, or what the hypernetwork gives does not fit it; the
            text says what would.
        RecipeError: patterns that match nothing.

    Example:
        >>> model = Contextual(hypernetwork, target, context="angle", example=(images, angles))
        >>> loss = cross_entropy(model(images, angles), labels)
    """

    def __init__(
        self,
        hypernetwork: nn.Module,
        target: nn.Module,
        *,
        context: str,
        example: Any,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, module in (("hypernetwork", hypernetwork), ("target", target)):
            if not isinstance(module, nn.Module):
                raise ModelError(f"{name} must be a torch.nn.Module, however: {type(module).__name__}.")
        args, kwargs, codes = split_example(example, context)
        inputs: Any = kwargs or args
        signature = _with_context(inspect.signature(target.forward), context)
        captured = captured_target(target, inputs)
        program = captured.program
        assert program.graph is not None
        if codes.shape[0] != (rows := next(iter(_leaves(inputs))).shape[0]):
            raise ModelError(f"The example has {rows} rows of inputs and {codes.shape[0]} of {context!r}.")
        with torch.no_grad(), evaluating(hypernetwork):
            output = called(hypernetwork, codes)
        generated = Generated.of(
            output,
            codes.shape[0],
            target,
            captured.weights,
            aliases=program.aliases,
            include=include,
            exclude=exclude,
        )
        self.hypernetwork = hypernetwork
        self.target = target
        self.context = context
        self.generated = generated
        self._context = TensorSpec(context, codes.dtype, (-1, *codes.shape[1:]))
        self._graph, self._dense = rewrite(program.graph, generated.factored)
        self._program = program.signature
        self._signature = signature
        self._device = captured.example[0].device
        self._retargeted: dict[torch.device, fx.Graph] = {}
        # What the target reads and does not own: constants in its code.
        owned = {name for name, _ in [*target.named_parameters(), *target.named_buffers()]}
        self._constants = [name for name in captured.weights if name not in owned]
        for number, name in enumerate(self._constants):
            self.register_buffer(f"constant_{number}", captured.weights[name].clone(), persistent=False)

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """The call, with the target's signature and the context in it: so the inputs get their names."""
        call = functools.partial(self._evaluate)
        call.__signature__ = self._signature  # type: ignore[attr-defined]
        return call

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"The inputs do not fit {self._signature}: {error}.") from None
        context = bound.arguments.pop(self.context)
        inputs = self._program.arguments.bind(bound.args, bound.kwargs)
        for spec, tensor in zip((*self._program.inputs, self._context), (*inputs, context), strict=True):
            spec.check(tensor)
        if not torch.compiler.is_exporting() and context.shape[:1] != inputs[0].shape[:1]:
            raise InputError(f"There are {inputs[0].shape[0]} rows of inputs and {list(context.shape)} contexts.")
        own = self.generated.read(self.hypernetwork(context))
        shared = dict([*self.target.named_parameters(), *self.target.named_buffers()])
        shared |= {name: self.get_buffer(f"constant_{number}") for number, name in enumerate(self._constants)}
        own = in_full(own, shared, self._dense)
        outputs = run(self._graph_on(inputs[0].device), shared, own, inputs)
        rows = [
            output.squeeze(1 + spec.batch_dim).movedim(0, spec.batch_dim)
            for spec, output in zip(self._program.outputs, outputs, strict=True)
        ]
        return self._program.results.pack(rows)

    def _graph_on(self, device: torch.device) -> fx.Graph:
        if device == self._device:
            return self._graph
        if device not in self._retargeted:
            self._retargeted[device] = retarget(self._graph, device)
        return self._retargeted[device]


def captured_target(target: nn.Module, example: Any) -> Captured:
    """The network that gets the weights, taken apart.

    Raises:
        ModelError, ExportError: it cannot be.
    """
    try:
        return capture(target, example)
    except ExportError as error:
        raise ExportError(
            f"The target of generated weights must be exported; live=True is not for it. {error}"
        ) from error


def called(hypernetwork: nn.Module, codes: Tensor) -> Any:
    """What a hypernetwork gives for codes or contexts.

    Raises:
        ModelError: it does not run on them.
    """
    try:
        return hypernetwork(codes)
    except Exception as error:
        # The model's own code: it may raise anything.
        raise ModelError(
            f"The hypernetwork does not run on {list(codes.shape)} of {str(codes.dtype).removeprefix('torch.')}: "
            f"{type(error).__name__} {first_line(error)[:200]}"
        ) from error


def split_example(example: Any, context: str) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """The target's part of an example, and the context."""
    if not isinstance(context, str) or not context.isidentifier():
        raise ModelError(f"context must be a name such as 'angle', however: {context!r}.")
    args, kwargs = as_call(example)
    form = f"a tuple with {context!r} last, or a dict with {context!r} in it"
    if kwargs:
        if context not in kwargs:
            raise ModelError(f"The example must be {form}; it has {sorted(kwargs)}.")
        codes = kwargs.pop(context)
    elif len(args) < 2:
        raise ModelError(f"The example must be the target's inputs and the context: {form}.")
    else:
        *args_, codes = args
        args = tuple(args_)
    if not isinstance(codes, Tensor) or codes.ndim == 0:
        raise ModelError(f"In the example {context!r} must be a tensor whose first dimension is the batch.")
    return args, kwargs, codes


def _with_context(signature: inspect.Signature, context: str) -> inspect.Signature:
    if context in signature.parameters:
        raise ModelError(f"The target has an input {context!r} already; call the context otherwise.")
    before: list[inspect.Parameter] = []
    after: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        plain = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        (before if plain or parameter.kind is parameter.VAR_POSITIONAL else after).append(parameter)
    free = all(p.kind is not p.VAR_POSITIONAL and p.default is p.empty for p in before)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if free else inspect.Parameter.KEYWORD_ONLY
    return signature.replace(parameters=[*before, inspect.Parameter(context, kind), *after])


def _leaves(value: Any) -> list[Tensor]:
    match value:
        case Tensor():
            return [value]
        case Mapping():
            return [leaf for item in value.values() for leaf in _leaves(item)]
        case tuple() | list():
            return [leaf for item in value for leaf in _leaves(item)]
    return []
