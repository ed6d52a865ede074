"""OpenVINO on a processor: by far the fastest for members whose weights all differ, and it needs no compiler.

The traced call is converted without weights, once for each shape; the weights are put in as constants where it will
run, so that OpenVINO can lay them out for its kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from ensemble.backends import folding, thin
from ensemble.backends.chunks import with_their_weights
from ensemble.backends.declined import Declined
from ensemble.backends.graphs import aten, is_functional
from ensemble.backends.indices import tell_of_bad_indices
from ensemble.backends.job import Job, Spec
from ensemble.backends.tracing import trace
from ensemble.errors import MemoryLimitError, ModelError, first_line
from ensemble.members import Members
from ensemble.memory import available, human
from ensemble.structured import LEFT

DEVICE = "cpu"
SUFFIXES = (".xml", ".bin")
PRECISIONS = ("float32", "bfloat16")
QUICK = True
chunks = with_their_weights
_DTYPES = {"float32", "int64", "int32", "int16", "int8", "uint8", "bool"}
_GROWING = {
    aten.mul.Tensor, aten.mul.Scalar, aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.prod.default,
    aten.prod.dim_int, aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar,
}  # fmt: skip
# Constants are kept as they are and once more as the kernels want them.
_COPIES = 1.2


def missing(device: torch.device) -> str:
    """Why it cannot be used here; empty if it can."""
    if device.type != "cpu":
        return "OpenVINO runs on the processor only"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install 'ensembled[openvino]'"
    return ""


@cache
def openvino() -> ModuleType:
    """The library, without its telemetry: importing it would already send an event."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    # An import of it then fails as if it were not installed, which OpenVINO provides for. Python means None to stand
    # here, though the annotation does not.
    sys.modules[name] = None  # type: ignore[assignment]  # None has it not imported
    try:
        ov = importlib.import_module("openvino")
        importlib.import_module("openvino.tools.ovc")
    finally:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
    return ov


def build(job: Job, target: Path, *, side_by_side: bool = False) -> None:
    """Convert a job to ``target`` with the suffixes. Runs in the worker.

    Args:
        side_by_side: as :func:`~ensemble.backends.tracing.trace` takes it.

    Raises:
        ModelError: it has numbers that OpenVINO would compute in another precision.
    """
    check(job)
    ov = openvino()
    try:
        exported, tensors = _exported(job, side_by_side, rewritten=not side_by_side)
    except ModelError:
        raise
    except Exception:
        # What a rewriting did not foresee costs its speed, and not the backend.
        exported, tensors = _exported(job, side_by_side, rewritten=False)
    root = logging.getLogger()
    level = root.level
    try:
        with torch.no_grad():
            model = ov.convert_model(exported)
    finally:
        # What it cannot convert leaves everybody's warnings switched off.
        root.setLevel(level)
    parameters = model.get_parameters()
    if len(parameters) != len(tensors):
        raise ModelError("OpenVINO leaves out an input of this model.")
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.set_partial_shape(ov.PartialShape(list(tensor.shape)))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, str(target.with_suffix(".xml")), compress_to_fp16=False)


def _exported(job: Job, side_by_side: bool, *, rewritten: bool) -> tuple[torch.export.ExportedProgram, list[Tensor]]:
    traced, tensors = trace(job, side_by_side=side_by_side)
    _check_integers(traced)
    tell_of_bad_indices(traced, len(job.shared) + len(job.own))
    if rewritten and is_functional(traced):
        rewrite(traced, job.chunk)
    thin.products(traced)
    return torch.export.export(traced, tuple(tensors)), tensors


def rewrite(traced: fx.GraphModule, members: int) -> None:
    """Write the vmapped call of so many members as OpenVINO computes it faster."""
    folding.fold(traced, members)
    thin.convolutions(traced)
    # What a thin convolution gives stands in the batch only now.
    folding.fold(traced, members)


def check(job: Job) -> None:
    """Raise if OpenVINO would compute in another precision.

    Raises:
        ModelError: so.
    """
    for spec in (*job.shared, *job.own, *job.inputs):
        if spec.dtype not in _DTYPES:
            raise ModelError(f"OpenVINO does not compute in {spec.dtype} on a processor ({spec.name}).")


