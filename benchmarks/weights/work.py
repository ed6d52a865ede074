"""The work that is measured: a model, and requests of which each asks for, or brings, members of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import ensemble
from benchmarks.contexts.work import Transformer

# One that takes next to nothing beside what HTTP takes, and one of many small operations.
TITLES = {"mlp": "an MLP of 64-128-128-10", "transformer": "a transformer of 4 layers, 8 tokens of 32 features"}
RECIPE = ensemble.LowRank(scale=0.05)
OUTPUTS = ("label", "predictive_entropy")
# What a served ensemble has of its own; the requests have others.
_LOADED = 32


def build(path: Path, model: str = "mlp") -> None:
    """Save an ensemble of a network as small as one for digits: one of ``TITLES``."""
    torch.manual_seed(0)
    network: nn.Module = Transformer()
    shape: tuple[int, ...] = (8, 8)
    if model == "mlp":
        network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        shape = (64,)
    ensemble.perturb(
        network.eval(), RECIPE, members=_LOADED, example=torch.rand(4, *shape), task="classification"
    ).save(path)


def rows(made: ensemble.Ensemble, count: int) -> Tensor:
    """One row a request, (count, 1, ...)."""
    (spec,) = made.program.inputs
    return torch.rand(count, 1, *spec.trailing, generator=torch.Generator().manual_seed(count))


def factors(made: ensemble.Ensemble, members: int, number: int) -> dict[str, Tensor]:
    """One set of weights that a request may bring: rank-one factors of every matrix, for so many members."""
    generator = torch.Generator().manual_seed(number)
    return {
        f"{name}.{side}": 0.1 * torch.randn(members, size, 1, generator=generator)
        for name, weight in sorted(made.variants.trained.items())
        if weight.ndim == 2
        for side, size in zip(("left", "right"), weight.shape, strict=True)
    }


@dataclass(frozen=True)
class Request:
    """One request over HTTP, and what it must be answered."""

    body: bytes
    headers: tuple[tuple[str, str], ...]
    entropy: float


def perturbed(made: ensemble.Ensemble, members: int, seeds: Sequence[int], *, check: bool = True) -> list[Request]:
    """Requests that ask for a perturbation, each with its seed; V2, in JSON.

    Args:
        check: find out what the answers must be.
    """
    found = []
    for seed, row in zip(seeds, rows(made, len(seeds)), strict=True):
        parameters = {"recipe": RECIPE.name, "scale": RECIPE.scale, "seed": seed, "members": members}
        body = _body(row.numpy(), [], parameters)
        wanted = made.perturbed(RECIPE, members=members, seed=seed).predict(row) if check else None
        entropy = float(wanted.predictive_entropy[0]) if wanted is not None else float("nan")
        found.append(Request(json.dumps(body).encode(), (("content-type", "application/json"),), entropy))
    return found


def brought(made: ensemble.Ensemble, members: int, sets: Sequence[int]) -> list[Request]:
    """Requests that bring weights, each those of its number; V2, in bytes."""
    found = []
    for number, row in zip(sets, rows(made, len(sets)), strict=True):
        weights = factors(made, members, number)
        head = json.dumps(_body(row.numpy(), list(weights.items()), {}, binary=True)).encode()
        tail = b"".join([row.numpy().tobytes(), *(tensor.numpy().tobytes() for tensor in weights.values())])
        wanted = made.with_weights(weights).predict(row).predictive_entropy
        headers = (("content-type", "application/octet-stream"), ("inference-header-content-length", str(len(head))))
        found.append(Request(head + tail, headers, float(wanted[0])))
    return found


def _body(
    row: NDArray[np.float32],
    weights: Sequence[tuple[str, Tensor]],
    parameters: dict[str, object],
    *,
    binary: bool = False,
) -> dict[str, object]:
    tensors: list[dict[str, object]] = []
    for name, array in [("input", row), *((name, tensor.numpy()) for name, tensor in weights)]:
        tensor: dict[str, object] = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    return {"inputs": tensors, "outputs": [{"name": name} for name in OUTPUTS], "parameters": parameters}
