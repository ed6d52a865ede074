"""What tests of recipes and graphs share: a scenario is exported once, whatever the recipes that perturb it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import ensemble
from ensemble.program.capture import Captured, capture
from tests.scenarios import SCENARIOS, seeded


@pytest.fixture(scope="session")
def scenario_model() -> Callable[[str], nn.Module]:
    """A scenario's trained model by its name. Not to be changed by a test."""
    return functools.cache(lambda name: seeded(SCENARIOS[name]))


@pytest.fixture(scope="session")
def exported(scenario_model: Callable[[str], nn.Module]) -> Callable[[str], Captured]:
    """A scenario's model as it is captured with three rows."""
    return functools.cache(lambda name: capture(scenario_model(name), SCENARIOS[name].inputs(3)))


@pytest.fixture(scope="session")
def _captures() -> dict[tuple[int, bool], tuple[nn.Module, Captured]]:
    return {}


@pytest.fixture
def exported_once(
    monkeypatch: pytest.MonkeyPatch, _captures: dict[tuple[int, bool], tuple[nn.Module, Captured]]
) -> None:
    """A module that tests perturb several times is exported the first time only; they must not change it."""

    def once(model: nn.Module, example: object, *, live: bool = False) -> Captured:
        key = id(model), live
        if key not in _captures:
            # The model is kept with it, so that no other gets its number.
            _captures[key] = model, capture(model, example, live=live)
        return _captures[key][1]

    monkeypatch.setattr("ensemble.construct.capture", once)


@pytest.fixture
def perturbed(
    monkeypatch: pytest.MonkeyPatch,
    scenario_model: Callable[[str], nn.Module],
    exported: Callable[[str], Captured],
) -> Callable[..., ensemble.Ensemble]:
    """``ensemble.perturb`` of a scenario's model, which is not exported again."""

    def make(name: str, recipe: ensemble.Recipe, **options: Any) -> ensemble.Ensemble:
        with monkeypatch.context() as patch:
            patch.setattr("ensemble.construct.capture", lambda *_, **__: exported(name))
            return ensemble.perturb(scenario_model(name), recipe, example=SCENARIOS[name].inputs(3), **options)

    return make
