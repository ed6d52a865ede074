"""The models that are served, and what their members say one after the other."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# As far as an answer may be from the members as plain modules.
TOLERANCE = 1e-4
READER, ASIDE = "reader", "aside"
TOKENS, WORDS, FEATURES, CLASSES = 3, 50, 16, 5
# Of the weights that a version of the reader may have.
SEEDS = {"1": (1, 3), "2": (2,)}
POOL = 64


@dataclass(frozen=True)
class Truth:
    """Rows that may be asked for, and the answers to them.

    Args:
        features, tokens: inputs of every row, (POOL, FEATURES) and (POOL, TOKENS).
        members: by seed, what each member says of each row, (members, POOL, CLASSES).
        saved: by seed, a directory with these members.
    """

    features: NDArray[np.float32]
    tokens: NDArray[np.int64]
    members: dict[int, NDArray[np.float32]]
    saved: dict[int, Path]

    @property
    def count(self) -> int:
        """How many members each has."""
        return len(next(iter(self.members.values())))

    def fault(self, rows: NDArray[np.int64], version: str, seed: Any, members: Any, mean: Any) -> str:
        """What is wrong with an answer; empty if nothing is.

        Args:
            rows: which rows of the pool were asked for.
            version, seed, members: what the answer says of itself.
            mean: its mean, (rows, CLASSES).
        """
        if seed not in SEEDS.get(version, ()):
            return f"version {version} answers with seed {seed}"
        if not isinstance(members, int) or not 1 <= members <= self.count:
            return f"the answer says {members} members"
        right = self.members[seed][:members, rows].mean(0)
        given = np.asarray(mean, dtype=float)
        if given.shape != right.shape:
            return f"the mean has shape {given.shape} and not {right.shape}"
        difference = float(np.abs(given - right).max())
        return "" if difference <= TOLERANCE else f"the mean of version {version} is off by {difference:.1e}"

    def put(self, seed: int, place: Path) -> None:
        """Let ``place`` be a directory with the members of a seed, as an operator would: aside, then renamed."""
        staging = place.parent / ".staging"
        shutil.copytree(self.saved[seed], staging)
        remove(place)
        staging.rename(place)


def remove(place: Path) -> None:
    """Take a version away in one step."""
    if place.exists():
        old = place.parent / ".old"
        place.rename(old)
        shutil.rmtree(old)


def build(folder: Path, members: int = 32, width: int = 128) -> Truth:
    """Make the members and ask them. Needs PyTorch."""
    import copy

    import torch
    from torch import Tensor, nn

    import ensemble

    class Reader(nn.Module):
        """Raises where a token is no word that it knows."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, width)
            self.first, self.last = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)

        def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
            logits: Tensor = self.last(torch.tanh(self.first(features) + self.words(tokens).mean(1)))
            return logits

    torch.manual_seed(0)
    module = Reader().eval()
    features, tokens = torch.randn(POOL, FEATURES), torch.randint(WORDS, (POOL, TOKENS))
    answers, saved = {}, {}
    for seed in (seed for seeds in SEEDS.values() for seed in seeds):
        made = ensemble.perturb(
            module,
            ensemble.Gaussian(scale=0.5),
            members=members,
            seed=seed,
            example={"features": features[:2], "tokens": tokens[:2]},
            task="classification",
        )
        saved[seed] = folder / str(seed)
        made.save(saved[seed])
        said = []
        for index in range(members):
            alone = copy.deepcopy(module)
            alone.load_state_dict(made.member(index))
            with torch.no_grad():
                said.append(alone(features, tokens).softmax(-1))
        answers[seed] = torch.stack(said).numpy()
    return Truth(features.numpy(), tokens.numpy(), answers, saved)
