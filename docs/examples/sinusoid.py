"""The sinusoid task of MAML (arXiv 1703.03400), meta-trained and served: ten points in, a curve with its band out.

    python docs/examples/sinusoid.py train models/sinusoid/1
    ensembled serve --models models --adaptation
    python docs/examples/sinusoid.py draw http://127.0.0.1:8000

A task is a sine with an amplitude of 0.1 to 5 and a phase of 0 to π, seen at ten points. `train` prints, after one,
five and ten gradient steps on those points, the error of the meta-trained network beside that of a network that begins
at random, and of one that was trained on all tasks at once, each with the step size that suits it best.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ensemble

PICTURE = Path(__file__).parents[1] / "images" / "sinusoid.png"
SHOTS, TASKS, INNER = 10, 25, 0.01
STEPS = (1, 5, 10)
# Tried for the networks that were not trained for a step size of their own.
STEP_SIZES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def network() -> nn.Module:
    """One number to one number, two hidden layers of 40."""
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def tasks(count: int, shots: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sines at random points.

    Returns:
        x, y, at points that are examples, and x, y at points that are asked, each (count, shots, 1).
    """

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    amplitude, phase = draw(0.1, 5, count, 1, 1), draw(0, math.pi, count, 1, 1)
    x, asked = draw(-5, 5, count, shots, 1), draw(-5, 5, count, shots, 1)
    return x, amplitude * (x - phase).sin(), asked, amplitude * (asked - phase).sin()


