"""What an ensemble takes and gives, as the protocol describes it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

import ensemble
from app.protocol import TensorSpec

DATATYPES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.float32: "FP32", torch.float64: "FP64",
    # JSON has no 16-bit numbers; a model in half precision takes float32 and rounds it itself.
    torch.float16: "FP32", torch.bfloat16: "FP32",
}  # fmt: skip


@dataclass(frozen=True)
class OutputSpec:
    """One statistic that a request may select.

    Attributes:
        name: as it is asked for.
        datatype: of the protocol.
        shape: -1 first for the batch.
        description, unit: what it is, for people.
        default: sent when nothing is selected.
        uses: the parameters that it depends on, and "target" if it is about one.
        keeps_members: whether every member's output of a row is needed at once.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    description: str
    unit: str
    default: bool
    uses: tuple[str, ...] = ()
    keeps_members: bool = False


def input_specs(made: ensemble.Ensemble) -> tuple[TensorSpec, ...]:
    """Its inputs, in their order."""
    return tuple(TensorSpec(spec.name, DATATYPES[spec.dtype], spec.shape) for spec in made.program.inputs)


def output_specs(made: ensemble.Ensemble) -> dict[str, OutputSpec]:
    """What may be asked of it, by name."""
    return {
        name: OutputSpec(
            name, DATATYPES[s.dtype], (-1, *shape), s.description, s.unit, s.default, s.uses, s.keeps_members
        )
        for name, (s, shape) in made.described_statistics().items()
    }


def target_specs(made: ensemble.Ensemble, taken: Collection[str]) -> dict[str, TensorSpec]:
    """Of each output that is about a target, by the output's name, what the target must be.

    Args:
        taken: names of inputs.
    """
    found = {}
    for output, (head, shape) in made.outputs.targets().items():
        # "target", or "policy.target" of several outputs; another name where the model has an input of this one.
        name = f"{output.removesuffix('log_prob')}target"
        name = f"{output}.target" if name in taken else name
        dtype = torch.int64 if made.task == "classification" else made.program.outputs[head.outputs[0]].dtype
        found[output] = TensorSpec(name, DATATYPES[dtype], (-1, *shape))
    return found
