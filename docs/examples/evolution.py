"""A classifier of handwritten digits that is trained without a gradient: by the scores of 1,024 members a step.

    python docs/examples/evolution.py

prints the accuracy against steps; with --save FILE.pt it keeps the network's weights, for `ensembled build`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from digits import data
from torch import Tensor, nn

import ensemble

MEMBERS = 1024
BATCH = 128


def network() -> nn.Module:
    """8×8 grey values, (batch, 1, 8, 8), to the logits of ten classes; 2,410 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def population(images: Tensor, members: int = MEMBERS) -> ensemble.Population:
    """Untrained members around a network with random weights."""
    torch.manual_seed(0)
    return ensemble.Population(
        network(),
        members=members,
        sigma=0.05,
        learning_rate=lambda step: 0.05 * 0.985**step,
        optimizer="adam",
        example=images[:4],
    )


def train(training: ensemble.Population, images: Tensor, labels: Tensor, steps: int) -> Iterator[tuple[int, float]]:
    """Train it; after each step (its number, the members' mean log-likelihood in nats)."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        rows = torch.randperm(len(images), generator=generator)[:BATCH]

        def log_likelihood(logits: Tensor, wanted: Tensor = labels[rows]) -> Tensor:
            chosen = logits.gather(-1, wanted.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
            return (chosen - logits.logsumexp(-1)).mean(1)

        fitness = training.scores(log_likelihood, images[rows])
        training.update(fitness)
        yield step, float(fitness.mean())


def accuracy(training: ensemble.Population, images: Tensor, labels: Tensor) -> float:
    """Of the network that the population is around."""
    model = network()
    model.load_state_dict(training.weights())
    with torch.no_grad():
        return float((model(images).argmax(-1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200, help="updates of the weights (default: 200)")
    parser.add_argument("--every", type=int, default=20, help="steps between two lines (default: 20)")
    parser.add_argument("--save", type=Path, metavar="FILE.pt", help="where to keep the trained state dict")
    args = parser.parse_args()
    images, labels, test_images, test_labels = data()
    training = population(images)
    print(training)
    print(f"{'step':>9}  {'log-likelihood, nats':>20}  {'test accuracy':>13}  {'seconds':>7}")
    begun = time.perf_counter()
    for step, fitness in train(training, images, labels, args.steps):
        if step % args.every == 0 or step == args.steps:
            found = accuracy(training, test_images, test_labels)
            seconds = time.perf_counter() - begun
            print(f"{step:>4}/{args.steps:<4}  {fitness:>20.3f}  {found:>13.1%}  {seconds:>7.1f}", flush=True)
    if args.save:
        torch.save(training.weights(), args.save)
        print(f"kept: {args.save}")


if __name__ == "__main__":
    main()
