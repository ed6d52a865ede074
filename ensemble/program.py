"""A model as a function of its weights.

A :class:`Program` holds no weights: it is called with them. It runs either an exported graph, or, where export cannot
do a model, the live module itself; both through ``torch.func.functional_call`` on a skeleton without storage.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ensemble.errors import InputError
from ensemble.graph import retarget, skeleton
from ensemble.structure import Arguments, Structure

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
            InputError: another number of dimensions or size, or a dtype of another kind.
        """
        fits = tensor.ndim == len(self.shape) and all(
            want in (-1, size) for want, size in zip(self.shape, tensor.shape, strict=False)
        )
        if not fits:
            raise InputError(
                f"The input {self.name!r} must have shape {list(self.shape)} (-1: any), got {list(tensor.shape)}."
            )
        if not torch.can_cast(tensor.dtype, self.dtype):
            raise InputError(f"The input {self.name!r} must be {_plain(self.dtype)}, got {_plain(tensor.dtype)}.")


class Program:
    """A model without its weights.

    Args:
        module: the skeleton; its own tensors are never read.
        inputs: the flat inputs.
        outputs: the flat outputs of one member.
        arguments: how a call becomes flat inputs.
        results: how flat outputs become what the model returned.
        weight_names: the weights that the program reads, in order.
        aliases: tied weights: name in the model's state dict -> the name that holds the tensor.
        graph: the exported graph, None for a live module.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        arguments: Arguments,
        results: Structure,
        weight_names: Iterable[str],
        aliases: Mapping[str, str],
        graph: fx.Graph | None,
    ) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.arguments = arguments
        self.results = results
        self.weight_names = tuple(weight_names)
        self.aliases = dict(aliases)
        self.graph = graph
        # functional_call swaps tensors on the module it is given: two threads in it would read each other's weights.
        self._lock = threading.RLock()

    @property
    def live(self) -> bool:
        """True if this runs the original module's code, which cannot be saved."""
        return self.graph is None

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
        if self.graph is not None:
            return functional_call(self.module, dict(weights), tuple(inputs))  # type: ignore[no-any-return]
        tied = {alias: weights[name] for alias, name in self.aliases.items() if name in weights}
        # The wrapper is what functional_call runs, hence the prefix.
        named = {f"model.{name}": weight for name, weight in {**weights, **tied}.items()}
        return functional_call(self.module, named, tuple(inputs), tie_weights=False)  # type: ignore[no-any-return]

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
        return [t.to(device, spec.dtype) for t, spec in zip(tensors, self.inputs, strict=True)]

    def to(self, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> Program:
        """The same program for another device, and with these dtypes of its weights.

        Args:
            device: where the operations that name a device create their tensors.
            dtypes: new dtype of each weight; inputs and outputs of the floating weights' dtype follow it.
        """
        if self.graph is None:
            return self
        shapes = dict(self.module.named_buffers())
        change = next(((shapes[n].dtype, d) for n, d in dtypes.items() if d.is_floating_point), None)

        def following(spec: TensorSpec) -> TensorSpec:
            return dataclasses.replace(spec, dtype=change[1]) if change and spec.dtype == change[0] else spec

        graph = retarget(self.graph, device, change)
        empty = {n: torch.empty_like(shapes[n], dtype=dtypes[n], device="meta") for n in self.weight_names}
        return Program(
            skeleton(graph, empty),
            inputs=[following(spec) for spec in self.inputs],
            outputs=[following(spec) for spec in self.outputs],
            arguments=self.arguments,
            results=self.results,
            weight_names=self.weight_names,
            aliases=self.aliases,
            graph=graph,
        )

    @functools.cached_property
    def activation_bytes(self) -> int:
        """Bytes of all values between the inputs and outputs of one row of one member.

        An upper bound of what a call needs, since most values are freed on the way; for a live module, whose inside
        is not known, a guess from its inputs and outputs.
        """
        if self.graph is None:
            specs = (*self.inputs, *self.outputs)
            return 64 * sum(math.prod(spec.trailing) * spec.dtype.itemsize for spec in specs)
        meta = torch.device("meta")
        sizes = _Sizes(skeleton(retarget(self.graph, meta), dict(self.module.named_buffers())))
        with torch.no_grad():
            sizes.run(*[torch.empty((1, *spec.trailing), dtype=spec.dtype, device=meta) for spec in self.inputs])
        return sizes.total

    def example(self, rows: int, device: torch.device, seed: int = 0) -> list[Tensor]:
        """Made-up flat inputs: standard normal numbers, or zeros where integers or booleans are wanted."""
        generator = torch.Generator().manual_seed(seed)

        def make(spec: TensorSpec) -> Tensor:
            shape = [rows, *spec.trailing]
            if spec.dtype.is_floating_point:
                return torch.randn(shape, generator=generator).to(device, spec.dtype)
            return torch.zeros(shape, dtype=spec.dtype, device=device)

        return [make(spec) for spec in self.inputs]


class _Sizes(fx.Interpreter):
    """Adds up the storage that the nodes of a graph allocate, on tensors without data."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._seen: set[int] = set()
        self.total = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            # Views share storage; weights and inputs are no activations.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                self._seen.add(tensor.untyped_storage()._cdata)
                if n.op == "call_function":
                    self.total += tensor.numel() * tensor.element_size()
        return result


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
