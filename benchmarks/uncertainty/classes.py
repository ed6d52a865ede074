"""Classification: digits with two classes held out, noise and shifts; and data sets that nobody tuned on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.uncertainty import members
from benchmarks.uncertainty.data import HELD_OUT, Parts, stacked
from benchmarks.uncertainty.networks import Weights, module, run
from benchmarks.uncertainty.results import Record, Results
from benchmarks.uncertainty.scores import classified, separation
from benchmarks.uncertainty.settings import DEEP, NETS, SEED, TRAINING, WIDTH
from benchmarks.uncertainty.training import train

SETS = ("digits", "breast cancer", "wine cultivars")
# Classes of the digits that no net is trained on.
UNKNOWN = (8, 9)
TRAINING_ROWS = 200
# With fewer fitting refuses.
LEAST_HELD_OUT = 20
# Pixels that an image is moved by, of eight.
SHIFT = 2
Others = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw of the training rows.

    Args:
        parts: training, held-out and test rows; targets are class indices.
        others: inputs of kinds that no net was trained on, by name, each (rows, features).
        classes: how many there are.
    """

    parts: Parts
    others: Others
    classes: int


def digits(draw: int) -> Draw:
    """200 images of the digits 0 to 7, a part of them held out; tested on all other images of these.

    Others are the digits 8 and 9, uniform noise, and the test images moved by two pixels into one of four directions.
    """
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    images = images / 16
    random = np.random.default_rng(draw)
    having = random.permutation(np.flatnonzero(~np.isin(targets, UNKNOWN)))
    train, test = having[:TRAINING_ROWS], having[TRAINING_ROWS:]
    others = {
        "unknown": images[np.isin(targets, UNKNOWN)],
        "noise": random.random((len(test), images.shape[1])),
        "shift": _shifted(images[test].reshape(-1, 8, 8), random.integers(4, size=len(test))).reshape(len(test), -1),
    }
    return _draw(images, targets, train, test, others, len(set(targets)) - len(UNKNOWN))


def untuned(name: str, draw: int) -> Draw:
    """A data set that comes with scikit-learn; half of it is the test part."""
    from sklearn import datasets

    load = datasets.load_breast_cancer if name == "breast cancer" else datasets.load_wine
    inputs, targets = load(return_X_y=True)
    order = np.random.default_rng(draw).permutation(len(targets))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    middle, spread = inputs[train].mean(0), inputs[train].std(0)
    return _draw((inputs - middle) / np.where(spread > 0, spread, 1), targets, train, test, {}, len(set(targets)))


def _draw(
    inputs: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    others: dict[str, np.ndarray],
    classes: int,
) -> Draw:
    def pair(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.tensor(inputs[rows], dtype=torch.float32), torch.tensor(targets[rows], dtype=torch.long)

    held = max(LEAST_HELD_OUT, round(HELD_OUT * len(train)))
    parts = Parts(pair(train[held:]), pair(train[:held]), pair(test))
    return Draw(parts, {name: torch.tensor(x, dtype=torch.float32) for name, x in others.items()}, classes)


def _shifted(images: np.ndarray, directions: np.ndarray) -> np.ndarray:
    moved = np.zeros_like(images)
    for place, (image, direction) in enumerate(zip(images, directions, strict=True)):
        turned = np.rot90(image, direction)
        away = np.zeros_like(image)
        away[SHIFT:] = turned[:-SHIFT]
        moved[place] = np.rot90(away, -direction)
    return moved


def compare(
    results: Results,
    workers: object,
    name: str,
    draws: int,
    methods: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """All methods on all draws of a data set."""
    begun = time.perf_counter()
    made = [digits(draw) if name == "digits" else untuned(name, draw) for draw in range(draws)]
    data, held = (stacked([getattr(d.parts, part) for d in made]) for part in ("train", "held"))
    nets = train(
        data,
        held,
        nets=NETS,
        head="classes",
        schedule=TRAINING["classes"],
        seed=SEED,
        hidden=WIDTH,
        classes=made[0].classes,
    )
    say(f"{name}: nets of {draws} draws trained ({time.perf_counter() - begun:.0f} s)")
    for number, draw in enumerate(made):
        for method, count in (("single", 1), *((f"deep-{count}", count) for count in DEEP)):
            weights = nets.of(number, count)
            record = Record(name, "classes", method, number, cost=count - 1.0)
            record.scores = judged(lambda x, weights=weights: _probabilities(weights, x), draw)
            results.records.append(record)
    wanted = [m for m in methods if m in members.known()]
    if wanted:
        calls = [(name, number, draw, nets.of(number, 1), nets.steps, wanted) for number, draw in enumerate(made)]
        results.records += workers.each(of_draw, calls)  # type: ignore[attr-defined]
    say(f"{name}: done ({time.perf_counter() - begun:.0f} s)")


def of_draw(name: str, number: int, draw: Draw, weights: Weights, steps: int, methods: Sequence[str]) -> list[Record]:
    """What is made of one net, in a process of its own."""
    case = members.Case(module(weights, 0, "classes"), draw.parts, "classes", steps)
    found = []
    for method in methods:
        record, ens = members.made(case, method, name, number)
        if ens is not None:
            # The service's own statistic: probabilities at the fitted temperature, members weighted.
            record.scores = judged(lambda x, ens=ens: ens.predict(x, statistics=["mean"]).mean, draw)
        found.append(record)
    return found


def judged(mean: Callable[[Tensor], Tensor], draw: Draw) -> dict[str, float]:
    """All scores of what gives mean probabilities."""
    x, targets = draw.parts.test
    known = mean(x)
    found = classified(known, targets)
    return found | {f"auroc_{name}": separation(known, mean(other)) for name, other in draw.others.items()}


def _probabilities(weights: Weights, x: Tensor) -> Tensor:
    """Mean over nets, (rows, classes)."""
    count = len(weights["output.bias"])
    return run(weights, x.expand(count, *x.shape)).softmax(-1).mean(0)
