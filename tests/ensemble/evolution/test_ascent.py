"""Steps up a gradient, beside PyTorch's own optimisers."""

import pytest
import torch

from ensemble.errors import RecipeError
from ensemble.evolution.ascent import Ascent, State


@pytest.mark.parametrize(
    ("ascent", "theirs"),
    [
        (Ascent(), lambda p: torch.optim.SGD(p, lr=0.1, maximize=True)),
        (Ascent(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, maximize=True)),
        (Ascent("adam", betas=(0.8, 0.95)), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), maximize=True)),
        (Ascent("adam", weight_decay=0.2), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, maximize=True)),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_it_goes_where_the_optimiser_of_pytorch_goes(ascent, theirs):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    state, optimizer = State(0, {"w": parameter.detach().clone()}), theirs([parameter])
    for step in range(1, 6):
        parameter.grad = torch.randn(3, 2, dtype=torch.float64)
        state = ascent.advance(state, {"w": parameter.grad}, 0.1)
        optimizer.step()
        assert state.step == step
        assert torch.allclose(state.weights["w"], parameter.detach(), rtol=0, atol=1e-9)


def test_a_step_leaves_the_state_before_as_it_was():
    state = State(0, {"w": torch.ones(2)})
    Ascent("adam").advance(state, {"w": torch.ones(2)}, 0.1)
    assert (state.step, state.first, state.weights["w"].tolist()) == (0, {}, [1, 1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, however: 'lion'"),
        ({"momentum": 1.0}, "momentum and the two betas must be from 0 to below 1"),
        ({"betas": (0.9,)}, "momentum and the two betas must be from 0 to below 1"),
        ({"betas": 0.9}, "momentum and the two betas must be from 0 to below 1, however: 0.0, 0.9"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum belongs to optimizer='sgd'"),
        ({"weight_decay": -1}, "weight_decay must be a finite number ≥ 0, however: -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Ascent(**settings)