def _check_integers(traced: fx.GraphModule) -> None:
    """Raise if integers may outgrow the 32 bits in which OpenVINO computes them, as hashes of ids do.

    Raises:
        ModelError: so.
    """
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype == torch.int64 and node.target in _GROWING:
            raise ModelError(
                f"OpenVINO computes integers in 32 bits, and this model's may outgrow them ({node.target})."
            )


class Compiled:
    """A converted model for each chunk of members, with their weights in it.

    Raises:
        MemoryLimitError: there is no room for one more copy of the weights.
    """

    def __init__(self, job: Job, target: Path, members: Members, precision: str) -> None:
        check(job)
        _require_memory(job, members)
        ov = openvino()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # A thread that stays on one core waits for whatever else runs there, although another is free.
            "ENABLE_CPU_PINNING": False,
        }
        self._chunk = job.chunk
        self._outputs = len(job.graph["outputs"])
        self._lock = threading.Lock()
        self._requests = []
        # What goes in with each call, beside the inputs.
        self._factors = [
            [members.stacked[s.name][start : start + job.chunk].numpy() for s in job.own if _stays_input(s, members)]
            for start in range(0, members.count, job.chunk)
        ]
        for start in range(0, members.count, job.chunk):
            model = _core().read_model(str(target.with_suffix(".xml")))
            _fill(ov, model, job, members, start)
            self._requests.append(_core().compile_model(model, "CPU", settings).create_infer_request())

    def __call__(self, start: int, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of members [start, start + chunk).

        Raises:
            Declined: these inputs hold what OpenVINO computes otherwise than PyTorch, or refuses.
        """
        arrays = [tensor.contiguous().numpy() for tensor in inputs]
        # It computes with 32 bits, and would take what is left of a larger number.
        if any(array.dtype == np.int64 and not _fits(array) for array in arrays):
            raise Declined("an input is beyond 32 bits")
        # A request is one call's at a time.
        try:
            with self._lock:
                number = start // self._chunk
                outputs = self._requests[number].infer([*self._factors[number], *arrays], share_inputs=True)
        except RuntimeError as error:
            # Some kernels refuse an index by themselves; what PyTorch says of it is for people.
            raise Declined(first_line(error)) from None
        if len(outputs) > self._outputs and outputs[self._outputs].any():
            raise Declined("an index is out of range")
        return tuple(torch.from_numpy(outputs[position]) for position in range(self._outputs))


def _fits(array: NDArray[np.int64]) -> bool:
    bounds = np.iinfo(np.int32)
    return array.size == 0 or bool(array.min() >= bounds.min and array.max() <= bounds.max)


@cache
def _core() -> Any:
    return openvino().Core()


def _stays_input(spec: Spec, members: Members) -> bool:
    """Whether a weight is no constant: a product that is scaled by one would take the scaling in, and then be computed
    by a kernel that is ten times slower."""
    factored = members.factored.get(spec.name.removesuffix(LEFT))
    return spec.name.endswith(LEFT) and factored is not None and factored.form == "multiplicative"


def _fill(ov: ModuleType, model: Any, job: Job, members: Members, start: int) -> None:
    """Put the weights of one chunk in the places of the model's leading parameters."""
    weights: list[Tensor | None] = [members.shared[spec.name] for spec in job.shared]
    weights += [
        None if _stays_input(spec, members) else members.stacked[spec.name][start : start + job.chunk]
        for spec in job.own
    ]
    for parameter, weight in zip(model.get_parameters(), weights, strict=False):
        if weight is None:
            continue
        constant = ov.opset13.constant(weight.contiguous().numpy(), shared_memory=True)
        for use in parameter.output(0).get_target_inputs():
            use.replace_source_output(constant.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _require_memory(job: Job, members: Members) -> None:
    # Each chunk's model has its own copy of what all share.
    need = _COPIES * (members.nbytes + members.shared_nbytes * (members.count // job.chunk - 1))
    free = available(torch.device("cpu"))
    if free is not None and need > free * 0.8:
        raise MemoryLimitError(
            f"OpenVINO would keep the members' weights once more, {human(need)}, and {human(free)} is free."
        )
