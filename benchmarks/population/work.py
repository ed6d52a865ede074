"""The step that is timed, in two ways that must agree: through the library, and member by member in plain PyTorch."""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time

import torch
from torch import Tensor, nn
from torch.func import functional_call

import ensemble

SIGMA, RATE = 0.05, 0.1


@dataclasses.dataclass(frozen=True)
class Work:
    """One network and its batch.

    Args:
        name: for people.
        network: untrained.
        inputs, labels: of a batch.
    """

    name: str
    network: nn.Module
    inputs: Tensor
    labels: Tensor

    def population(self, members: int) -> ensemble.Population:
        return ensemble.Population(
            self.network, members=members, sigma=SIGMA, learning_rate=RATE, example=self.inputs[:2]
        )

    def score(self, logits: Tensor) -> Tensor:
        """Mean log-likelihood of each member: (members, rows, classes) to (members,)."""
        chosen = logits.gather(-1, self.labels.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).mean(1)


def works(rows: int) -> dict[str, Work]:
    """The networks that are measured, on batches of so many rows."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    large = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    labels = torch.randint(10, (rows,))
    return {
        "small": Work("MLP 64-32-10", small, torch.rand(rows, 64), labels),
        "large": Work("MLP 784-512-512-10", large, torch.rand(rows, 784), labels),
    }


@dataclasses.dataclass(frozen=True)
class Found:
    """Seconds of the parts of one step, medians, and how the plain loop compares.

    Args:
        draw, evaluate, update: of the library's step.
        loop: of the plain loop's step, drawing and the update included.
        looped: how many members the loop was timed on; its time is scaled to all of them.
        difference: between both ways' fitness and gradient, relative to the largest magnitude.
    """

    draw: float
    evaluate: float
    update: float
    loop: float
    looped: int
    difference: float

    @property
    def step(self) -> float:
        """Seconds of the library's step."""
        return self.draw + self.evaluate + self.update


def measure(key: str, members: int, rows: int, repeats: int, looped: int) -> Found:
    """Time a step. For a process of its own.

    Args:
        looped: members that the plain loop is timed on.
    """
    work = works(rows)[key]
    population = work.population(members)
    looped = min(looped, members)
    difference = _difference(work, population, looped)
    parts: list[list[float]] = [[], [], [], []]
    for turn in range(repeats + 1):
        begun = time.perf_counter()
        collections.deque(population._drawing(population.step_seed, range(members)), maxlen=0)
        drawn = time.perf_counter()
        fitness = population.scores(work.score, work.inputs)
        scored = time.perf_counter()
        population.update(fitness)
        updated = time.perf_counter()
        _loop_step(work, looped)
        looped_at = time.perf_counter()
        # The first turn fills the caches.
        if turn:
            times = (drawn - begun, scored - drawn, updated - scored, (looped_at - updated) * members / looped)
            for found, seconds in zip(parts, times, strict=True):
                found.append(seconds)
    draw, evaluate, update, loop = (statistics.median(found) for found in parts)
    return Found(draw, evaluate, update, loop, looped, difference)


def _loop_step(work: Work, members: int) -> dict[str, Tensor]:
    """What one writes first: each member's full weights, one member after the other, and the sum of their noise."""
    parameters = {name: p.detach() for name, p in work.network.named_parameters()}
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    worth, generators = [], []
    for pair in range(members // 2):
        for sign in (1, -1):
            noise = _noise(parameters, torch.Generator().manual_seed(pair))
            own = {name: p + sign * SIGMA * noise[name] for name, p in parameters.items()}
            with torch.no_grad():
                logits = functional_call(work.network, own, (work.inputs,))
            worth.append(float(work.score(logits.unsqueeze(0))))
            generators.append((pair, sign))
    shaped = torch.tensor(worth).argsort().argsort() / (members - 1) - 0.5
    for value, (pair, sign) in zip(shaped.tolist(), generators, strict=True):
        noise = _noise(parameters, torch.Generator().manual_seed(pair))
        for name, total in totals.items():
            total.add_(noise[name], alpha=sign * value / (members * SIGMA))
    return {name: p + RATE * totals[name] for name, p in parameters.items()}


def _noise(parameters: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    found = {}
    for name, p in parameters.items():
        if p.ndim < 2:
            found[name] = torch.randn(p.shape, generator=generator)
        else:
            left, right = (torch.randn(size, 1, generator=generator) for size in p.shape)
            found[name] = left @ right.T
    return found


def _difference(work: Work, population: ensemble.Population, members: int) -> float:
    """How far the library's scores and update are from those of its members as plain modules."""
    few = work.population(members)
    fitness = few.scores(work.score, work.inputs)
    reference = few.weights()
    own, totals = [], {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in reference.items()}
    shaped = fitness.argsort().argsort() / (members - 1) - 0.5
    for index in range(members):
        weights = few.member(index)
        with torch.no_grad():
            own.append(work.score(functional_call(work.network, weights, (work.inputs,)).unsqueeze(0)))
        for name, total in totals.items():
            total += shaped[index] * (weights[name] - reference[name]).double() / (members * SIGMA**2)
    gradient = few.gradient(fitness)
    pairs: list[tuple[Tensor, Tensor]] = [(fitness, torch.cat(own)), *((gradient[n], totals[n]) for n in totals)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
