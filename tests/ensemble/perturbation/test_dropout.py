import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ensemble
from ensemble import Dropout, RecipeError
from tests.reference import alone, call, tensors, worst
from tests.scenarios import SCENARIOS, floats, mlp, seeded


def masks(ens, name, index):
    """A member's mask on what a weight reads, with its factor, from the member's own weights."""
    ratio = ens.member(index)[name] / ens.origin.reference[name]
    return ratio.mean((0, *range(2, ratio.ndim)))


def test_members_of_an_mlp_are_the_loop_that_masks_activations(perturbed):
    model = seeded(SCENARIOS["mlp"]).eval()
    ens = perturbed("mlp", Dropout(0.4), members=6, seed=3)
    assert list(ens.origin.reference) == ["3.weight"]
    assert ens.origin.recipe == Dropout(0.4, include="3.weight")
    x = torch.randn(5, 6)
    for index, got in enumerate(ens(x)):
        mask = masks(ens, "3.weight", index)
        assert torch.allclose(mask[mask != 0], torch.tensor(1 / 0.6))
        want = model[3](F.relu(model[0](x)) * (mask != 0) / (1 - 0.4))
        torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-6)


def test_members_of_a_cnn_are_the_loop_that_drops_channels(perturbed, scenario_model):
    model = copy.deepcopy(scenario_model("cnn")).eval()
    ens = perturbed("cnn", Dropout(0.3), members=4)
    assert list(ens.origin.reference) == ["features.4.weight", "head.weight"]
    image = floats(2, 8, 8)(3)
    for index, got in enumerate(ens(image)):
        channels, features = (masks(ens, name, index) for name in ens.origin.reference)
        with torch.no_grad():
            hidden = model.features[:4](image) * channels.view(-1, 1, 1)
            want = model.head(model.features[4:](hidden).flatten(1) * features)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["encoder", "many_outputs"])
def test_members_stay_on_factors_and_are_what_their_own_modules_give(name, perturbed, scenario_model, tmp_path):
    model, inputs = scenario_model(name), SCENARIOS[name].inputs(4)
    ens = perturbed(name, Dropout(0.2), members=5, seed=1)
    assert ens.members.factored.keys() == ens.origin.reference.keys()
    assert worst(call(ens, inputs), model, [ens.member(i) for i in range(5)], inputs) <= 1e-5
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == ens.origin.recipe
    for before, after in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(before, after)


def test_the_mean_over_members_is_that_of_monte_carlo_dropout():
    """Of a network that is linear behind the dropout both means are the trained model's, and the variances agree."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Dropout(0.25), nn.Linear(40, 1)).double().eval()
    x = torch.randn(4, 3).double()
    ens = ensemble.perturb(model, Dropout(0.25), members=20_000, example=x)
    got = ens(x)
    hidden = model[1](model[0](x))
    # Var = p / (1 - p) Σ (w h)²
    variance = (0.25 / 0.75 * (hidden * model[3].weight).square().sum(1, keepdim=True)).detach()
    assert torch.allclose(got.mean(0), model(x).detach(), atol=4 * float((variance.max() / 20_000).sqrt()))
    assert torch.allclose(got.var(0), variance, rtol=0.06)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.99])
def test_features_are_dropped_with_the_probability(p):
    drawn = Dropout(p).draw("w", torch.ones(2, 500), 5, range(200))
    share = float((drawn == 0).double().mean())
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 1e5))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.allclose(drawn[drawn != 0], torch.tensor(1 / (1 - p)))


def test_a_probability_of_zero_changes_nothing():
    weight = torch.randn(3, 4)
    assert torch.equal(Dropout(0).draw("w", weight, 0, range(2)), weight.expand(2, 3, 4))


def test_a_member_is_the_same_alone_and_in_any_range():
    weight, recipe = torch.randn(6, 50, 3, 3), Dropout(0.3)
    many = recipe.draw("w", weight, 1, range(20))
    assert torch.equal(many[7], recipe.draw("w", weight, 1, range(7, 8))[0])
    assert torch.equal(many[3:8], recipe.draw("w", weight, 1, range(3, 8)))
    assert not torch.equal(many[7], many[8])
    assert not torch.equal(many[7] == 0, recipe.draw("v", weight, 1, range(7, 8))[0] == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_are_masked_in_their_own(dtype):
    weight = torch.randn(3, 8).to(dtype)
    drawn = Dropout(0.5).draw("w", weight, 0, range(4))
    assert drawn.dtype == dtype
    assert torch.equal(drawn, torch.where(drawn == 0, 0, 2 * weight).to(dtype))


def test_patterns_choose_other_weights():
    model = mlp()
    ens = ensemble.perturb(model, Dropout(0.2, include="*.weight"), members=2, example=torch.zeros(2, 6))
    assert list(ens.origin.reference) == ["0.weight", "3.weight"]
    live = ensemble.perturb(model, Dropout(0.2, include="3.*"), members=3, example=torch.zeros(2, 6), live=True)
    x = torch.randn(4, 6)
    assert worst(live(x), model, [live.member(i) for i in range(3)], x) <= 1e-5


def test_settings_go_round():
    for recipe in (Dropout(0.1), Dropout(p=0.2, include=("a.*", "b"), exclude="a.x")):
        assert Dropout.from_settings(recipe.settings()) == recipe
    assert all(Dropout.from_settings(candidate).p < 1 for candidate in Dropout.candidates())


@pytest.mark.parametrize("p", [1, 1.5, -0.1, True, "0.1", float("nan"), None])
def test_a_probability_that_is_none_is_refused(p):
    with pytest.raises(RecipeError, match="p must be a probability of at least 0 and below 1"):
        Dropout(p)


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.depth = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 3, groups=4)

    def forward(self, x):
        return self.depth(self.first(x)).mean(-1)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "text"),
    [
        (nn.Linear(6, 2), Dropout(0.1), {}, 'no features to drop; give include= .*include="fc.weight"'),
        (mlp(), Dropout(0.1), {"live": True}, "not known which weights read the inputs: give include="),
        (
            mlp(),
            Dropout(0.1, include="3.bias"),
            {},
            "'3.bias' matches none of this model's weights: 0.weight, 3.weight",
        ),
        (mlp(), Dropout(0.1, exclude="3.weight"), {}, "Nothing is left to perturb"),
    ],
)
def test_a_model_that_it_does_not_fit_is_refused(model, recipe, options, text):
    with pytest.raises(RecipeError, match=text):
        ensemble.perturb(model, recipe, members=2, example=torch.zeros(2, 6), **options)


def test_depthwise_convolutions_have_nothing_to_drop():
    x = torch.randn(2, 2, 8)
    with pytest.raises(RecipeError, match="no linear layer or ungrouped convolution behind another"):
        ensemble.perturb(Depthwise(), Dropout(0.1), members=2, example=x)
    with pytest.raises(RecipeError, match=r"'depth.weight' has shape \[4, 1, 3\], one feature"):
        ensemble.perturb(Depthwise(), Dropout(0.1, include="*.weight"), members=2, example=x)


def test_the_trained_model_is_left_as_it_was():
    model = seeded(SCENARIOS["mlp"])
    before = copy.deepcopy(model.state_dict())
    ens = ensemble.perturb(model, Dropout(0.5), members=2, example=torch.zeros(2, 6))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert alone(model, ens.member(0), torch.ones(1, 6))[0].shape == (1, 4)
