"""The members that peers are given are the ensemble's own."""

import pytest
import torch

from benchmarks.models import CASES, MODELS, RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["tiny", "cnn8"])
def test_drawn_members_are_those_of_the_ensemble(model, recipe):
    case = MODELS[model]()
    made = case.ensemble(recipe, 5)
    copies, stacked = case.copies(recipe, 5), case.stacked(recipe, 5)
    for index in range(5):
        expected, state = made.member(index), copies[index].state_dict()
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7)
        for name, stack in stacked.items():
            assert torch.equal(stack[index], state[name])
    assert not torch.equal(stacked["0.weight"][0], stacked["0.weight"][1])


def test_members_drawn_in_slices_are_the_same(monkeypatch):
    case = MODELS["tiny"]()
    whole = case.stacked("low_rank", 7)
    monkeypatch.setattr("benchmarks.models._SLICE_BYTES", 2 * 4 * 500)
    assert all(torch.equal(stack, whole[name]) for name, stack in case.stacked("low_rank", 7).items())


@pytest.mark.parametrize("model", ["tiny", "mlp", "cnn", "transformer", "lstm", "cnn8"])
def test_inputs_are_the_same_each_time_and_of_so_many_rows(model):
    case = MODELS[model]()
    (x,), (again,) = case.inputs(3), case.inputs(3)
    assert x.shape == (3, *case.row)
    assert torch.equal(x, again)
    with torch.no_grad():
        assert len(case.module(x)) == 3


def test_what_is_served_is_also_measured():
    assert set(CASES.values()) <= set(MODELS.values())
