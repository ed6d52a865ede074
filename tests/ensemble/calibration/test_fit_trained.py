"""Recipes whose members are trained: no member that was trained for any setting is thrown away."""

import math

import pytest
import torch
from torch import nn

import ensemble
from ensemble.calibration.families import Average, Family
from ensemble.calibration.search import _in_order
from ensemble.perturbation.adapted import Adapted

ROWS, STEPS = 60, 4


def generator(seed):
    return torch.Generator().manual_seed(seed)


def rows(seed):
    x = torch.randn(ROWS, 2, generator=generator(seed))
    return x, x.sum(1, keepdim=True).sin() + 0.3 * torch.randn(ROWS, 1, generator=generator(seed + 1))


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    recipe = Adapted(steps=STEPS, lr=0.05)
    count = 3 * len(list(Adapted.candidates()))
    made = ensemble.fit(
        model, rows(0), validation=rows(10), task="regression", recipe=recipe, members=count, conformal=0, budget="5m"
    )
    return model, recipe, count, made


def test_all_members_of_all_settings_are_kept_and_the_net_beside_them(fitted):
    model, recipe, count, made = fitted
    expected = [ensemble.stack([model, model_like(model)], example=rows(0)[0]).members.whole(0)]
    for settings in Adapted.candidates():
        varied = ensemble.perturbation.recipes["adapted"](**{"steps": STEPS, "lr": recipe.lr, **settings})
        own = ensemble.perturb(model, varied, members=3, data=rows(0), task="regression")
        expected += [own.members.whole(index) for index in range(3)]
    # What the rows do not speak for may be left out; nothing else may be among them, and nothing twice but the net.
    found = [made.members.whole(index) for index in range(len(made))]
    places = [next(i for i, one in enumerate(expected) if same(one, member)) for member in found]
    trained = [place for place in places if place]
    assert len(set(trained)) == len(trained) > count // 3
    assert places.count(0) <= 2


def model_like(model):
    other = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    other.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    return other


def same(one, other):
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_mixture_is_as_likely_as_the_report_says(fitted):
    made = fitted[3]
    x, y = rows(10)
    values = made.predict(x, statistics=["members"]).members.squeeze(-1).double()
    noise = made.calibration.noise_variances
    assert len(noise) == len(made.members.mixture) == len(made)
    each = -((y - values) ** 2 / noise + (2 * math.pi * noise).log()) / 2
    reached = (each.exp() @ made.members.mixture).log().mean()
    assert float(made.members.mixture.sum()) == pytest.approx(1)
    assert float(reached) == pytest.approx(made.report["kept"]["log_likelihood"], abs=1e-4)


@pytest.mark.parametrize(
    ("behind", "first"), [(-0.2, "adapted"), (0.0, "adapted"), (0.15, "adapted"), (0.25, "rank1"), (1.0, "rank1")]
)
def test_what_trains_is_kept_unless_the_rows_surely_speak_against_it(behind, first):
    # The rows' differences have a standard deviation of 1, and there are 100: two standard errors are 0.2.
    noise = torch.linspace(-1, 1, 100, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()

    def average(recipe, values):
        return Average(Family(recipe.name, [recipe]), (), 1.0, values, float(values.mean()))

    net = average(ensemble.Rank1(scale=0.0), torch.full((100,), -1.0, dtype=torch.float64))
    drawn = average(ensemble.Rank1(scale=0.1), torch.zeros(100, dtype=torch.float64))
    trained = average(ensemble.Adapted(steps=3, lr=0.1), noise - behind)
    assert next(one.family.name for one in _in_order([drawn, trained], net)) == first
    assert _in_order([trained, drawn], net) == _in_order([drawn, trained], net)
