import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ensemble
from ensemble import Gaussian, RecipeError
from ensemble.random import standard_normal
from tests.scenarios import SCENARIOS, mlp, seeded

WEIGHTS = {
    "fc1.weight": torch.randn(4, 3),
    "fc1.bias": torch.zeros(4),
    "norm.running_mean": torch.randn(4),
    "norm.count": torch.tensor(3),
    "fc2.weight": torch.randn(2, 4),
}
TRAINABLE = {"fc1.weight", "fc1.bias", "fc2.weight"}


def test_a_member_is_the_weight_plus_noise_of_its_own_scale():
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)) * 7
    drawn = Gaussian(scale=0.02).draw("w", weight, 5, range(3, 6))
    rms = weight.double().square().mean().sqrt()
    noise = standard_normal(5, range(3, 6), "w", (50, 40)).double()
    assert torch.allclose(drawn.double(), weight.double() + 0.02 * rms * noise, rtol=1e-6, atol=1e-6)
    assert float((drawn - weight).std() / rms) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_noise_is_added_in_float32_or_better_and_rounded_once(dtype):
    weight = torch.randn(30, generator=torch.Generator().manual_seed(2)).to(dtype)
    drawn = Gaussian(scale=0.1).draw("w", weight, 0, range(4))
    exact = weight.double() + 0.1 * weight.double().square().mean().sqrt() * standard_normal(0, range(4), "w", (30,))
    assert drawn.dtype == dtype
    assert drawn.shape == (4, 30)
    # Half a unit in the last place of a 16-bit number; of float32 two roundings, and the noise itself is float32.
    share = 0.5001 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-7
    assert ((drawn.double() - exact).abs() <= share * exact.abs() + 1e-7).all()


def test_a_zero_weight_and_a_zero_scale_change_nothing():
    assert not Gaussian(scale=1.0).draw("b", torch.zeros(5), 0, range(3)).any()
    weight = torch.randn(5)
    assert torch.equal(Gaussian(scale=0).draw("w", weight, 0, range(2)), weight.expand(2, 5))


@given(st.integers(0, 40), st.integers(1, 10), st.integers(0, 2**32))
def test_a_member_is_the_same_in_any_range(start, count, seed):
    weight = torch.arange(-3.0, 4.0)
    recipe = Gaussian(scale=0.3)
    together = recipe.draw("w", weight, seed, range(start, start + count))
    for row in range(count):
        assert torch.equal(together[row], recipe.draw("w", weight, seed, range(start + row, start + row + 1))[0])


def test_parameters_are_chosen_by_default_and_buffers_only_by_name():
    assert Gaussian(0.1).select(WEIGHTS, TRAINABLE) == ["fc1.weight", "fc1.bias", "fc2.weight"]
    assert Gaussian(0.1, include="norm.*").select(WEIGHTS, TRAINABLE) == ["norm.running_mean"]
    assert Gaussian(0.1, include=["fc?.weight"], exclude="fc2*").select(WEIGHTS, TRAINABLE) == ["fc1.weight"]
    assert Gaussian(0.1, exclude=("*.bias", "norm.*")).select(WEIGHTS, TRAINABLE) == ["fc1.weight", "fc2.weight"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"include": "head.*"}, r"'head.\*' matches none of this model's weights: fc1.weight, "),
        ({"exclude": "head.*"}, r"'head.\*' matches none"),
        ({"include": "norm.count"}, "'norm.count' matches none"),
        ({"exclude": "*"}, "Nothing is left to perturb"),
    ],
)
def test_patterns_that_choose_nothing_are_refused_with_the_names(settings, text):
    with pytest.raises(RecipeError, match=text):
        Gaussian(0.1, **settings).select(WEIGHTS, TRAINABLE)


@pytest.mark.parametrize("scale", [-0.1, math.inf, math.nan, "1", None, True, 10**400, [0.1]])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(RecipeError, match="scale must be a finite number ≥ 0"):
        Gaussian(scale=scale)


@pytest.mark.parametrize("patterns", ["", [""], [1], [None], [["a"]], 3, None])
def test_patterns_that_are_no_text_are_refused(patterns):
    with pytest.raises(RecipeError, match="must be name patterns"):
        Gaussian(0.1, include=patterns)


def test_settings_go_round():
    recipe = Gaussian(scale=0.25, include=["a*", "b"], exclude="c")
    assert recipe.settings() == {"scale": 0.25, "include": ["a*", "b"], "exclude": ["c"]}
    assert Gaussian.from_settings(recipe.settings()) == recipe
    assert hash(recipe) == hash(Gaussian(0.25, ("a*", "b"), ("c",)))
    with pytest.raises(RecipeError, match="has no setting rank"):
        Gaussian.from_settings({"scale": 1, "rank": 2})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.scale = 1


def test_buffers_can_be_perturbed_by_name():
    model = seeded(SCENARIOS["cnn"])
    recipe = Gaussian(0.1, include=["*running_mean", "head.*"])
    ens = ensemble.perturb(model, recipe, members=3, example=SCENARIOS["cnn"].inputs(2))
    assert sorted(ens.members.stacked) == [
        "features.1.running_mean",
        "features.5.running_mean",
        "head.bias",
        "head.weight",
    ]


def test_the_text_of_an_ensemble_names_its_recipe():
    ens = ensemble.perturb(mlp(), Gaussian(0.1), members=2, example=torch.zeros(1, 6))
    assert repr(ens).startswith("Ensemble(2 members, Gaussian(scale=0.1, include=('*',), exclude=()), seed=0, task=raw")
