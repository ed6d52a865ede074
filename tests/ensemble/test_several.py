import dataclasses
import functools

import pytest
import torch
from torch import nn

import ensemble
from ensemble import ModelError, RecipeError
from ensemble.perturbation.stacked import Stacked
from ensemble.several import model_seed
from tests.reference import call, difference, worst
from tests.scenarios import SCENARIOS, mlp, seeded

pytestmark = pytest.mark.usefixtures("exported_once")
X = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (6,), generator=torch.Generator().manual_seed(1))


@functools.cache
def model(name, seed):
    return seeded(SCENARIOS[name], seed)


def models(count=3, name="mlp"):
    return [model(name, seed) for seed in range(count)]


def snapshots(model):
    return [{name: value + 0.1 * step for name, value in model.state_dict().items()} for step in range(3)]


RECIPES = [
    ensemble.Gaussian(0.1),
    ensemble.LowRank(0.2, rank=2),
    ensemble.Dropout(0.3),
    ensemble.PerturbAndCorrect(scale=0.3),
    ensemble.Laplace(scale=0.5),
    ensemble.Mixture((ensemble.Rank1(0.0), ensemble.Rank1(0.2)), (0.25, 0.75)),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_member_i_is_member_i_over_k_of_model_i_mod_k(recipe, tmp_path):
    trained = models()
    ens = ensemble.perturb(trained, recipe, members=8, data=(X, Y), seed=4, task="classification")
    for number, model in enumerate(trained):
        own = ensemble.perturb(
            model, recipe, members=len(range(number, 8, 3)), data=(X, Y), seed=model_seed(4, number),
            task="classification",
        )  # fmt: skip
        for index in range(number, 8, 3):
            for name, value in own.member(index // 3).items():
                torch.testing.assert_close(ens.member(index)[name], value, rtol=1e-5, atol=1e-6)
    assert ens.check() <= 1e-5
    assert worst(ens(X), trained[0], [ens.member(i) for i in range(8)], X) <= 1e-5
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == ens.origin.recipe
    assert torch.equal(again(X), ens(X))
    assert ensemble.compatibility(again) == ensemble.compatibility(ens)


@pytest.mark.parametrize("name", ["cnn"])
def test_of_larger_models_too(name):
    trained, inputs = models(2, name), SCENARIOS[name].inputs(4)
    ens = ensemble.perturb(trained, ensemble.Rank1(0.1), members=5, example=SCENARIOS[name].inputs(3))
    assert worst(call(ens, inputs), trained[0], [ens.member(i) for i in range(5)], inputs) <= 1e-5


def test_a_member_does_not_depend_on_the_number_of_members():
    trained = models(2)
    few, many = (ensemble.perturb(trained, ensemble.LowRank(0.2), members=n, example=X, seed=1) for n in (3, 12))
    for index in range(3):
        for name, value in few.member(index).items():
            assert torch.equal(many.member(index)[name], value)
    # Each model's noise is its own.
    noise = [few.member(i)["0.weight"] - trained[i].state_dict()["0.weight"] for i in range(2)]
    assert not torch.allclose(noise[0] / noise[0].norm(), noise[1] / noise[1].norm(), atol=0.1)


def test_without_noise_the_members_are_the_models_and_their_mean_is_that_of_the_stack():
    trained = models()
    ens = ensemble.perturb(trained, ensemble.Gaussian(0), members=6, example=X, task="classification")
    stacked = ensemble.stack(trained, example=X, task="classification")
    assert difference(ens(X)[:3], stacked(X)) <= 1e-6
    names = ["mean", "mutual_information"]
    got, want = (one.predict(X, statistics=names) for one in (ens, stacked))
    for name in names:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-6)


def test_what_the_models_share_stays_shared_and_on_factors():
    trained = [mlp() for _ in range(2)]
    trained[1][0].load_state_dict(trained[0][0].state_dict())
    ens = ensemble.perturb(trained, ensemble.Rank1(0.1, include="*.weight"), members=5, example=X)
    found = {row.name: (row.how, row.why) for row in ensemble.compatibility(ens)}
    assert found["0.bias"] == ("shared", "equal in all models, and no recipe touches it")
    assert found["0.weight"][0] == "factored"
    assert found["3.weight"] == ("stacked", "differs between the models, so every member has it in full")
    assert worst(ens(X), trained[0], [ens.member(i) for i in range(5)], X) <= 1e-5


def test_weights_in_the_mixture_are_shared_out_among_the_models():
    parts = (ensemble.Rank1(0.0), ensemble.Rank1(0.2))
    ens = ensemble.perturb(models(2), ensemble.Mixture(parts, (0.2, 0.8)), members=9, example=X)
    own = [ensemble.Mixture(parts, (0.2, 0.8)).mixture(count) for count in (5, 4)]
    assert torch.allclose(ens.members.mixture[0::2], own[0] * 5 / 9)
    assert torch.allclose(ens.members.mixture[1::2], own[1] * 4 / 9)
    mixed = ensemble.perturb(
        models(2), [ensemble.Rank1(0.1), ensemble.Mixture(parts, (0.2, 0.8))], members=9, example=X
    )
    assert torch.allclose(mixed.members.mixture[0::2], torch.full((5,), 1 / 9, dtype=torch.float64))


def test_every_model_may_have_a_recipe_of_its_own():
    trained = models(2)
    recipes = [ensemble.Swag(snapshots(model), scale=0.5) for model in trained]
    ens = ensemble.perturb(trained, recipes, members=4, example=X, seed=2)
    for number, (model, recipe) in enumerate(zip(trained, recipes, strict=True)):
        own = ensemble.perturb(model, recipe, members=2, example=X, seed=model_seed(2, number))
        torch.testing.assert_close(ens.member(2 + number), own.member(1))
    assert ens.origin.recipe == Stacked(tuple(dataclasses.replace(r, snapshots=None) for r in recipes), 2)
    assert all(recipe.snapshots is None for recipe in ens.origin.recipe.recipes)


def test_progress_and_other_options_are_those_of_one_model():
    seen = []
    ens = ensemble.perturb(
        models(2),
        ensemble.Gaussian(0.1),
        members=4,
        example=X,
        dtype=torch.float64,
        progress=lambda *at: seen.append(at),
    )
    assert ens.dtype == torch.float64
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    live = ensemble.perturb(models(2), ensemble.Gaussian(0.1), members=4, example=X, live=True)
    assert difference(live(X), ens(X).float()) <= 1e-5


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.fc, self.factor = nn.Linear(6, 3), factor

    def forward(self, x):
        return self.fc(x) * self.factor


@pytest.mark.parametrize(
    ("model", "recipe", "error", "text"),
    [
        ([], ensemble.Gaussian(0.1), ModelError, "or several of them in a list, however: list of nothing"),
        ([mlp(), 3], ensemble.Gaussian(0.1), ModelError, "however: list of Sequential, int"),
        ("net", ensemble.Gaussian(0.1), ModelError, "however: str"),
        ([mlp(), mlp()], [], RecipeError, "recipe must be one such as Gaussian"),
        ([mlp(), mlp()], [ensemble.Gaussian(0.1)] * 3, RecipeError, "There are 3 recipes for 2 models"),
        ([mlp()] * 3, ensemble.Gaussian(0.1), RecipeError, "3 models need at least as many members, however: 2"),
        ([mlp(), nn.Linear(6, 4)], ensemble.Gaussian(0.1), ModelError, "Model 1 is a Linear, model 0 a Sequential"),
        ([Scaled(1), Scaled(2)], ensemble.Gaussian(0.1), ModelError, "Model 1 gives another 'output' than model 0"),
        (mlp(), Stacked((ensemble.Gaussian(0.1),), 2), RecipeError, r"perturb\(\[model_a, model_b\], recipe"),
    ],
)
def test_what_cannot_be_perturbed_together_is_refused(model, recipe, error, text):
    with pytest.raises(error, match=text):
        ensemble.perturb(model, recipe, members=2, example=X)


def test_members_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("ensemble.memory.available", lambda device: 20_000)
    with pytest.raises(ensemble.MemoryLimitError, match="What would fit"):
        ensemble.perturb(models(2), ensemble.Rank1(0.1), members=60, example=X)


@pytest.mark.parametrize(
    "settings", [((), 2), ((ensemble.Gaussian(0.1),), 1), ((ensemble.Gaussian(0.1),) * 3, 2), (("x",), 2)]
)
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(RecipeError, match=r"recipes must be|models must be|give one, or one each"):
        Stacked(*settings)


def test_settings_go_round():
    recipe = Stacked((ensemble.Gaussian(0.1), ensemble.Rank1(0.2)), 2)
    assert Stacked.from_settings(recipe.settings()) == recipe
