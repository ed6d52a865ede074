"""The library alone: a number of one-row requests evaluated one at a time, and together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ensemble
from benchmarks.weights.work import OUTPUTS, RECIPE, factors, rows

# One row each; as many as a call of the service takes.
REQUESTS = 64
_REPEATS = 7


def measure(path: Path, members: int, keys: int, kind: str) -> tuple[float, float]:
    """Requests a second one at a time, and together. For a process of its own.

    Args:
        members: of each request.
        keys: how many different members the requests have.
        kind: "kept", perturbations that were drawn before; "drawn", ones that are drawn anew; "weights", given ones.
    """
    made = ensemble.load(path)
    variants = made.variants
    x = rows(made, REQUESTS)
    settled, structure = variants.perturbed(RECIPE, members)
    seeds = iter(range(10**9))

    def draw() -> list[dict[str, torch.Tensor]]:
        return [variants.draw(settled, structure, next(seeds)) for _ in range(keys)]

    own = draw()
    if kind == "weights":
        given = [variants.brought(factors(made, members, number)) for number in range(keys)]
        structure, own = given[0][0], [weights for _, weights in given]

    def alone() -> torch.Tensor:
        mine = draw() if kind == "drawn" else own
        parts = [
            variants.predict(structure, [mine[number % keys]], [[row]], list(OUTPUTS)) for number, row in enumerate(x)
        ]
        return torch.cat([part.predictive_entropy for part in parts])

    def together() -> torch.Tensor:
        mine = draw() if kind == "drawn" else own
        groups = [[torch.cat([row for number, row in enumerate(x) if number % keys == key])] for key in range(keys)]
        found = variants.predict(structure, mine, groups, list(OUTPUTS)).predictive_entropy
        order = [number for key in range(keys) for number in range(key, REQUESTS, keys)]
        return found[torch.tensor(order).argsort()]

    if kind != "drawn":
        torch.testing.assert_close(alone(), together(), rtol=1e-5, atol=1e-6)
    times: dict[Callable[[], torch.Tensor], list[float]] = {alone: [], together: []}
    # In turns, so that what else the machine does hits both.
    for _ in range(_REPEATS):
        for way, seconds in times.items():
            way()
            begun = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - begun)
    one, other = (REQUESTS / statistics.median(seconds) for seconds in times.values())
    return one, other
