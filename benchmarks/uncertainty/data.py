"""Data sets, and what of each a method may see: training rows, held-out rows, and at the very end test rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Of a split's training rows these are held out: to stop training, and to fit scales, noise and weights.
HELD_OUT = 0.2
UCI = {"boston": "bostonHousing", "concrete": "concrete", "yacht": "yacht", "wine": "wine-quality-red"}
# No setting of the benchmark was chosen by these; of ``diabetes`` some training rows were looked at when fitting was
# designed. Two are one column of a data set that comes with scikit-learn, predicted from all others.
UNTUNED = ("diabetes", "proline", "fractal dimension")


@dataclasses.dataclass(frozen=True)
class Table:
    """A regression data set with its splits into training and test rows.

    Args:
        inputs: (rows, features) float64.
        targets: (rows,) float64.
        splits: the rows of each split's training part and of its test part.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """One split, normalised by its training rows. Inputs (rows, features), targets (rows,), float32.

    Args:
        train: what nets and members are trained on.
        held: held out of the training part.
        test: looked at once, for the scores.
        unit: the target's standard deviation: what one unit of the normalised target is.
    """

    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unit: float = 1.0


def read_uci(folder: Path, name: str, splits: int) -> Table:
    """A data set as published with its splits.

    Args:
        folder: holds a folder for each data set.
        name: one of ``UCI``.
        splits: only so many.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the files do not fit together.
    """
    place = folder / UCI[name]
    if not (place / "data.txt").is_file():
        raise FileNotFoundError(
            f"{place / 'data.txt'} is not there; --uci is the folder with {', '.join(UCI.values())}."
        )
    rows = np.loadtxt(place / "data.txt", ndmin=2)
    features = np.loadtxt(place / "index_features.txt", dtype=int, ndmin=1)
    target = int(np.loadtxt(place / "index_target.txt"))
    count = min(splits, int(np.loadtxt(place / "n_splits.txt")))
    found = []
    for split in range(count):
        train, test = (np.loadtxt(place / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test"))
        if np.intersect1d(train, test).size or max(train.max(), test.max()) >= len(rows):
            raise ValueError(
                f"{place}: split {split} has test rows among its training rows, or rows that are not there."
            )
        found.append((train, test))
    return Table(name, rows[:, features], rows[:, target], found)


def untuned(name: str, splits: int) -> Table:
    """A data set that comes with scikit-learn, of which no setting was chosen; a tenth of each split is its test part.

    ``diabetes`` is the regression of that name; ``proline`` of a wine is predicted from its other analyses, and the
    mean ``fractal dimension`` of a tumour's cell nuclei from their other measures.
    """
    from sklearn import datasets

    if name == "diabetes":
        inputs, targets = datasets.load_diabetes(return_X_y=True, scaled=False)
    else:
        table = datasets.load_wine() if name == "proline" else datasets.load_breast_cancer()
        column = list(table.feature_names).index(name if name == "proline" else f"mean {name}")
        inputs, targets = np.delete(table.data, column, 1), table.data[:, column]
    found = []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(targets))
        test = round(len(targets) / 10)
        found.append((order[test:], order[:test]))
    return Table(name, np.asarray(inputs, float), np.asarray(targets, float), found)


def parts(table: Table, split: int) -> Parts:
    """What of a split is for what."""
    train, test = table.splits[split]
    inputs, targets = table.inputs[train], table.targets[train]
    middle, spread = inputs.mean(0), inputs.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    unit = float(targets.std())

    def normal(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = (table.inputs[rows] - middle) / spread, (table.targets[rows] - targets.mean()) / unit
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)

    order = np.random.default_rng(1000 + split).permutation(train)
    held = round(HELD_OUT * len(train))
    return Parts(normal(order[held:]), normal(order[:held]), normal(test), unit)


def nested(whole: Parts) -> Parts:
    """The same without its test rows: half of the held-out rows are in their place, for what is still to be chosen."""
    x, y = whole.held
    return dataclasses.replace(whole, held=(x[::2], y[::2]), test=(x[1::2], y[1::2]))


def stacked(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The same part of several splits: (splits, rows, ...), cut to the shortest (splits may differ by a row)."""
    rows = min(len(targets) for _, targets in pieces)
    return torch.stack([x[:rows] for x, _ in pieces]), torch.stack([y[:rows] for _, y in pieces])