def fit(loss: Callable[[torch.Generator], Tensor], model: nn.Module, updates: int, say: Callable[[str], None]) -> None:
    """Minimise a loss by Adam, its step size falling to nothing."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    begun, mean = time.perf_counter(), 0.0
    for update in range(1, updates + 1):
        optimizer.zero_grad()
        value = loss(generator)
        value.backward()
        optimizer.step()
        schedule.step()
        mean += value.item()
        if update % max(1, updates // 5) == 0:
            say(f"  {update:6} updates, {time.perf_counter() - begun:4.0f} s, loss {mean / max(1, updates // 5):.3f}")
            mean = 0.0


def meta_trained(updates: int, say: Callable[[str], None] = print) -> nn.Module:
    """MAML: first weights from which one step on ten points of a new task leads to a small error on ten others."""
    torch.manual_seed(0)
    model = network()

    def loss(generator: torch.Generator) -> Tensor:
        x, y, asked, wanted = tasks(TASKS, SHOTS, generator)
        adapted = ensemble.adapt(model, (x, y), "mse", 1, INNER, create_graph=True)
        return F.mse_loss(adapted(asked), wanted)

    fit(loss, model, updates, say)
    return model


def trained_on_all(updates: int, say: Callable[[str], None] = print) -> nn.Module:
    """The same network on points of all tasks at once, which it cannot tell apart."""
    torch.manual_seed(0)
    model = network()

    def loss(generator: torch.Generator) -> Tensor:
        x, y, asked, wanted = tasks(TASKS, SHOTS, generator)
        return F.mse_loss(model(torch.cat([x, asked])), torch.cat([y, wanted]))

    fit(loss, model, updates, say)
    return model


def errors(model: nn.Module, lr: float, count: int, seed: int) -> Tensor:
    """The mean squared error on tasks that the model adapted to, by the number of steps, (len(STEPS),)."""
    x, y, asked, wanted = tasks(count, SHOTS, torch.Generator().manual_seed(seed))
    adapted = [ensemble.adapt(model, (x, y), "mse", steps, lr) for steps in STEPS]
    with torch.no_grad():
        return torch.stack([F.mse_loss(one(asked), wanted) for one in adapted])


def best_errors(model: nn.Module, count: int) -> tuple[float, Tensor]:
    """With the step size that is best, after the most steps, on other tasks than those of the errors."""
    found = {lr: errors(model, lr, count, seed=3)[-1].nan_to_num(math.inf).item() for lr in STEP_SIZES}
    lr = min(found, key=lambda size: found[size])
    return lr, errors(model, lr, count, seed=2)


def table(models: dict[str, nn.Module], count: int) -> dict[str, tuple[float, Tensor]]:
    """Step size and errors of each: the meta-trained one with the step size that it was trained for."""
    return {
        name: (INNER, errors(model, INNER, count, seed=2)) if name == "meta-trained" else best_errors(model, count)
        for name, model in models.items()
    }


def members_of(model: nn.Module, count: int = 32) -> ensemble.Ensemble:
    """Members around the meta-trained weights; each adapts by itself, and where they differ afterwards is uncertain."""
    return ensemble.perturb(
        model,
        ensemble.Gaussian(scale=0.1),
        members=count,
        example=torch.linspace(-5, 5, 4).unsqueeze(1),
        task="regression",
        metadata={"description": "Sines, to be adapted to a few points of one (arXiv 1703.03400)."},
    )


def train(args: argparse.Namespace) -> None:
    print(f"meta-training, {args.updates} updates of {TASKS} tasks")
    meta = meta_trained(args.updates)
    print(f"training on all tasks at once, {args.updates} updates")
    together = trained_on_all(args.updates)
    torch.manual_seed(5)
    found = table({"meta-trained": meta, "from scratch": network(), "trained on all tasks": together}, args.tasks)
    print(f"{f'mean squared error, {args.tasks} tasks':32}{'step size':>10}" + "".join(f"{s:>9} steps" for s in STEPS))
    for name, (lr, row) in found.items():
        print(f"{name:32}{lr:10g}" + "".join(f"{value:15.3f}" for value in row.tolist()))
    members_of(meta).save(args.ensemble, overwrite=True)
    print(f"saved: {args.ensemble}")


def draw(args: argparse.Namespace) -> None:
    """Ask a service, and draw what it answers."""
    import matplotlib as mpl

    from app.client import Client

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink, blue, pale, sand = "#1f2430", "#2f6fbb", "#9dc1e8", "#c47f2c"
    plt.rcParams.update({"font.size": 10, "text.color": ink, "axes.edgecolor": "#b8bec9", "xtick.color": ink})
    curve = torch.linspace(-5, 5, 201).unsqueeze(1)
    # All of the points of the second task lie on one side: what is on the other it must guess.
    examples = [(3.0, 0.6, torch.linspace(-4.6, 4.6, SHOTS)), (4.0, 2.2, torch.linspace(0.4, 4.8, SHOTS))]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    with Client(args.url, model="sinusoid") as client:
        for axis, (amplitude, phase, points) in zip(axes, examples, strict=True):
            x = points.unsqueeze(1)
            y = amplitude * (x - phase).sin()
            before = client.infer(curve.numpy(), outputs=["mean"])["mean"]
            answer = client.adapt(
                (x.numpy(), y.numpy()), curve.numpy(), steps=10, learning_rate=INNER, outputs=["mean", "std"]
            )
            mean, std = answer["mean"][:, 0], answer["std"][:, 0]
            xs = curve[:, 0].numpy()
            axis.fill_between(xs, mean - 2 * std, mean + 2 * std, color=pale, alpha=0.6, linewidth=0)
            axis.plot(xs, mean, color=blue, label="adapted, mean ± 2 std")
            axis.plot(xs, before[:, 0], color=ink, linewidth=1, linestyle=":", label="before")
            axis.plot(xs, (amplitude * (curve - phase).sin())[:, 0], color=sand, linewidth=1, label="the task")
            axis.scatter(points, y[:, 0], s=22, color=ink, zorder=3, label="ten points")
            loss = answer.parameters["adaptation"]
            axis.set_xlabel(f"loss on the points {loss['loss_before']:.2f} → {loss['loss_after']:.3f}")
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    axes[0].set_ylim(-5.8, 4.6)
    axes[0].legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=130)
    print(f"drawn: {args.picture}")


def main(argv: Any = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="meta-train, compare, and save")
    training.add_argument("ensemble", type=Path, help="where to save, such as models/sinusoid/1")
    training.add_argument("--updates", type=int, default=10_000)
    training.add_argument("--tasks", type=int, default=600, help="that errors are means over")
    training.set_defaults(run=train)
    drawing = commands.add_parser("draw", help="ask a service, and draw its answers")
    drawing.add_argument("url", help="such as http://127.0.0.1:8000")
    drawing.add_argument("--picture", type=Path, default=PICTURE, help="where to draw")
    drawing.set_defaults(run=draw)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
