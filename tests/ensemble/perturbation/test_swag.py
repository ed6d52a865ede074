import copy
import math

import pytest
import torch
from torch import nn

import ensemble
from ensemble import RecipeError, Swag, SwagSnapshots
from tests.reference import call, tensors, worst
from tests.scenarios import SCENARIOS, mlp


def trajectory(model, steps, size=0.1):
    """State dicts of a model on its way, one direction being strong."""
    draw = torch.Generator().manual_seed(4)
    states, common = [], {n: torch.randn(t.shape, generator=draw) for n, t in model.state_dict().items()}
    for _ in range(steps):
        along = torch.randn((), generator=draw)
        states.append({
            name: value + size * (along * common[name] + 0.3 * torch.randn(value.shape, generator=draw))
            if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        })  # fmt: skip
    return states


def flat(state, names=("0.weight", "0.bias", "3.weight", "3.bias")):
    return torch.cat([state[name].flatten() for name in names])


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_mean_variance_and_deviations_are_those_of_the_paper(steps):
    states = trajectory(mlp().double(), steps)
    seen = SwagSnapshots(rank=5)
    for state in states:
        seen.update(state)
    for name in states[0]:
        every = torch.stack([state[name] for state in states])
        torch.testing.assert_close(seen.mean[name], every.mean(0))
        torch.testing.assert_close(seen.variance(name), every.square().mean(0) - every.mean(0).square())
        kept = range(max(0, steps - 5), steps)
        torch.testing.assert_close(
            seen.deviations(name, 5), torch.stack([every[i] - every[: i + 1].mean(0) for i in kept])
        )
        torch.testing.assert_close(seen.deviations(name, 1)[0], every[-1] - every.mean(0))


def test_members_have_the_moments_of_the_gaussian(perturbed):
    states = trajectory(mlp(), 12)
    ens = perturbed("mlp", Swag(states, scale=0.8, rank=6), members=6_000, seed=2)
    drawn = torch.cat([ens.members.stacked[name].flatten(1) for name in ens.origin.reference], 1).double()
    every = torch.stack([flat(state) for state in states]).double()
    columns = torch.stack([every[i] - every[: i + 1].mean(0) for i in range(6, 12)])
    want = 0.8**2 * (every.var(0, unbiased=False).diag() / 2 + columns.T @ columns / (2 * 5))
    got = drawn.T.cov()
    spread = want.diag().sqrt()
    assert torch.allclose(drawn.mean(0), every.mean(0), atol=5 * float(spread.max()) / math.sqrt(6_000))
    # Standard error of a correlation of 1: √(2 / n), of none: √(1 / n).
    assert float(((got - want) / spread.outer(spread)).abs().max()) < 6 * math.sqrt(2 / 6_000)
    # The weights do vary together.
    assert float((want / spread.outer(spread)).fill_diagonal_(0).abs().max()) > 0.3


@pytest.mark.parametrize("rank", [0, 1])
def test_without_two_columns_it_is_diagonal_with_the_whole_variance(rank, perturbed):
    states = trajectory(mlp(), 12)
    ens = perturbed("mlp", Swag(states, rank=rank), members=6_000)
    drawn = ens.members.stacked["3.weight"].flatten(1).double()
    every = torch.stack([state["3.weight"].flatten() for state in states]).double()
    want = every.var(0, unbiased=False)
    assert torch.allclose(drawn.var(0), want, rtol=6 * math.sqrt(2 / 6_000))
    correlation = drawn.T.corrcoef().fill_diagonal_(0)
    assert float(correlation.abs().max()) < 6 / math.sqrt(6_000)


def test_a_scale_of_zero_is_the_mean_of_the_snapshots(perturbed):
    states = trajectory(mlp(), 5)
    ens = perturbed("mlp", Swag(states, scale=0), members=2)
    for name in ens.origin.reference:
        mean = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(ens.member(1)[name], mean)


