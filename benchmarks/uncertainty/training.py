"""Training many nets of one architecture in one loop: all nets of all splits of a data set.

Every net has its own initial weights, its own order of the rows and its own stopping point, so it comes out as it would
alone; only its steps are taken in the same calls as the others'.
"""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch import Tensor

from benchmarks.uncertainty.networks import HIDDEN, Head, Weights, dropout, fresh, outputs, run, variance


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a net is trained.

    Args:
        epochs: passes through the training rows.
        rate: Adam's learning rate at the start; it falls to 0 along a cosine.
        decay: decoupled weight decay.
        batch: rows of a step.
        every: epochs between looks at the held-out rows; the weights that did best there are kept.
    """

    epochs: int
    rate: float
    decay: float
    batch: int = 32
    every: int = 2


@dataclasses.dataclass(frozen=True)
class Trained:
    """Nets of all splits.

    Args:
        weights: of ``splits · nets`` nets, those of a split one after the other.
        nets: for each split.
        steps: gradient steps that each took.
        seconds: that all took together.
        best: epoch whose weights were kept, (splits · nets,).
    """

    weights: Weights
    nets: int
    steps: int
    seconds: float
    best: Tensor

    def of(self, split: int, count: int | None = None) -> Weights:
        """The first nets of a split, by default all."""
        start = split * self.nets
        return {name: w[start : start + (self.nets if count is None else count)] for name, w in self.weights.items()}


def losses(head: Head, found: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of each net, up to a constant.

    Args:
        found: (nets, rows, outputs).
        targets: (nets, rows).
    """
    if head == "classes":
        return torch.nn.functional.cross_entropy(found.movedim(-1, 1), targets, reduction="none").mean(1)
    error = (found[..., 0] - targets).square()
    if head == "point":
        return error.mean(1) / 2
    spread = variance(found[..., 1])
    return (error / spread + spread.log()).mean(1) / 2


def train(
    data: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    *,
    nets: int,
    head: Head,
    schedule: Schedule,
    seed: int,
    hidden: int = HIDDEN,
    classes: int = 0,
    rate: float = 0.0,
) -> Trained:
    """Train so many nets for each split.

    Args:
        data, held: inputs (splits, rows, features) and targets (splits, rows).
        rate: of dropout, while training.
    """
    begun = time.perf_counter()
    x, y = data
    splits, rows, features = x.shape
    count = splits * nets
    split = torch.arange(splits).repeat_interleave(nets).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    weights = fresh(count, features, outputs(head, classes), hidden, generator)
    for weight in weights.values():
        weight.requires_grad_()
    held_x, held_y = (part.repeat_interleave(nets, 0) for part in held)
    optimizer = torch.optim.AdamW(weights.values(), lr=schedule.rate, weight_decay=schedule.decay, fused=True)
    # Batches of one size, so that every step is the same work: what is left over is in the next order.
    batches = max(1, rows // schedule.batch)
    size = min(rows, schedule.batch)
    best = torch.full((count,), math.inf)
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    when = torch.zeros(count, dtype=torch.long)
    for epoch in range(schedule.epochs):
        order = torch.rand(count, rows, generator=generator).argsort(1)
        for step in range(batches):
            done = (epoch + step / batches) / schedule.epochs
            optimizer.param_groups[0]["lr"] = schedule.rate * (1 + math.cos(math.pi * done)) / 2
            chosen = order[:, step * size : (step + 1) * size]
            masks = dropout(rate, count, size, features, hidden, generator) if rate else None
            loss = losses(head, run(weights, x[split, chosen], masks), y[split, chosen]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (epoch + 1) % schedule.every and epoch + 1 < schedule.epochs:
            continue
        with torch.no_grad():
            reached = losses(head, run(weights, held_x), held_y)
            better = reached < best
            best = torch.where(better, reached, best)
            when[better] = epoch + 1
            for name, weight in weights.items():
                kept[name][better] = weight[better]
    return Trained(kept, nets, schedule.epochs * batches, time.perf_counter() - begun, when)
