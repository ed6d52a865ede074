"""The other ways of running the same dense members.

Each is a function of a case and a number of members that holds their weights, and returns a function of inputs that
prepares a call for exactly that many rows and returns it. A call gives all members' outputs, (members, rows, ...).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.models import Case
from benchmarks.speed.worker import RefusedError

Inputs = tuple[Tensor, ...]
Call = Callable[[], Any]
Prepare = Callable[[Inputs], Call]


def loop(case: Case, count: int) -> Prepare:
    """One module after the other: what one writes first."""
    modules = case.copies("dense", count)
    return lambda inputs: lambda: torch.stack([module(*inputs) for module in modules])


def vmap(case: Case, count: int) -> Prepare:
    """``torch.vmap`` of ``functional_call``, as PyTorch's tutorial on ensembling has it."""
    _vmappable()
    many = _vmapped(case.module, case.stacked("dense", count))
    return lambda inputs: lambda: many(*inputs)


def compiled(case: Case, count: int) -> Prepare:
    """``torch.compile`` of that."""
    _vmappable()
    weights = case.stacked("dense", count)
    many = torch.compile(lambda weights, inputs: _vmapped(case.module, weights)(*inputs), dynamic=False)
    return lambda inputs: lambda: many(weights, inputs)


def onnxruntime(case: Case, count: int) -> Prepare:
    """One ONNX graph for all members, exported from PyTorch, in ONNX Runtime."""
    import onnxruntime as ort

    stacked = Stacked(case, count)

    def prepare(inputs: Inputs) -> Call:
        program = stacked.exported(inputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            torch.onnx.export(program, f=str(path), dynamo=True, external_data=True, verbose=False)
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
        return lambda: session.run(None, feed)[0]

    return prepare


def openvino(case: Case, count: int) -> Prepare:
    """The same exported program given to OpenVINO, in float32."""
    # Nothing is to be reported to anyone; without this module OpenVINO does without.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as ov

    stacked = Stacked(case, count)

    def prepare(inputs: Inputs) -> Call:
        settings = {
            # Else it takes bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        model = ov.compile_model(ov.convert_model(stacked.exported(inputs)), "CPU", settings)
        request = model.create_infer_request()
        arrays = [x.numpy() for x in inputs]
        # As this library gives it its inputs: without a copy.
        return lambda: request.infer(arrays, share_inputs=True)[0]

    return prepare


def jax(case: Case, count: int) -> Prepare:
    """``jax.jit(jax.vmap)`` of the same network written in JAX."""
    import jax as jx
    import jax.numpy as jnp

    layers = list(case.module) if isinstance(case.module, nn.Sequential) else []
    steps = [_in_jax(layer, name) for name, layer in enumerate(layers)]
    if not steps or not all(steps):
        raise RefusedError("not written for this model")
    jx.config.update("jax_platforms", "cpu")

    def one(p: dict[str, Any], x: Any) -> Any:
        for step in steps:
            assert step is not None
            x = step(p, x)
        return x

    weights = {name: jnp.asarray(stack.numpy()) for name, stack in case.stacked("dense", count).items()}
    many = jx.jit(jx.vmap(one, in_axes=(0, None)))

    def prepare(inputs: Inputs) -> Call:
        (x,) = (jnp.asarray(x.numpy()) for x in inputs)
        return lambda: many(weights, x).block_until_ready()

    return prepare


def _in_jax(layer: nn.Module, name: int) -> Callable[[dict[str, Any], Any], Any] | None:
    """A layer as a function of all weights and its input; None for one that is not known here."""
    import jax
    import jax.numpy as jnp

    weight, bias = f"{name}.weight", f"{name}.bias"
    if isinstance(layer, nn.Linear):
        return lambda p, x: x @ p[weight].T + p[bias]
    if isinstance(layer, nn.ReLU):
        return lambda p, x: jax.nn.relu(x)
    if isinstance(layer, nn.Flatten):
        return lambda p, x: x.reshape(x.shape[0], -1)
    if isinstance(layer, nn.Conv2d):
        padding = [(int(side), int(side)) for side in layer.padding]
        return lambda p, x: jax.lax.conv_general_dilated(x, p[weight], layer.stride, padding) + p[bias][:, None, None]
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = jnp.asarray(layer.running_mean.numpy())[:, None, None]
        scale = 1 / jnp.sqrt(jnp.asarray(layer.running_var.numpy()) + layer.eps)[:, None, None]
        return lambda p, x: (x - mean) * scale * p[weight][:, None, None] + p[bias][:, None, None]
    if isinstance(layer, nn.MaxPool2d):
        size = (1, 1, int(layer.kernel_size), int(layer.kernel_size))  # type: ignore[arg-type]
        return lambda p, x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")
    return None


def _vmappable() -> None:
    # The fused path of nn.TransformerEncoderLayer has no batching rule: vmap would loop inside, and warn.
    torch.backends.mha.set_fastpath_enabled(False)


def _vmapped(module: nn.Module, weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    def one(own: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(module, own, inputs)
        return output

    return lambda *inputs: torch.vmap(one, in_dims=(0, *(None for _ in inputs)))(weights, *inputs)


class Stacked(nn.Module):
    """All members as one module: what is exported for the runtimes that take a graph."""

    def __init__(self, case: Case, count: int) -> None:
        super().__init__()
        _vmappable()
        self.case = case
        self.names: list[str] = []
        for number, (name, stack) in enumerate(case.stacked("dense", count).items()):
            self.names.append(name)
            self.register_buffer(f"weight{number}", stack)

    def exported(self, inputs: Inputs) -> torch.export.ExportedProgram:
        skeleton = self.case.module
        if self.case.recurrent:
            # vmap refuses recurrent layers (PyTorch issue 105982), but not what they are made of.
            program = torch.export.export(skeleton, inputs, strict=False).run_decompositions()
            skeleton = program.module()
        # Not as an attribute: its own weights would be exported beside the stacked ones.
        self.__dict__["skeleton"] = skeleton
        with torch.no_grad():
            return torch.export.export(self, inputs, strict=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        weights = {name: getattr(self, f"weight{number}") for number, name in enumerate(self.names)}
        return _vmapped(self.__dict__["skeleton"], weights)(*inputs)


def as_array(output: Any) -> np.ndarray:
    """What a call gave, as NumPy has it."""
    return output.detach().numpy() if isinstance(output, Tensor) else np.asarray(output)
