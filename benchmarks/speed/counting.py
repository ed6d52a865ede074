"""What a batch through all members takes at least: flops as PyTorch counts them, bytes from the weights' shapes.

Both are a part that all members share and a part for each member: a product with a shared weight before the first
perturbed layer is computed once, a trained weight is read once. So they are counted on four members and hold for any
number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import ensemble
from benchmarks.models import MODELS, Case
from ensemble.compatibility import Row

_COUNTED = 4


@dataclasses.dataclass(frozen=True)
class Count:
    """Of one batch through all members, called at once.

    Args:
        flops, nbytes: of flops, and of bytes of weights that must be read: (shared by all members, for each member).
    """

    flops: tuple[float, float]
    nbytes: tuple[float, float]

    def of(self, members: int) -> tuple[float, float]:
        """Bytes and flops of so many members."""
        return self.nbytes[0] + members * self.nbytes[1], self.flops[0] + members * self.flops[1]


@dataclasses.dataclass(frozen=True)
class Size:
    """What decides whether something fits.

    Args:
        member: bytes of one member's weights in full.
        shared, own: bytes of this library's weights for a recipe: once, and for each member.
        activation: bytes of the largest value in a call of one member with one row.
    """

    member: int
    shared: dict[str, int]
    own: dict[str, int]
    activation: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model before anything is timed: its name, its size, and counts by recipe and rows."""

    name: str
    size: Size
    counts: dict[str, dict[int, Count]]


def facts_of(model: str, recipes: Sequence[str], batches: Sequence[int]) -> Facts:
    """Of one of :data:`benchmarks.models.MODELS`.

    Raises:
        MissingModelError: it cannot be had here.
    """
    case = MODELS[model]()
    made = {recipe: case.ensemble(recipe, _COUNTED) for recipe in recipes}
    counts = {recipe: {rows: count(case, each, rows) for rows in batches} for recipe, each in made.items()}
    return Facts(case.name, size(case, made), counts)


def count(case: Case, made: ensemble.Ensemble, rows: int) -> Count:
    """Count a batch.

    Args:
        made: four members of the case.
        rows: of the batch.
    """
    inputs = case.inputs(rows)
    # shared + 4 each, and twice (shared + 2 each).
    once, twice = _flops(made, inputs, _COUNTED), _flops(made, inputs, _COUNTED // 2)
    shared = twice - once
    reads = embedding_reads(case.module, inputs)
    weights = ensemble.compatibility(made)
    parts = [_parts(weight, made.dtype.itemsize, *reads.get(weight.name, (1.0, 0))) for weight in weights]
    return Count(
        (shared, (once - shared) / _COUNTED),
        (sum(part[0] for part in parts), sum(part[1] for part in parts)),
    )


def size(case: Case, made: Mapping[str, ensemble.Ensemble]) -> Size:
    """What one model's members take.

    Args:
        made: four members by each recipe.
    """
    shared, own = {}, {}
    for recipe, each in made.items():
        parts = [_parts(weight, each.dtype.itemsize) for weight in ensemble.compatibility(each)]
        shared[recipe] = int(sum(part[0] for part in parts))
        own[recipe] = int(sum(part[1] for part in parts))
    largest = _Largest()
    with torch.no_grad(), largest:
        case.module(*case.inputs(1))
    member = sum(p.numel() * p.element_size() for p in case.module.parameters())
    return Size(member, shared, own, largest.nbytes)


def _flops(made: ensemble.Ensemble, inputs: Sequence[Tensor], chunk: int) -> int:
    with FlopCounterMode(display=False) as counter:
        made(*inputs, chunk=chunk)
    return int(counter.get_total_flops())


def _parts(row: Row, itemsize: int, share: float = 1.0, width: int = 0) -> tuple[float, float]:
    """Bytes of a weight that are read for all members together, and for each.

    Args:
        row: of the compatibility report on an ensemble of four members.
        itemsize: bytes of a number.
        share: how much of its rows is read: not every entry of an embedding is looked up.
        width: of an embedding's entries, whose right factor is read in full.
    """
    if row.how == "shared":
        return share * row.nbytes, 0.0
    if row.how != "factored":
        return 0.0, share * row.nbytes / _COUNTED
    trained = math.prod(row.shape) * itemsize
    own = (row.nbytes - trained) / _COUNTED
    right = own * width / (row.shape[0] + width) if width else 0.0
    return share * trained, share * (own - right) + right


def embedding_reads(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, tuple[float, int]]:
    """Of each embedding's weight, the share of its entries that these inputs look up, and an entry's width."""
    found: dict[str, tuple[float, int]] = {}
    hooks = []

    def watch(name: str, layer: nn.Embedding) -> None:
        def hook(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
            found[f"{name}.weight"] = (given[0].unique().numel() / layer.num_embeddings, layer.embedding_dim)

        hooks.append(layer.register_forward_hook(hook))

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding):
            watch(name, layer)
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found


class _Largest(TorchDispatchMode):
    """Sees every operation and keeps the largest size of a result that has memory of its own: a transposed weight is no
    larger for more rows."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            value.untyped_storage().data_ptr() for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)
        }
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self.nbytes = max(self.nbytes, value.numel() * value.element_size())
        return result
