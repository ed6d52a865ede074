"""An ensemble as the service sees it: named arrays in, named arrays out, and how to describe both."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ensemble
from app.protocol import TensorSpec

Arrays = Mapping[str, NDArray[Any]]
# Called with what is being done, and how much of it is done (0..1).
Progress = Callable[[str, float], None]

_DATATYPES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.float32: "FP32", torch.float64: "FP64",
    # JSON has no 16-bit numbers; a model in half precision takes float32 and rounds it itself.
    torch.float16: "FP32", torch.bfloat16: "FP32",
}  # fmt: skip
_WARM_SECONDS = 5.0


@dataclass(frozen=True)
class OutputSpec:
    """One statistic that a request may select.

    Attributes:
        name: as it is asked for.
        datatype: of the protocol.
        shape: -1 first for the batch.
        description, unit: what it is, for people.
        default: sent when nothing is selected.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    description: str
    unit: str
    default: bool


@dataclass(frozen=True)
class Served:
    """A model that is loaded, checked and warm. Everything but its description belongs to the engine's thread.

    Attributes:
        name, version: under which it is asked for.
        ensemble: what answers.
        max_batch: rows in one call; more are answered in slices.
        inputs: what it takes.
        outputs: what may be asked of it, by name.
        error: largest relative difference from the loop over members, found when it was loaded.
        seconds: measured time of one call, by rows.
        example_inputs, example_outputs: one row and its real answer, for the documentation.
    """

    name: str
    version: str
    ensemble: ensemble.Ensemble
    max_batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: dict[str, OutputSpec]
    error: float = 0.0
    seconds: dict[int, float] = field(default_factory=dict)
    example_inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    example_outputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def defaults(self) -> tuple[str, ...]:
        """What is sent when nothing is selected."""
        return tuple(name for name, output in self.outputs.items() if output.default)

    @property
    def details(self) -> dict[str, Any]:
        """What every answer says so that it can be replayed."""
        return {"members": len(self.ensemble), "seed": self.ensemble.origin.seed}

    def infer(self, inputs: Arrays, outputs: Collection[str]) -> dict[str, NDArray[Any]]:
        """Answer a batch. Runs on the engine's thread.

        Args:
            inputs: an array for each input, of its datatype, all with the same number of rows.
            outputs: names of statistics.
        """
        rows = next(iter(inputs.values())).shape[0]
        wanted = list(outputs)
        if rows <= self.max_batch:
            return self._infer(inputs, wanted)
        pieces = [
            self._infer({name: array[start : start + self.max_batch] for name, array in inputs.items()}, wanted)
            for start in range(0, rows, self.max_batch)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in wanted}

    def _infer(self, inputs: Arrays, outputs: list[str]) -> dict[str, NDArray[Any]]:
        tensors = {spec.name: to_tensor(inputs[spec.name]) for spec in self.inputs}
        prediction = self.ensemble.predict(tensors, statistics=outputs)
        found = prediction.flat()
        return {name: found[name].cpu().numpy() for name in outputs}


def load(
    name: str,
    version: str,
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    max_batch: int,
    progress: Progress,
) -> Served:
    """Load a saved ensemble, check it against the loop over members, and run it until it is warm.

    Raises:
        ensemble.EnsembledError: it cannot be loaded or gives wrong answers; the text says why.
    """
    made = ensemble.load(
        path,
        device=device,
        dtype=dtype,
        progress=lambda done, total: progress("drawing members", done / total),
    )
    served = Served(name, version, made, max_batch, _input_specs(made), _output_specs(made))
    progress("checking against the loop over members", 0.0)
    error = made.check()
    example = dict(zip((s.name for s in served.inputs), map(to_array, made.example(1)), strict=True))
    seconds = _warm(served, progress)
    answer = served.infer(example, served.defaults)
    return Served(
        name, version, made, max_batch, served.inputs, served.outputs, error, seconds, example, answer
    )  # fmt: skip


def _warm(served: Served, progress: Progress) -> dict[int, float]:
    """Run growing batches, each twice, until the largest or until the time is spent."""
    sizes = [1 << power for power in range(served.max_batch.bit_length()) if 1 << power <= served.max_batch]
    seconds: dict[int, float] = {}
    begun = time.perf_counter()
    for number, rows in enumerate(sizes):
        progress(f"warming up, {rows} rows", number / len(sizes))
        tensors = served.ensemble.example(rows)
        arrays = dict(zip((s.name for s in served.inputs), map(to_array, tensors), strict=True))
        for _ in range(2):
            start = time.perf_counter()
            served.infer(arrays, served.defaults)
            seconds[rows] = time.perf_counter() - start
        if time.perf_counter() - begun + 4 * seconds[rows] > _WARM_SECONDS:
            break
    return seconds


def _input_specs(made: ensemble.Ensemble) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, _DATATYPES[spec.dtype], spec.shape) for spec in made.program.inputs)


def _output_specs(made: ensemble.Ensemble) -> dict[str, OutputSpec]:
    return {
        name: OutputSpec(name, _DATATYPES[s.dtype], (-1, *shape), s.description, s.unit, s.default)
        for name, (s, shape) in made.described_statistics().items()
    }


def to_tensor(array: NDArray[Any]) -> Tensor:
    """An array of the protocol as a tensor."""
    # Arrays that came as bytes are read-only and may be unaligned, which PyTorch must not be given.
    return torch.from_numpy(np.require(array, requirements=["A", "W", "C", "E"]))


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array of the protocol."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    array: NDArray[Any] = (tensor.float() if half else tensor).cpu().numpy()
    return array
