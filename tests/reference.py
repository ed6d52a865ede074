"""What a member must answer, found without the library: a copy of the module itself with that member's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call(function: Callable[..., Any], inputs: Any, **options: Any) -> Any:
    """Call with what :class:`Scenario` gives as inputs: one tensor, a tuple of them, or named ones."""
    match inputs:
        case tuple():
            return function(*inputs, **options)
        case dict():
            return function(**inputs, **options)
    return function(inputs, **options)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, in order."""
    match value:
        case Tensor():
            return [value]
        case dict():
            return [t for item in value.values() for t in tensors(item)]
        case tuple() | list():
            return [t for item in value for t in tensors(item)]
    return []


def alone(model: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> list[Tensor]:
    """The outputs of a copy of the module with one member's weights, in evaluation mode."""
    module = copy.deepcopy(model).eval()
    module.load_state_dict(state)
    with torch.no_grad():
        return tensors(call(module, inputs))


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest magnitude."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else 1.0
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


def worst(outputs: Any, model: nn.Module, states: list[Mapping[str, Tensor]], inputs: Any) -> float:
    """The largest difference between members' stacked outputs and what each member's own module gives."""
    return max(
        difference(many[index], one)
        for index, state in enumerate(states)
        for many, one in zip(tensors(outputs), alone(model, state, inputs), strict=True)
    )
