"""Members that data made: kept as they are, stacked or as factors, with their weights in the mixture."""

from dataclasses import dataclass

import pytest
import torch

import ensemble
from ensemble.calibration import Calibration
from ensemble.data import Data
from ensemble.members import Members
from ensemble.perturbation import Learned, Recipe
from ensemble.perturbation.factors import Factors, Shape
from ensemble.structured import LEFT, RIGHT
from tests.scenarios import mlp
from tests.tampering import change_json


@pytest.fixture
def centred(monkeypatch):
    """A recipe that someone else wrote: factors on matrices, vectors moved by the mean of what it was given."""
    monkeypatch.setattr(Recipe, "known", dict(Recipe.known))
    monkeypatch.setattr("ensemble.storage.manifest.recipes", Recipe.known)

    @dataclass(frozen=True)
    class Centred(Learned, name="centred"):
        start: Recipe | None = None

        def select(self, weights, trainable):
            return [name for name in weights if name in trainable]

        def make(self, material):
            assert isinstance(material.data, Data)
            by = material.data.inputs[0].mean()
            draw = torch.Generator().manual_seed(material.seed)
            shared, stacked, factored = dict(material.weights), {}, {}
            for name in material.names:
                weight = material.weights[name]
                if weight.ndim == 2:
                    shape = factored[name] = Shape("additive", 1, tuple(weight.shape))
                    for side, size in zip((LEFT, RIGHT), shape.factors, strict=True):
                        stacked[name + side] = torch.randn(material.count, *size, generator=draw)
                else:
                    own = shared.pop(name)
                    stacked[name] = torch.stack([own + by * i for i in range(material.count)])
            weights = torch.arange(1.0, material.count + 1, dtype=torch.float64)
            return Members(material.count, shared, stacked, factored, weights / weights.sum())

    return Centred


def make(recipe):
    data = torch.randn(20, 6)
    return ensemble.perturb(mlp(), recipe, members=5, seed=3, data=data, task="classification")


def test_learned_members_are_saved_as_they_are(centred, tmp_path):
    ens = make(centred(start=ensemble.LowRank(scale=0.1)))
    x = torch.randn(4, 6)
    assert torch.allclose(ens(x), ens.loop(x), atol=1e-5)
    name, base = next(iter(ens.origin.reference.items()))
    factors = Factors("additive", ens.members.stacked[name + LEFT], ens.members.stacked[name + RIGHT])
    assert torch.allclose(ens.member(2)[name], factors.materialise(base)[2], atol=1e-6)
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == centred(start=ensemble.LowRank(scale=0.1))
    assert torch.equal(again(x), ens(x))
    assert torch.equal(again.members.mixture, ens.members.mixture)
    assert ensemble.compatibility(again) == ensemble.compatibility(ens)
    again.save(tmp_path / "n")
    for file in ("weights.safetensors", "graph.json"):
        assert (tmp_path / "n" / file).read_bytes() == (tmp_path / "m" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["factored"].update({"no.such": {"form": "additive", "rank": 1}}), "is no weight that has factors"),
        (lambda m: next(iter(m["factored"].values())).update(rank=2), "are not those that manifest.json states"),
        (lambda m: next(iter(m["factored"].values())).update(form="other"), "missing or wrong: factored"),
        (lambda m: m.update(factored={}), "Build the ensemble again"),
        (lambda m: m.update(members=4), "does not hold the 4 members"),
    ],
)
def test_a_manifest_that_does_not_go_with_the_stored_members_is_refused(centred, tmp_path, change, match):
    make(centred()).save(tmp_path / "m")
    change_json(tmp_path / "m", "manifest.json", change)
    with pytest.raises(ensemble.ArtifactError, match=match):
        ensemble.load(tmp_path / "m")


def test_what_was_fitted_is_saved_with_the_ensemble(centred, tmp_path):
    ens = make(centred())
    scores = torch.rand(30, dtype=torch.float64).sort().values
    ens.calibration = Calibration(1.5, set_score="lac", set_scores=scores, epistemic=scores, risk=0.05)
    ens.report = {"kept": "centred", "curve": [[0.0, 1.25]]}
    ens.save(tmp_path / "m")
    for again in (ensemble.load(tmp_path / "m"), ensemble.load(tmp_path / "m").to(dtype=torch.float64)):
        assert again.calibration.settings() == ens.calibration.settings()
        assert again.calibration.tensors().keys() == {"set_scores", "epistemic"}
        assert torch.equal(again.calibration.set_scores, scores)
        assert again.report == ens.report


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["calibration"].update(temperature=0), "wrong values: temperature"),
        (lambda m: m["calibration"].update(confidence_level=1.0), "wrong values: confidence_level"),
        (lambda m: m["calibration"].update(set_score=None), "not both set_score and set_scores"),
        (lambda m: m["calibration"].update(interval_score="cqr"), "not both interval_score and interval_scores"),
        (lambda m: m["calibration"].pop("risk"), "other fields"),
    ],
)
def test_a_calibration_that_fitting_would_not_have_given_is_refused(centred, tmp_path, change, match):
    ens = make(centred())
    ens.calibration = Calibration(set_score="lac", set_scores=torch.rand(9, dtype=torch.float64).sort().values)
    ens.save(tmp_path / "m")
    change_json(tmp_path / "m", "manifest.json", change)
    with pytest.raises(ensemble.ArtifactError, match=match):
        ensemble.load(tmp_path / "m")


def test_scores_must_be_ascending(centred, tmp_path):
    ens = make(centred())
    ens.calibration = Calibration(set_score="lac", set_scores=torch.tensor([0.5, 0.2]))
    ens.save(tmp_path / "m")
    with pytest.raises(ensemble.ArtifactError, match="set_scores are not ascending"):
        ensemble.load(tmp_path / "m")


def test_a_recipe_among_settings_must_be_one(centred):
    with pytest.raises(ensemble.RecipeError, match="There is no recipe 'nothing'"):
        centred.from_settings({"start": {"recipe": "nothing", "settings": {}}})
    with pytest.raises(ensemble.RecipeError, match="A recipe among settings is"):
        centred.from_settings({"start": {"of": "nothing"}})


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.5, -0.5], [1.0], [float("nan"), 1.0]])
def test_weights_of_members_are_a_mixture(weights):
    with pytest.raises(ensemble.ModelError, match="must be 2 numbers of at least 0 that sum to 1"):
        Members(2, {}, {"w": torch.zeros(2, 1)}, {}, torch.tensor(weights, dtype=torch.float64))
