from dataclasses import dataclass

import pytest
import torch

import ensemble
from ensemble.perturbation import Perturbation, Recipe, recipes
from ensemble.perturbation.base import choose
from tests.scenarios import mlp


@pytest.fixture
def shifted(monkeypatch):
    """A recipe that someone else wrote."""
    monkeypatch.setattr(Recipe, "known", dict(Recipe.known))
    monkeypatch.setattr("ensemble.storage.manifest.recipes", Recipe.known)

    @dataclass(frozen=True)
    class Shift(Perturbation, name="shift"):
        by: float = 1.0

        def select(self, weights, trainable):
            return [name for name in weights if name in trainable]

        def draw(self, name, weight, seed, members):
            return torch.stack([weight + self.by * (seed + member) for member in members])

    return Shift


def test_recipes_are_known_by_their_names():
    assert recipes["gaussian"] is ensemble.Gaussian
    assert Recipe.known is recipes


def test_a_recipe_of_ones_own_is_used_saved_and_loaded(shifted, tmp_path):
    model, x = mlp(), torch.randn(3, 6)
    ens = ensemble.perturb(model, shifted(by=0.5), members=4, seed=2, example=x)
    for name, weight in model.named_parameters():
        assert torch.equal(ens.member(3)[name], weight + 2.5)
    ens.save(tmp_path / "own")
    again = ensemble.load(tmp_path / "own")
    assert again.origin.recipe == shifted(by=0.5)
    assert torch.equal(again(x), ens(x))


def test_an_unknown_recipe_is_named_when_it_is_loaded(shifted, tmp_path, monkeypatch):
    ens = ensemble.perturb(mlp(), shifted(), members=2, example=torch.zeros(1, 6))
    ens.save(tmp_path / "own")
    monkeypatch.delitem(Recipe.known, "shift")
    with pytest.raises(ensemble.ArtifactError, match="names the recipe 'shift', which this version does not know"):
        ensemble.load(tmp_path / "own")


def test_a_recipe_whose_code_has_changed_is_noticed(shifted, tmp_path, monkeypatch):
    ens = ensemble.perturb(mlp(), shifted(), members=2, example=torch.zeros(1, 6))
    ens.save(tmp_path / "own")
    monkeypatch.setattr(
        shifted, "draw", lambda self, name, weight, seed, members: weight.expand(len(members), *weight.shape)
    )
    with pytest.raises(ensemble.ArtifactError, match="not those that were saved"):
        ensemble.load(tmp_path / "own")


def test_a_long_list_of_names_is_cut():
    names = [f"layer{i}.weight" for i in range(40)]
    with pytest.raises(ensemble.RecipeError, match=r"layer11.weight, ... \(40 in all\)"):
        choose(names, names, ["head"], [])
