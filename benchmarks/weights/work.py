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

CLASSES, PIXELS, HIDDEN = 10, 64, 128
RECIPE = ensemble.LowRank(scale=0.05)
OUTPUTS = ("label", "predictive_entropy")
# What a served ensemble has of its own; the requests have others.
_LOADED = 32


def build(path: Path) -> None:
    """Save an ensemble of a network as small as one for digits."""
    torch.manual_seed(0)
    layers = [nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)]
    ensemble.perturb(
        nn.Sequential(*layers), RECIPE, members=_LOADED, example=torch.rand(4, PIXELS), task="classification"
    ).save(path)


def rows(count: int) -> Tensor:
    """One row a request."""
    return torch.rand(count, 1, PIXELS, generator=torch.Generator().manual_seed(count))


def factors(members: int, number: int) -> dict[str, Tensor]:
    """One set of weights that a request may bring: rank-one factors of every matrix, for so many members."""
    generator = torch.Generator().manual_seed(number)
    sizes = {"0.weight": (HIDDEN, PIXELS), "2.weight": (HIDDEN, HIDDEN), "4.weight": (CLASSES, HIDDEN)}
    return {
        f"{name}.{side}": 0.1 * torch.randn(members, size, 1, generator=generator)
        for name, shape in sizes.items()
        for side, size in zip(("left", "right"), shape, strict=True)
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
    for seed, row in zip(seeds, rows(len(seeds)), strict=True):
        parameters = {"recipe": RECIPE.name, "scale": RECIPE.scale, "seed": seed, "members": members}
        body = _body(row.numpy(), [], parameters)
        wanted = made.perturbed(RECIPE, members=members, seed=seed).predict(row) if check else None
        entropy = float(wanted.predictive_entropy[0]) if wanted is not None else float("nan")
        found.append(Request(json.dumps(body).encode(), (("content-type", "application/json"),), entropy))
    return found


def brought(made: ensemble.Ensemble, members: int, sets: Sequence[int]) -> list[Request]:
    """Requests that bring weights, each those of its number; V2, in bytes."""
    found = []
    for number, row in zip(sets, rows(len(sets)), strict=True):
        weights = factors(members, number)
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
