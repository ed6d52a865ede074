"""A model as a function of its weights.

A :class:`Program` holds no weights: it is called with them. It runs either an exported graph, or, where export cannot
do a model, the live module itself; both through ``torch.func.functional_call`` on a skeleton without storage.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import operator
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ensemble.errors import InputError, ModelError
from ensemble.program.graph import places, readable_sizes, retarget, skeleton
from ensemble.program.structure import Arguments, Structure

Weights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, dtype, and shape with -1 for the batch (the first dimension of an input)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def batch_dim(self) -> int:
        """Which dimension is the batch."""
        return self.shape.index(-1)

    @property
    def trailing(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(size for size in self.shape if size != -1)

    def check(self, tensor: Tensor) -> None:
        """Raise unless a tensor fits.

        Raises:
            InputError: no tensor, another number of dimensions or size, or a dtype of another kind.
        """
        if not isinstance(tensor, Tensor):
            raise InputError(f"The input {self.name!r} must be a tensor, got a {type(tensor).__name__}.")
        fits = tensor.ndim == len(self.shape) and all(
            want in (-1, size) for want, size in zip(self.shape, tensor.shape, strict=False)
        )
        if not fits:
            raise InputError(
                f"The input {self.name!r} must have shape {list(self.shape)} (-1: any), got {list(tensor.shape)}."
            )
        if not torch.can_cast(tensor.dtype, self.dtype):
            raise InputError(f"The input {self.name!r} must be {plain(self.dtype)}, got {plain(tensor.dtype)}.")


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a model takes, returns and ties together.

    Args:
        inputs: the flat inputs.
        outputs: the flat outputs of one member.
        arguments: how a call becomes flat inputs.
        results: how flat outputs become what the model returned.
        aliases: tied weights: name in the model's state dict -> the name that holds the tensor.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arguments: Arguments
    results: Structure
    aliases: dict[str, str]


class Program:
    """A model without its weights.

    Args:
        module: the skeleton; its own tensors are never read.
        signature: what it takes and returns.
        weight_names: the weights that the program reads, in order.
        graph: the exported graph, None for a live module.
    """

    def __init__(
        self, module: nn.Module, signature: Signature, *, weight_names: Iterable[str], graph: fx.Graph | None
    ) -> None:
        self.module = module
        self.signature = signature
        self.weight_names = tuple(weight_names)
        self.graph = graph
        # Why vmap refuses it, once that was found out: its members run one after the other.
        self.looped_because = ""
        # Why vmap refuses it where the inputs differ too, found out likewise: such calls are made one by one.
        self.apart_because = ""
        # Where the skeleton keeps each weight, and what it keeps there when no call is under way.
        self._places = places(graph) if graph is not None else {name: f"model.{name}" for name in self.weight_names}
        self._empty = dict([*module.named_parameters(), *module.named_buffers()])
        # functional_call swaps tensors on the module it is given: two threads in it would read each other's weights.
        self._lock = threading.RLock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The flat inputs."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The flat outputs of one member."""
        return self.signature.outputs

    @property
    def arguments(self) -> Arguments:
        """How a call becomes flat inputs."""
        return self.signature.arguments

    @property
    def results(self) -> Structure:
        """How flat outputs become what the model returned."""
        return self.signature.results

    @property
    def aliases(self) -> dict[str, str]:
        """Tied weights: name in the model's state dict -> the name that holds the tensor."""
        return self.signature.aliases

    def empty_weights(self) -> dict[str, Tensor]:
        """A tensor without storage, of the right shape and dtype, for each weight."""
        return {name: self._empty[place] for name, place in self._places.items()}

    def running(self, graph: fx.Graph, empty: Mapping[str, Tensor]) -> Program:
        """The same signature with another graph, which reads these weights."""
        signature = dataclasses.replace(self.signature, aliases={})
        return Program(skeleton(graph, dict(empty)), signature, weight_names=empty, graph=graph)

    @functools.cached_property
    def with_own_inputs(self) -> Program:
        """The same program, to be called under a ``vmap`` that also runs over inputs.

        Its graph asks tensors for their sizes by operations for which ``vmap`` has no rule.
        """
        if self.graph is None:
            return self
        return Program(
            skeleton(readable_sizes(self.graph), self.empty_weights()),
            self.signature,
            weight_names=self.weight_names,
            graph=self.graph,
        )

    @property
    def live(self) -> bool:
        """True if this runs the original module's code, which cannot be saved."""
        return self.graph is None

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Program:
        """Itself: it has no weights, and what it computes does not change."""
        return self

    def exclusively(self) -> threading.RLock:
        """The lock that a thread holds while it calls this program."""
        return self._lock

    def __call__(self, weights: Weights, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the model with these weights. The caller holds :meth:`exclusively`.

        Args:
            weights: a tensor for each of ``weight_names``.
            inputs: flat inputs, as ``arguments.bind`` gives them.

        Returns:
            The flat outputs.
        """
        named = {place: weights[name] for name, place in self._places.items()}
        if self.graph is None:
            named |= {f"model.{alias}": weights[name] for alias, name in self.aliases.items()}
        outputs: tuple[Tensor, ...] = functional_call(self.module, named, tuple(inputs), tie_weights=False)
        return outputs

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> list[Tensor]:
        """A call's arguments as flat, checked inputs on a device.

        Raises:
            InputError: they do not fit the signature.
        """
        tensors = self.arguments.bind(args, kwargs)
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            spec.check(tensor)
        rows = {tensor.shape[0] for tensor in tensors}
        if len(rows) != 1:
            sizes = {spec.name: tensor.shape[0] for spec, tensor in zip(self.inputs, tensors, strict=True)}
            raise InputError(f"All inputs must have the same number of rows, got {sizes}.")
        if rows == {0}:
            raise InputError("The inputs have no rows; a batch has at least one.")
        return [t.to(device, spec.dtype) for t, spec in zip(tensors, self.inputs, strict=True)]

    def to(self, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> Program:
        """The same program for another device, and with these dtypes of its weights.

        Args:
            device: where the operations that name a device create their tensors.
            dtypes: new dtype of each weight; inputs and outputs of the floating weights' dtype follow it.
        """
        was = {name: self._empty[place].dtype for name, place in self._places.items()}
        changes = [(was[n], dtypes[n]) for n in was if was[n] != dtypes[n]]
        change = changes[0] if changes else None

        def following(spec: TensorSpec) -> TensorSpec:
            return dataclasses.replace(spec, dtype=change[1]) if change and spec.dtype == change[0] else spec

        graph = None
        if self.graph is None:
            module = copy.deepcopy(self.module)
        else:
            graph = retarget(self.graph, device, change, self._rehearsal.integral if change else ())
            empty = {n: self._empty[place].to(dtypes[n]) for n, place in self._places.items()}
            module = skeleton(graph, empty)
        signature = dataclasses.replace(
            self.signature,
            inputs=tuple(following(spec) for spec in self.inputs),
            outputs=tuple(following(spec) for spec in self.outputs),
        )
        program = Program(module, signature, weight_names=self.weight_names, graph=graph)
        if change and graph is not None:
            # An output that the model casts on purpose does not follow. (What does not run is refused when it is run.)
            with contextlib.suppress(RuntimeError, ModelError):
                actual = program._rehearsal.outputs
                pairs = zip(program.outputs, actual, strict=True)
                actual_outputs = tuple(dataclasses.replace(spec, dtype=output.dtype) for spec, output in pairs)
                program.signature = dataclasses.replace(signature, outputs=actual_outputs)
        return program

    @functools.cached_property
    def activation_bytes(self) -> int:
        """Bytes of all values between the inputs and outputs of one row of one member.

        An upper bound of what a call needs, since most values are freed on the way; for a live module, whose inside
        is not known, a guess from its inputs and outputs.
        """
        if self.graph is None:
            specs = (*self.inputs, *self.outputs)
            return 64 * sum(math.prod(spec.trailing) * spec.dtype.itemsize for spec in specs)
        return self._rehearsal.total

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest value that an exported graph makes for one row of one member."""
        return self._rehearsal.largest

    @functools.cached_property
    def _rehearsal(self) -> _Rehearsal:
        assert self.graph is not None
        meta = torch.device("meta")
        weights = {name: self._empty[place] for name, place in self._places.items()}
        rehearsal = _Rehearsal(skeleton(retarget(self.graph, meta), weights), self.graph)
        with torch.no_grad():
            inputs = [torch.empty((1, *spec.trailing), dtype=spec.dtype, device=meta) for spec in self.inputs]
            rehearsal.outputs = tuple(rehearsal.run(*inputs))
        return rehearsal

    def example(self, rows: int, device: torch.device, seed: int = 0) -> list[Tensor]:
        """Made-up flat inputs: standard normal numbers, or zeros where integers or booleans are wanted."""
        generator = torch.Generator().manual_seed(seed)

        def make(spec: TensorSpec) -> Tensor:
            shape = [rows, *spec.trailing]
            if spec.dtype.is_floating_point:
                return torch.randn(shape, generator=generator).to(device, spec.dtype)
            return torch.zeros(shape, dtype=spec.dtype, device=device)

        return [make(spec) for spec in self.inputs]


class _Rehearsal(fx.Interpreter):
    """Runs a graph on tensors without data.

    Attributes:
        total: bytes of all values together; views share storage, and weights and inputs do not count.
        largest: bytes of the largest of them.
        integral: names of the graph's nodes whose value is a tensor that is not floating point.
        outputs: what the graph returns.
    """

    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False)
        # The module's nodes are copies, in the same order.
        self._names = {node: old.name for node, old in zip(module.graph.nodes, graph.nodes, strict=True)}
        self._seen: set[int] = set()
        self.total = self.largest = 0
        self.integral: set[str] = set()
        self.outputs: tuple[Tensor, ...] = ()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and not result.is_floating_point():
            self.integral.add(self._names[n])
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                self._seen.add(tensor.untyped_storage()._cdata)
                if n.op == "call_function":
                    size = tensor.untyped_storage().nbytes()
                    self.total += size
                    self.largest = max(self.largest, size)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            # Lists can be repeated and numbers grow without end; sizes do neither.
            numbers = args[1:] if target is operator.getitem else args
            if not all(isinstance(number, int | float) and abs(number) < 2**63 for number in numbers):
                raise ModelError(f"The graph calls {target.__name__} with something else than sizes.")
        return super().call_function(target, args, kwargs)


def plain(dtype: torch.dtype) -> str:
    """Without the "torch."."""
    return str(dtype).removeprefix("torch.")
