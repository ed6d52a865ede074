"""The models that are measured, and the same members in every form that a peer wants."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

import ensemble

RECIPES = {"dense": ensemble.Gaussian(scale=0.05), "low_rank": ensemble.LowRank(scale=0.05)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: its module, the shape of a row, and how many members."""

    name: str
    module: nn.Module
    row: tuple[int, ...]
    members: int = 128

    def rows(self, count: int) -> Tensor:
        return torch.rand(count, *self.row, generator=torch.Generator().manual_seed(count))

    def ensemble(self, recipe: str) -> ensemble.Ensemble:
        """Members by a recipe of :data:`RECIPES`."""
        return ensemble.perturb(
            self.module,
            RECIPES[recipe],
            members=self.members,
            example=self.rows(2),
            task="classification",
        )

    def modules(self, made: ensemble.Ensemble) -> list[nn.Module]:
        """The same members as modules."""
        found = []
        for index in range(len(made)):
            module = copy.deepcopy(self.module)
            module.load_state_dict(made.member(index))
            found.append(module.requires_grad_(False).eval())
        return found


def mlp() -> Case:
    """The multilayer perceptron that ensembles are usually timed on, 0.67 M parameters."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return Case("MLP 784-512-512-10", nn.Sequential(*layers).eval(), (784,))


def cnn() -> Case:
    """A small convolutional network with batch normalisation, as in the example."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Case("CNN 8×8, batch norm", module.eval(), (1, 8, 8))


CASES = {"mlp": mlp, "cnn": cnn}
