"""Versions of one small model that can be told apart, and a directory in which they come, change and go."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ensemble
from app.engine import Engine
from app.repository import Repository

WIDE = 3


def build(path: Path, seed: int, hidden: int = 4) -> Path:
    """An ensemble whose every answer depends on its seed."""
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Linear(WIDE, hidden), nn.Tanh(), nn.Linear(hidden, 2))
    recipe = ensemble.Gaussian(scale=0.5)
    made = ensemble.perturb(trained, recipe, members=5, seed=seed, example=torch.ones(2, WIDE), task="regression")
    made.save(path)
    return path


def damage(path: Path) -> None:
    """Exchange bytes of the weights, so that nothing that was loaded before is in danger, but nobody can load it."""
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")


def exchange(path: Path, new: Path) -> None:
    """Put a copy of a saved ensemble in the place of another."""
    staging = path.parent / ".staging"
    shutil.copytree(new, staging)
    if path.exists():
        path.rename(path.parent / ".old")
    staging.rename(path)
    shutil.rmtree(path.parent / ".old", ignore_errors=True)


def rows(number: int) -> np.ndarray:
    """A request of one row."""
    return np.random.default_rng(number).normal(size=(1, WIDE)).astype(np.float32)


def mean(path: Path, row: np.ndarray) -> np.ndarray:
    """What the library says of it."""
    return ensemble.load(path).predict(torch.from_numpy(row), statistics=["mean"]).mean.numpy()


def touch(root: Path, *names: str) -> None:
    """Directories that count as models, but cannot be loaded."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_text("{}")


def exchange_into(root, name, new):
    """Put a copy of a saved ensemble under a name, whether something is there or not."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    exchange(root / name, new)


def make(root, **rest) -> Repository:
    """A repository with an engine of its own."""
    return Repository(root, Engine(1), device=torch.device("cpu"), max_batch=1, **rest)


def live(root, life, **settings):
    """Run the life of a repository, whose first models are loaded."""

    async def main():
        repository = make(root, **settings)
        await repository.load_all()
        # The thread lets go of one call before the next.
        await repository._loader._engine.run(lambda: None)
        try:
            return await life(repository)
        finally:
            repository.stop()
            repository._loader._engine.close()

    return asyncio.run(main())


def seeds(repository) -> dict[str, int]:
    """What is served: {name/version: seed}."""
    return {
        f"{e.name}/{e.version}": e.model.ensemble.origin.seed
        for e in repository.entries.values()
        if e.model is not None
    }


def states(repository) -> dict[str, tuple[str, str]]:
    """Of every version its state and the reason: {name/version: (state, reason)}."""
    return {f"{e.name}/{e.version}": (e.state, e.reason) for e in repository.entries.values()}
