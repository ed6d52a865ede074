"""The models that are asked, and the library alone: rows together, one at a time, and in plain PyTorch."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

import ensemble

ROWS = 64
CONTEXT = 4
_REPEATS = 7
# What a row is: pixels, or tokens with features.
SHAPES = {"full": (64,), "low_rank": (64,), "transformer": (8, 8)}
TITLES = {
    "full": "full weights of 64-16-10",
    "low_rank": "rank-2 deltas on 64-256-256-10",
    "transformer": "rank-2 deltas on a transformer of 4 layers",
}


class Transformer(nn.Module):
    """A classifier of short sequences: few numbers, many operations."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 10)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(self.first(input)).mean(1))
        return logits


def networks(kind: str) -> tuple[nn.Module, ensemble.Hypernetwork]:
    """A target and its hypernetwork: "full" weights of a small one, or low-rank deltas on a larger or a deeper one."""
    torch.manual_seed(0)
    if kind == "full":
        target: nn.Module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        return target, ensemble.Hypernetwork(target, CONTEXT, hidden=(32,))
    if kind == "low_rank":
        target = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    else:
        target = Transformer()
    made = ensemble.Hypernetwork(target, CONTEXT, hidden=(32,), rank=2)
    for head in made.heads:
        assert isinstance(head, nn.Linear)
        # Deltas are zero at first, and zeros would hide a mistake.
        nn.init.normal_(head.weight, std=0.1)
    return target.eval(), made


def asked(kind: str, contexts: int) -> dict[str, np.ndarray]:
    """Rows with so many different contexts, by the names of the inputs."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(contexts, CONTEXT, generator=generator)
    which = torch.arange(ROWS) % contexts
    return {"input": torch.rand(ROWS, *SHAPES[kind], generator=generator).numpy(), "context": codes[which].numpy()}


def make(kind: str, members: int) -> ensemble.Ensemble:
    """The model whose weights follow the context: one, or perturbations of its hypernetwork."""
    target, hypernetwork = networks(kind)
    recipe = ensemble.LowRank(0.05, include="hypernetwork.*") if members > 1 else None
    return ensemble.generate(
        hypernetwork,
        target,
        context="context",
        example=(torch.rand(4, *SHAPES[kind]), torch.randn(4, CONTEXT)),
        recipe=recipe,
        members=members if members > 1 else None,
        task="classification",
    )


def build(kind: str, members: int, path: Path) -> None:
    """Save it. For a process of its own."""
    make(kind, members).save(path)


def answers(path: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    """What the library gives for rows, (rows, classes). For a process of its own."""
    given = {name: torch.from_numpy(array) for name, array in rows.items()}
    found: np.ndarray = ensemble.load(path).predict(given, statistics=["mean"]).mean.numpy()
    return found


def measure(kind: str, members: int, contexts: int, path: Path) -> tuple[float, float, float]:
    """Rows a second: in plain PyTorch one at a time, by this library one at a time, and together. For a process of its
    own.

    Args:
        path: where it was saved.
    """
    made = ensemble.load(path)
    made.measure((1, ROWS), seconds=4)
    x, codes = (torch.from_numpy(array) for array in asked(kind, contexts).values())
    target, hypernetwork = networks(kind)
    modules = [member_of(hypernetwork, made, index) for index in range(members)]

    def plain() -> Tensor:
        with torch.no_grad():
            return torch.cat([plainly(modules, target, x[i : i + 1], codes[i : i + 1]) for i in range(ROWS)])

    def alone() -> Tensor:
        return torch.cat([made.predict(x[i : i + 1], codes[i : i + 1], statistics=["mean"]).mean for i in range(ROWS)])

    def together() -> Tensor:
        mean: Tensor = made.predict(x, codes, statistics=["mean"]).mean
        return mean

    for way in (alone, together):
        torch.testing.assert_close(way(), plain(), rtol=1e-4, atol=1e-5)
    times: dict[Callable[[], Tensor], list[float]] = {plain: [], alone: [], together: []}
    # In turns, so that what else the machine does hits all.
    for _ in range(_REPEATS):
        for way, seconds in times.items():
            way()
            begun = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - begun)
    one, ours, all_ = (ROWS / statistics.median(seconds) for seconds in times.values())
    return one, ours, all_


def member_of(hypernetwork: nn.Module, made: ensemble.Ensemble, index: int) -> nn.Module:
    """A member's hypernetwork as a plain module."""
    module = copy.deepcopy(hypernetwork)
    prefix = "hypernetwork."
    state = made.member(index)
    module.load_state_dict({n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)})
    return module.eval()


def plainly(hypernetworks: list[nn.Module], target: nn.Module, row: Tensor, code: Tensor) -> Tensor:
    """What one writes first: the weights of the context, put into the target, for each member."""
    parameters = dict(target.named_parameters())
    total = torch.zeros(1, 10)
    for hypernetwork in hypernetworks:
        own = {}
        for name, value in hypernetwork(code).items():
            own[name] = parameters[name] + value[0][0] @ value[1][0].T if isinstance(value, tuple) else value[0]
        total += functional_call(target, own, (row,)).softmax(-1)
    return total / len(hypernetworks)
