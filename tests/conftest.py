"""What the tests share: each scenario's model is captured once in a session, since export takes a second."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before PyTorch is imported, and for the processes that tests start: its threads should not wait spinning for long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# What is compiled is shared by all tests and their processes, and goes with them.
_compiled = tempfile.TemporaryDirectory(prefix="ensembled-tests-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name
os.environ["XDG_CACHE_HOME"] = _compiled.name

import torch
from hypothesis import settings

import ensemble
from ensemble.backends.workshop import Workshop
from tests.scenarios import SCENARIOS, seeded

# In CI the same examples each time, so that a change is judged by itself.
settings.register_profile("here", deadline=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("here")

MEMBERS = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="session")
def made() -> Callable[[str], ensemble.Ensemble]:
    """An ensemble of a scenario by its name: five members, captured with three rows. Not to be changed by a test."""

    @functools.cache
    def make(name: str) -> ensemble.Ensemble:
        scenario = SCENARIOS[name]
        recipe = ensemble.Gaussian(scale=0.1, include=scenario.include)
        return ensemble.perturb(seeded(scenario), recipe, members=MEMBERS, seed=3, example=scenario.inputs(3))

    return make


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """Where calls are compiled; what one test compiled the others need not."""
    with Workshop() as workshop:
        yield workshop


@pytest.fixture(scope="session")
def saved(made: Callable[[str], ensemble.Ensemble], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of saved ensembles, named after their scenarios; "stacked" holds separately trained models."""
    directory = tmp_path_factory.mktemp("saved")
    for name in ("mlp", "many_inputs"):
        made(name).save(directory / name)
    models = [seeded(SCENARIOS["mlp"], seed) for seed in range(3)]
    ensemble.stack(models, example=torch.zeros(2, 6)).save(directory / "stacked")
    return directory


@pytest.fixture
def victim(saved: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a saved ensemble to attack; no attack may make the file "owned" beside it."""
    shutil.copytree(saved / "mlp", tmp_path / "m")
    yield tmp_path / "m"
    assert not (tmp_path / "owned").exists()
    assert torch.is_grad_enabled()
