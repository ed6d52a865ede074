"""What a backend compiles: one program for a number of rows and of members, without any weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ensemble.errors import ModelError
from ensemble.members import Members
from ensemble.program.graph import from_json, to_json
from ensemble.program.program import Program, plain

# Part of every key: a newer version of what builds must not take what an older one built.
FORMAT = 7


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor without data."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @staticmethod
    def of(name: str, tensor: Tensor) -> Spec:
        """The spec of a tensor."""
        return Spec(name, plain(tensor.dtype), tuple(tensor.shape))

    def empty(self, device: torch.device) -> Tensor:
        """A tensor of this spec; its values are anything."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.empty(self.shape, dtype=dtype, device=device)


@dataclasses.dataclass(frozen=True)
class Job:
    """A call to be compiled: ``chunk`` members on ``rows`` rows.

    Attributes:
        backend: which compiles it.
        rows, chunk: for how many.
        device: where it will run, "cpu" or "cuda".
        graph: what one member computes, as :func:`ensemble.program.graph.to_json` writes it.
        shared: weights that all members share, in the order in which the call takes them.
        own: weights of ``chunk`` members, each with a leading member dimension.
        inputs: the flat inputs.
        threads: of one operation, which Inductor writes into its loops on a processor; 0 where it does not matter.
        tf32: whether a GPU may round products, and convolutions, to TensorFloat-32, which Inductor writes into its
            kernels; False on a processor, where it does not matter.
    """

    backend: str
    rows: int
    chunk: int
    device: str
    graph: dict[str, Any]
    shared: tuple[Spec, ...]
    own: tuple[Spec, ...]
    inputs: tuple[Spec, ...]
    threads: int = 0
    tf32: tuple[bool, bool] = (False, False)

    @staticmethod
    def of(backend: str, program: Program, members: Members, inputs: list[Tensor], chunk: int) -> Job:
        """The job for these members, and for inputs like these.

        Raises:
            ModelError: the program is a live module, which has no graph.
        """
        if program.graph is None:
            raise ModelError("A live module is not compiled; make the ensemble without live=True.")
        names = program.weight_names
        first = members.slice(0, chunk)
        return Job(
            backend,
            rows=inputs[0].shape[0],
            chunk=chunk,
            device=inputs[0].device.type,
            graph=to_json(program.graph),
            shared=tuple(Spec.of(name, members.shared[name]) for name in names if name in members.shared),
            own=tuple(Spec.of(name, first[name]) for name in names if name in members.stacked),
            inputs=tuple(Spec.of(s.name, tensor) for s, tensor in zip(program.inputs, inputs, strict=True)),
            threads=torch.get_num_threads() if backend == "inductor" and inputs[0].device.type == "cpu" else 0,
            tf32=tf32_allowed() if inputs[0].device.type == "cuda" else (False, False),
        )

    def read_graph(self) -> fx.Graph:
        """The graph of one member."""
        return from_json(self.graph, torch.device(self.device))

    def to_json(self) -> str:
        """As text on one line."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Job:
        """Read back what :meth:`to_json` wrote."""
        values = json.loads(text)
        for key in ("shared", "own", "inputs"):
            values[key] = tuple(Spec(s["name"], s["dtype"], tuple(s["shape"])) for s in values[key])
        return Job(**values | {"tf32": tuple(values["tf32"])})

    @property
    def key(self) -> str:
        """A name for what it compiles to on this machine with these versions."""
        return digest(self.to_json())


def tf32_allowed() -> tuple[bool, bool]:
    """Whether a GPU may round products, and convolutions, to TensorFloat-32 in this process."""
    # PyTorch's older settings cannot be read where one of these was set.
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made when torch is imported
    return torch.backends.cuda.matmul.fp32_precision == "tf32", convolutions.fp32_precision == "tf32"


def digest(text: str) -> str:
    """A name for a text, on this machine and with these versions."""
    return hashlib.sha256("\n".join([text, *machine()]).encode()).hexdigest()[:32]


@cache
def machine() -> tuple[str, ...]:
    """What compiled code depends on, besides the program: versions, the processor, the graphics card."""
    processor = ""
    with_flags = Path("/proc/cpuinfo")
    if with_flags.exists():
        lines = with_flags.read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        processor += next((line for line in lines if line.startswith("model name")), "")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return (str(FORMAT), torch.__version__, _openvino_version(), platform.machine(), processor, card)


def _openvino_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""