def test_a_member_is_the_same_whatever_the_number_of_members_and_the_slices(perturbed, monkeypatch):
    states = trajectory(mlp(), 5)
    few, many = (perturbed("mlp", Swag(states), members=n, seed=5) for n in (4, 30))
    monkeypatch.setattr("ensemble.perturbation.swag._SLICE_BYTES", 1000)
    sliced = perturbed("mlp", Swag(states), members=30, seed=5)
    other = perturbed("mlp", Swag(states), members=4, seed=6)
    for name, value in few.member(3).items():
        for same in (many, sliced):
            torch.testing.assert_close(same.member(3)[name], value, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(other.member(3)[name], value)


@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_snapshots_of_a_module_become_members_that_are_kept(name, perturbed, scenario_model, tmp_path):
    model, inputs = copy.deepcopy(scenario_model(name)), SCENARIOS[name].inputs(4)
    seen = SwagSnapshots(rank=3)
    for state in trajectory(model, 4, size=0.02):
        model.load_state_dict(state)
        seen.update(model)
    ens = perturbed(name, Swag(seen, scale=0.5), members=5)
    assert ens.check() <= 1e-5
    assert worst(call(ens, inputs), model, [ens.member(i) for i in range(5)], inputs) <= 1e-5
    for key, value in ens.member(2).items():
        if "running" in key:
            torch.testing.assert_close(value, seen.mean[key])
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == ens.origin.recipe == Swag(scale=0.5)
    assert again.origin.recipe.snapshots is None
    for before, after in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(before, after)
    for key, value in ens.member(4).items():
        assert torch.equal(again.member(4)[key], value)


def test_patterns_say_what_has_noise_and_what_stays(perturbed, scenario_model):
    model = scenario_model("cnn")
    states = trajectory(model, 4)
    ens = perturbed("cnn", Swag(states, include="head.*", exclude="features.*"), members=3)
    assert sorted(ens.members.stacked) == ["head.bias", "head.weight"]
    assert torch.equal(ens.member(0)["features.1.running_mean"], model.state_dict()["features.1.running_mean"])
    mean = torch.stack([state["features.0.weight"] for state in states]).mean(0)
    ens = perturbed("cnn", Swag(states, include="head.*"), members=3)
    torch.testing.assert_close(ens.member(0)["features.0.weight"], mean)


def test_what_is_no_snapshot_of_the_model_is_refused(perturbed):
    states = trajectory(mlp(), 3)
    for snapshots, text in [
        (None, "swag needs snapshots that were taken while the model was trained"),
        (states[:1], "at least two snapshots, however: 1"),
        ([nn.Linear(2, 2), nn.Linear(2, 2)], "'0.weight' of this model, .* is not in the snapshots"),
        (
            [nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.ReLU(), nn.Linear(15, 4)) for _ in range(2)],
            r"'0.weight' of this model, \[16, 6\], has shape \[15, 6\]",
        ),
    ]:
        with pytest.raises(RecipeError, match=text):
            perturbed("mlp", Swag(snapshots), members=2)
    for snapshots, text in [
        (mlp(), "several modules or state dicts, however: one Sequential"),
        (states[0], "however: one dict"),
        (3, "however: one int"),
        ([1, 2], "A snapshot is a module or a state dict, however: int"),
        ([{}, {}], "A snapshot has no weights"),
        ([nn.Linear(2, 2), nn.Linear(2, 3)], r"'weight' has shape \[3, 2\] in snapshot 1 and \[2, 2\] in the first"),
        ([nn.Linear(2, 2), mlp()], "snapshot 1 differs from the first in 0.bias"),
        (
            [nn.Linear(2, 2), {"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)}],
            "'weight' is not finite",
        ),
    ]:
        with pytest.raises(RecipeError, match=text):
            Swag(snapshots)


@pytest.mark.parametrize("settings", [{"scale": -1}, {"scale": math.inf}, {"rank": -1}, {"rank": 1.5}, {"rank": True}])
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(RecipeError, match=r"must be (a finite number|an integer) ≥ 0"):
        Swag(**settings)


def test_settings_go_round_without_the_snapshots():
    recipe = Swag(trajectory(mlp(), 2), scale=0.3, rank=4, exclude="head.*")
    assert Swag.from_settings(recipe.settings()) == recipe
    assert "snapshots" not in recipe.settings()
    assert "Tensor" not in repr(recipe)


def test_snapshots_take_the_memory_that_they_say():
    seen = SwagSnapshots(rank=2)
    for state in trajectory(mlp(), 6):
        seen.update(state)
    size = 4 * flat(mlp().state_dict()).numel()
    assert seen.nbytes == (2 + 2) * size
    assert repr(seen) == "SwagSnapshots(6 snapshots, rank=2)"
