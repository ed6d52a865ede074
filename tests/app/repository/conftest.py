"""Saved ensembles that the tests of the repository serve."""

from __future__ import annotations

import pytest

from tests.app.repository.lives import build, exchange_into


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved ensembles by their seeds, to be copied."""
    root = tmp_path_factory.mktemp("saved")
    return {seed: build(root / str(seed), seed) for seed in (1, 2, 3)}


@pytest.fixture
def root(tmp_path, saved):
    """A directory with m/1, of seed 1."""
    exchange_into(tmp_path, "m/1", saved[1])
    return tmp_path
