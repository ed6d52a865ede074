"""Handwritten digits turned by any angle, read by a small network whose weights follow the angle.

    python docs/examples/hypernetwork.py models/turned/1

trains a hypernetwork and what it is compared with, prints their test accuracies, and saves the model with 32 members,
perturbations of the hypernetwork: the angle, in degrees, is an input beside the image, and each row of a batch is
answered by the weights of its own angle.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from digits import data
from torch import Tensor, nn
from torch.nn import functional

import ensemble

STEPS = 1500
MEMBERS = 32
RECIPE = ensemble.LowRank(0.05, include="hypernetwork.*")


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Images (n, 1, 8, 8), each turned by its own angle (n,)."""
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    matrices = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def angles(count: int, generator: torch.Generator) -> Tensor:
    """Uniform, in degrees."""
    return torch.rand(count, generator=generator) * 360


def circle(degrees: Tensor) -> Tensor:
    """An angle as four numbers that do not jump at 360 degrees: (n,) to (n, 4)."""
    radians = torch.deg2rad(degrees).unsqueeze(1)
    return torch.cat([radians.cos(), radians.sin(), (2 * radians).cos(), (2 * radians).sin()], 1)


def network(hidden: int = 16, inputs: int = 64) -> nn.Module:
    """The small network: with 16 hidden units 1,210 weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class WithoutAngle(nn.Module):
    """One network for all angles."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = network(hidden)

    def forward(self, image: Tensor, angle: Tensor) -> Tensor:
        logits: Tensor = self.body(image)
        return logits


class AngleAsInput(nn.Module):
    """One network that is told the angle."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = network(hidden, 68)

    def forward(self, image: Tensor, angle: Tensor) -> Tensor:
        logits: Tensor = self.body(torch.cat([image.flatten(1), circle(angle)], 1))
        return logits


class WeightsOfAngle(nn.Module):
    """The hypernetwork: an angle (n,) to the small network's weights."""

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.body = ensemble.Hypernetwork(target, code_size=4, hidden=(32,))

    def forward(self, angle: Tensor) -> Any:
        return self.body(circle(angle))


def contextual() -> ensemble.Contextual:
    """The small network with generated weights, untrained."""
    target = network()
    example = (torch.zeros(2, 1, 8, 8), torch.zeros(2))
    return ensemble.Contextual(WeightsOfAngle(target), target, context="angle", example=example)


def train(model: nn.Module, steps: int = STEPS) -> nn.Module:
    """Train on digits turned by random angles."""
    images, labels, _, _ = data()
    # The target's own weights are replaced by generated ones and need no training.
    parameters = [p for name, p in model.named_parameters() if not name.startswith("target.")]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        angle = angles(128, generator)
        optimizer.zero_grad()
        logits = model(turned(images[rows], angle), angle)
        functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def held_out(turns: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Every test image turned by four angles; images, angles, labels, the same each time."""
    _, _, images, labels = data()
    angle = angles(turns * len(images), torch.Generator().manual_seed(1))
    return turned(images.repeat(turns, 1, 1, 1), angle), angle, labels.repeat(turns)


def accuracy(model: nn.Module) -> float:
    """On the test set."""
    images, angle, labels = held_out()
    with torch.no_grad():
        return float((model(images, angle).argmax(-1) == labels).float().mean())


def save(model: ensemble.Contextual, path: Path) -> ensemble.Ensemble:
    """The trained model and perturbations of its hypernetwork, saved."""
    images, angle, _ = held_out()
    made = ensemble.generate(
        model.hypernetwork,
        model.target,
        context="angle",
        example=(images[:4], angle[:4]),
        recipe=RECIPE,
        members=MEMBERS,
        task="classification",
        metadata={"description": "Digits, 8×8 grey values, turned by an angle in degrees."},
    )
    made.save(path, overwrite=True)
    return made


def trained() -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, Any]]:
    """For `ensembled build`: model, example, metadata."""
    torch.manual_seed(0)
    images, angle, _ = held_out()
    return train(contextual()), (images[:4], angle[:4]), {"class_names": [str(digit) for digit in range(10)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("path", type=Path, help="where to save the ensemble, MODELS/NAME/VERSION")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, for each model (default: {STEPS})")
    args = parser.parse_args()
    makers = {
        "the small network": lambda: WithoutAngle(16),
        "the small network, told the angle": lambda: AngleAsInput(16),
        "a network 32 times as wide": lambda: WithoutAngle(512),
        "a network 32 times as wide, told the angle": lambda: AngleAsInput(512),
        "the small network, weights of the angle": contextual,
    }
    print(f"{'':42}  {'trained':>7}  {'test accuracy':>13}  {'seconds':>7}")
    for title, make in makers.items():
        torch.manual_seed(0)
        model, begun = make(), time.perf_counter()
        own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("target."))
        found = accuracy(train(model, args.steps))
        print(f"{title:42}  {own:>7,}  {found:>13.1%}  {time.perf_counter() - begun:>7.1f}", flush=True)
    assert isinstance(model, ensemble.Contextual)
    made = save(model, args.path)
    images, angle, labels = held_out()
    found = float((made.predict(images, angle).label == labels).float().mean())
    print(f"saved: {args.path}, {len(made)} members, which together are right on {found:.1%}")


if __name__ == "__main__":
    main()
