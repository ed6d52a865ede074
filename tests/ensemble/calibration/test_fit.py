"""Fitting as a whole: on data whose noise, temperature and best scale are known."""

import copy
import functools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import ensemble
from ensemble import Gaussian, InputError, LowRank, Mixture, ModelError, Rank1, RecipeError, StatisticError, fit
from ensemble.calibration.families import families
from ensemble.calibration.search import tried_members
from ensemble.calibration.state import Calibration
from ensemble.calibration.thresholds import fitted
from ensemble.data import Data
from ensemble.learning.snapshots import SwagSnapshots
from ensemble.perturbation import Learned, Perturbation, Recipe
from ensemble.perturbation.swag import Swag
from ensemble.program.capture import capture

STATIC = ["gaussian", "rank1"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Sine(nn.Module):
    """The truth itself, as a network with weights to perturb: y = a sin(b x)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.outer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.inner.weight, 2.0)
        nn.init.zeros_(self.inner.bias)
        nn.init.constant_(self.outer.weight, 1.5)

    def forward(self, x):
        return self.outer(self.inner(x).sin())


def truth(rows, seed, noise=0.3):
    g = generator(seed)
    x = 4 * torch.rand(rows, 1, generator=g) - 2
    return x, 1.5 * (2 * x).sin() + noise * torch.randn(rows, 1, generator=g)


class Scaled(nn.Module):
    """Logits of three classes that are ``factor`` times what they should be."""

    def __init__(self, factor):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.factor = factor
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]]))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.factor * self.layer(x)


def classes(rows, seed):
    g = generator(seed)
    x = torch.randn(rows, 2, generator=g)
    p = Scaled(1.0)(x).softmax(-1).detach()
    return x, torch.multinomial(p, 1, generator=g).squeeze(1)


@functools.lru_cache
def trained(rows=25, seed=0, steps=600):
    """A network that was trained on so few rows that it is not sure of much."""
    torch.manual_seed(seed)
    x, y = truth(rows, seed + 50)
    net = nn.Sequential(nn.Linear(1, 30), nn.ReLU(), nn.Linear(30, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    return net


@pytest.fixture(autouse=True)
def exported_once(monkeypatch):
    """Exports a model once, however often it is fitted; that it comes out the same each time is tested elsewhere."""
    monkeypatch.setattr("ensemble.calibration.fit.capture", lambda model, x, live: captured(model, x.shape[1:], live))


@functools.lru_cache
def captured(model, shape, live):
    return capture(model, torch.randn(3, *shape), live=live)


def log_likelihood(ens, x, y):
    """Mean log density of targets, from every member's output, by the formula."""
    means = ens(x).double().squeeze(-1).detach().numpy()
    noise = ens.calibration.noise_variances.numpy()[:, None]
    weights = ens.members.mixture
    share = np.full(len(ens), 1 / len(ens)) if weights is None else weights.numpy()
    each = -0.5 * ((y.double().squeeze(-1).numpy() - means) ** 2 / noise + np.log(2 * np.pi * noise))
    return float(np.log((share[:, None] * np.exp(each)).sum(0)).mean())


def test_the_truth_is_left_alone_and_its_noise_found():
    ens = fit(Sine(), truth(800, 1), task="regression", recipe=STATIC, members=16)
    assert ens.noise_variance == pytest.approx(0.09, rel=0.15)
    kept = ens.report["kept"]
    weight = sum(s["weight"] for s in kept["settings"] if s["settings"] is None or s["settings"]["scale"] <= 0.03)
    assert weight > 0.99
    x, y = truth(2000, 2)
    best = -0.5 * math.log(2 * math.pi * math.e * 0.09)
    assert log_likelihood(ens, x, y) == pytest.approx(best, abs=0.06)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_of_logits_that_are_too_large_or_too_small_is_found(factor):
    ens = fit(Scaled(factor), classes(1500, 3), task="classification", recipe="rank1", members=16)
    assert ens.calibration.temperature == pytest.approx(factor, rel=0.15)


def test_the_variances_that_a_model_states_are_put_right():
    class Stating(Sine):
        def forward(self, x):
            mean = super().forward(x)
            return mean, torch.full_like(mean, 0.01) + 0 * mean

    ens = fit(Stating(), truth(800, 1), task="gaussian", recipe="rank1", members=16)
    x, y = truth(1000, 5)
    found = ens.predict(x, statistics=["aleatoric_variance", "log_prob"], target=y)
    assert float(found.aleatoric_variance.mean()) == pytest.approx(0.09, rel=0.15)
    assert float(found.log_prob.mean()) == pytest.approx(-0.5 * math.log(2 * math.pi * math.e * 0.09), abs=0.05)


def test_where_the_net_is_wrong_members_differ_and_are_likelier_on_new_rows():
    net = trained()
    ens = fit(net, truth(300, 7), task="regression", recipe=STATIC, members=64)
    alone = fit(net, truth(300, 7), task="regression", recipe=Gaussian(0.0), members=64)
    x, y = truth(3000, 8)
    assert log_likelihood(ens, x, y) > log_likelihood(alone, x, y) - 0.01
    assert ens.report["kept"]["log_likelihood"] >= ens.report["single"]["log_likelihood"] - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_held_out_rows_are_never_less_likely_than_under_the_net_alone(seed):
    ens = fit(trained(seed=seed, steps=150), truth(60, seed), task="regression", recipe=STATIC, members=16, seed=seed)
    alone = next(one["curve"][0] for one in ens.report["recipes"])
    assert alone["settings"] is None
    assert ens.report["kept"]["log_likelihood"] >= alone["log_likelihood"] - 0.02
    assert ens.report["kept"]["log_likelihood"] >= ens.report["single"]["log_likelihood"]


def test_the_reports_numbers_are_those_of_the_ensemble():
    data = truth(200, 4)
    ens = fit(trained(), data, task="regression", recipe=STATIC, members=32, conformal=0.0, seed=3)
    found = ens.report
    assert found["rows"] == {"learning": 0, "selection": 200, "conformal": 0}
    assert log_likelihood(ens, *data) == pytest.approx(found["kept"]["log_likelihood"], abs=1e-5)
    # Of one setting: 32 members with the likeliest noise variance, by a search of its own.
    curve = {one["settings"]["scale"]: one for one in found["recipes"][0]["curve"] if one["settings"]}
    kind = Recipe.known[found["recipes"][0]["recipe"]]
    made = ensemble.perturb(trained(), kind(scale=0.1), members=32, example=data[0], seed=3)
    means, y = made(data[0]).double(), data[1].double()
    best = max(
        float(torch.distributions.Normal(means, v**0.5).log_prob(y).logsumexp(0).mean()) - math.log(32)
        for v in np.geomspace(0.01, 1, 120)
    )
    assert curve[0.1]["log_likelihood"] == pytest.approx(best, abs=2e-3)
    weights = sum(one["weight"] for one in found["recipes"][0]["curve"])
    assert weights == pytest.approx(1)
    json.dumps(found, allow_nan=False)


def test_coverage_of_intervals_over_repeated_draws():
    """With n = 60 rows set aside the threshold is the 55th smallest score, so a new row is covered with a probability
    of 55 / 61: at least the level of 0.9, and less than 1 / 61 above it."""
    net, covered, rows = trained(), 0, 0
    for seed in range(12):
        ens = fit(net, truth(150, 100 + seed), task="regression", recipe="rank1", members=8, seed=seed, budget="1s")
        x, y = truth(500, 1000 + seed)
        low, high = ens.predict(x, statistics=["prediction_interval"]).prediction_interval.unbind(-1)
        covered += int(((low <= y) & (y <= high)).sum())
        rows += len(y)
    # A fit's own coverage is Beta distributed around the level, with a variance of p (1 - p) / (n + 2), n = 60.
    spread = math.sqrt(0.09 / 62 / 12 + 0.09 / rows)
    assert abs(covered / rows - 55 / 61) < 3.5 * spread


def test_coverage_of_sets_over_repeated_draws():
    net, covered, rows = Scaled(3.0), 0, 0
    for seed in range(12):
        given = classes(150, 100 + seed)
        ens = fit(net, given, task="classification", recipe="rank1", members=8, seed=seed, budget="1s", set_score="lac")
        x, y = classes(500, 1000 + seed)
        sets = ens.predict(x, statistics=["prediction_set"]).prediction_set
        covered += int(sets[range(500), y].sum())
        rows += len(y)
    spread = math.sqrt(0.09 / 62 / 12 + 0.09 / rows)
    assert abs(covered / rows - 55 / 61) < 3.5 * spread


@pytest.mark.parametrize(
    ("task", "model", "make"), [("regression", Sine(), truth), ("classification", Scaled(1.0), classes)]
)
def test_answers_that_do_not_abstain_keep_to_the_risk(task, model, make):
    risk = 0.09 if task == "regression" else 0.1
    errors, answered = 0.0, 0
    for seed in range(4):
        ens = fit(model, make(400, 30 + seed), task=task, recipe="rank1", members=8, risk=risk, seed=seed, budget="1s")
        x, y = make(1000, 60 + seed)
        found = ens.predict(x, statistics=["abstain", "mean"])
        kept = ~found.abstain
        loss = (found.mean - y).square().squeeze(-1) if task == "regression" else (found.mean.argmax(-1) != y).float()
        errors, answered = errors + float(loss[kept].sum()), answered + int(kept.sum())
    assert ens.calibration.risk == risk
    if task == "classification":
        assert 200 < answered < 4000
        assert errors / answered < risk + 3 * math.sqrt(risk * (1 - risk) / answered)


@pytest.mark.parametrize(
    ("task", "model", "make"), [("regression", Sine(), truth), ("classification", Scaled(1.0), classes)]
)
def test_where_members_agree_nothing_is_out_of_the_ordinary(task, model, make):
    """Their variance is rounding, whose order would say nothing."""
    x, y = make(100, 1)
    for scale, differ in ((0.0, False), (1e-3, True)):
        noise = 0.09 if task == "regression" else None
        ens = ensemble.perturb(model, Rank1(scale), members=8, example=x, task=task, noise_variance=noise)
        ens.calibration, notes = fitted(
            ens, Data((x,), y), Calibration(), interval_score="normalised", set_score="lac", risk=None
        )
        assert any("ood_score tells nothing" in note for note in notes) != differ
        assert ("ood_score" in ens.available_statistics()) == differ
        if not differ:
            with pytest.raises(
                StatisticError, match=r"ood_score was not fitted: .* or the members agree on all of them"
            ):
                ens.predict(x, statistics=["ood_score"])
        with pytest.raises(StatisticError, match=r"abstain was not fitted: it keeps answers to a risk, .* risk=\)"):
            ens.predict(x, statistics=["abstain"])


def test_a_risk_that_cannot_be_kept_has_every_row_abstain():
    ens = fit(Sine(), truth(100, 1), task="regression", recipe="rank1", members=4, risk=1e-6)
    assert bool(ens.predict(truth(20, 2)[0], statistics=["abstain"]).abstain.all())
    assert any("every row abstains" in note for note in ens.report["notes"])


@pytest.mark.parametrize("score", ["normalised", "cqr"])
def test_a_fitted_ensemble_is_saved_and_loaded_with_all_of_it(tmp_path, score):
    ens = fit(
        trained(), truth(200, 4), task="regression", recipe="low_rank", members=24, interval_score=score,
        confidence_level=0.8, metadata={"unit": "m"},
    )  # fmt: skip
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.report == ens.report
    assert again.calibration.confidence_level == 0.8
    x = truth(9, 5)[0]
    asked = ["mean", "std", "prediction_interval", "ood_score", "quantiles"]
    before, after = ens.predict(x, statistics=asked).flat(), again.predict(x, statistics=asked).flat()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Weights, recipe and seed are all that is kept of the members.
    assert isinstance(again.origin.recipe, Mixture | LowRank)
    assert (tmp_path / "m" / "weights.safetensors").stat().st_size < 3000


def test_several_elements_of_a_target():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.Unflatten(1, (2, 2)))
    x = torch.randn(200, 3, generator=generator(0))
    y = net(x).detach() + 0.1 * torch.randn(200, 2, 2, generator=generator(1))
    ens = fit(net, (x, y), task="regression", recipe="gaussian", members=8)
    assert ens.noise_variance == pytest.approx(0.01, rel=0.3)
    assert ens.predict(x, statistics=["prediction_interval"]).prediction_interval.shape == (200, 2, 2, 2)


@pytest.fixture
def shifting(monkeypatch):
    """A recipe that someone else wrote, which learns the bias that data show, in so many settings."""
    monkeypatch.setattr(Recipe, "known", dict(Recipe.known))
    monkeypatch.setattr("ensemble.calibration.families.recipes", Recipe.known)

    @dataclass(frozen=True)
    class Shifting(Learned, name="shifting"):
        share: float = 1.0

        @classmethod
        def candidates(cls):
            return [{"share": share} for share in (0.0, 0.5, 1.0)]

        def select(self, weights, trainable):
            return ["2.bias"]

        def make(self, material):
            if material.data is None:
                raise RecipeError("shifting needs data: give them.")
            found = material.program(material.weights, material.data.inputs)[0]
            by = self.share * (material.data.targets - found).mean(0)
            shared = dict(material.weights)
            own = shared.pop("2.bias")
            noise = torch.randn(material.count, 1, generator=torch.Generator().manual_seed(material.seed))
            return ensemble.members.Members(material.count, shared, {"2.bias": own + by + 0.001 * noise})

    return Shifting


def biased():
    net = copy.deepcopy(trained())
    with torch.no_grad():
        net[2].bias += 2.0
    return net


def test_a_recipe_that_learns_is_found_by_auto_and_kept_if_it_is_best(shifting, tmp_path):
    ens = fit(biased(), truth(200, 1), validation=truth(200, 2), task="regression", members=16, budget="20s",
              recipe=["rank1", "shifting"])  # fmt: skip
    assert ens.report["kept"]["recipe"] == "shifting"
    assert ens.report["rows"]["learning"] == 200
    assert ens.origin.recipe == shifting(share=1.0)
    x, y = truth(500, 9)
    assert float((ens.predict(x).mean - y).mean()) == pytest.approx(0, abs=0.1)
    assert ens.predict(x, statistics=["mean"]).mean.shape == (500, 1)
    assert "shifting" in {family.name for family in families("auto")}


def test_what_cannot_be_had_is_told_and_the_rest_goes_on(shifting, monkeypatch):
    monkeypatch.setattr("ensemble.calibration.families.recipes", {"rank1": Rank1, "shifting": shifting, "swag": Swag})
    ens = fit(trained(), truth(100, 1), task="regression", members=4)
    told = {one["recipe"]: one for one in ens.report["recipes"]}
    assert told["shifting"]["failure"] == "there are no rows for it to learn from"
    assert told["rank1"]["log_likelihood"] is not None
    # What learns from neither rows nor anything else that is there is not spoken of.
    assert "swag" not in told
    (note,) = (note for note in ens.report["notes"] if "shifting" in note)
    assert note.startswith("shifting learns from rows that choose nothing: give validation=(inputs, targets)")
    assert "--validation" in note
    with pytest.raises(RecipeError, match="pattern 'no'"):
        fit(trained(), truth(100, 1), task="regression", members=4, recipe=Rank1(0.1, include="no"))


def test_of_several_recipes_those_that_learn_get_a_third_of_the_rows(shifting):
    ens = fit(biased(), truth(150, 1), task="regression", members=4, recipe=["rank1", "shifting"], budget="20s")
    assert ens.report["rows"] == {"learning": 50, "selection": 60, "conformal": 40}
    assert ens.report["kept"]["recipe"] == "shifting"


def test_rows_without_targets_are_enough_for_what_learns_from_inputs(shifting):
    asked = ["perturb_and_correct", "shifting"]
    made = {"task": "regression", "members": 4, "validation": truth(60, 2), "budget": "20s"}
    ens = fit(trained(), truth(50, 1)[0], recipe=asked, **made)
    told = {one["recipe"]: one for one in ens.report["recipes"]}
    assert told["perturb_and_correct"]["log_likelihood"] is not None
    assert told["shifting"]["failure"] == "it learns from targets, too: give data=(inputs, targets)"
    with pytest.raises(RecipeError, match=r"shifting was not tried: it learns from targets, too: give data="):
        fit(trained(), truth(50, 1)[0], recipe="shifting", **made)


def test_snapshots_need_no_rows():
    net, snapshots = trained(), SwagSnapshots()
    for factor in (0.98, 1.0, 1.02):
        snapshots.update({name: factor * weight for name, weight in net.state_dict().items()})
    ens = fit(net, truth(100, 1), task="regression", members=4, recipe=Swag(snapshots), budget="20s")
    assert ens.report["rows"] == {"learning": 0, "selection": 60, "conformal": 40}
    assert ens.report["kept"]["recipe"] == "swag"
    with pytest.raises(RecipeError, match="swag needs snapshots"):
        fit(net, truth(100, 1), task="regression", members=4, recipe="swag")


def test_a_budget_cuts_the_search_short_and_is_told():
    ens = fit(trained(), truth(100, 1), task="regression", members=4, recipe="rank1", budget="1ms")
    (one,) = ens.report["recipes"]
    assert one["cut_short"]
    assert len(one["curve"]) == 2
    assert "(cut short)" in ensemble.FitReport(ens.report).table()


def test_a_recipes_other_settings_are_kept():
    ens = fit(trained(), truth(100, 1), task="regression", members=8, recipe=LowRank(0.3, include="0.*", rank=2))
    recipe = ens.origin.recipe
    parts = recipe.parts if isinstance(recipe, Mixture) else (recipe,)
    assert all(part.include == ("0.*",) and part.rank == 2 for part in parts if part.scale > 0)
    assert len(ens.report["recipes"][0]["curve"]) == 12


def test_the_same_seed_gives_the_same_ensemble():
    made = [fit(trained(), truth(100, 1), task="regression", members=8, recipe="rank1", seed=5) for _ in range(2)]
    x = truth(9, 5)[0]
    assert torch.equal(made[0](x), made[1](x))
    assert torch.equal(made[0].calibration.interval_scores, made[1].calibration.interval_scores)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"task": "raw"}, ModelError, "needs to know what the outputs are"),
        ({"recipe": "nothing"}, RecipeError, "recipe must be"),
        ({"recipe": []}, RecipeError, "at least one recipe"),
        ({"recipe": Mixture((Rank1(0.1),))}, RecipeError, "give its parts as a list"),
        ({"recipe": "mixture"}, RecipeError, "does not say which settings to try"),
        ({"budget": "soon"}, InputError, "budget must be a time"),
        ({"confidence_level": 1}, InputError, "confidence_level must be between"),
        ({"members": 0}, RecipeError, "members must be"),
        ({"risk": -1}, InputError, "risk must be a number above 0"),
        ({"risk": math.inf}, InputError, "risk must be a number above 0"),
        ({"risk": 1.0, "task": "classification"}, InputError, "risk must be a share of errors between 0 and 1"),
        ({"device": "nothing"}, ModelError, "There is no device 'nothing' here; cpu always is"),
        ({"model": nn.Tanh()}, ModelError, "The model has no weights"),
        ({"risk": 0.1, "conformal": 0}, InputError, "rows that are set aside"),
        ({"interval_score": "x"}, InputError, "interval_score must be one of"),
        ({"validation": torch.randn(50, 1)}, InputError, r"validation must be \(inputs, targets\)"),
        ({"data": torch.randn(50, 1)}, InputError, r"data must be \(inputs, targets\)"),
        ({"data": (torch.randn(50, 1), torch.randn(50, 2))}, InputError, "Targets must have shape"),
        ({"data": (torch.randn(5, 1), torch.randn(5, 1))}, InputError, "at least 20 rows"),
        ({"model": 3}, ModelError, "must be one torch.nn.Module"),
        ({"model": [nn.Linear(1, 1)] * 2}, ModelError, r"however: list. \(Of several: perturb\("),
        ({"recipe": "stacked"}, RecipeError, "One model is fitted; perturb"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, error, match):
    given = {"model": trained(steps=1), "data": truth(60, 1), "task": "regression", "members": 4, "recipe": "rank1"}
    given |= change
    with pytest.raises(error, match=match):
        fit(given.pop("model"), given.pop("data"), **given)


def test_a_model_that_gives_no_numbers_is_refused():
    class Broken(Sine):
        def forward(self, x):
            return super().forward(x) / (x.abs() > 0.01)

    x = torch.cat([torch.zeros(30, 1), torch.ones(30, 1)])
    with pytest.raises(ModelError, match="no finite likelihood"):
        fit(Broken(), (x, x), example=torch.ones(3, 1), task="regression", members=4, recipe="rank1")


@pytest.mark.parametrize(
    ("members", "one", "left", "wanted"),
    [
        (128, 0.001, 60, 64),
        (32, 0.001, 60, 32),
        (128, 0.2, 60, 30),
        (128, 5.0, 60, 8),
        (4, 5.0, 60, 4),
        (128, 1.0, -3, 8),
    ],
)
def test_a_model_that_takes_long_is_judged_by_fewer_members(members, one, left, wanted):
    assert tried_members(members, one, left) == wanted


def test_numbers_of_a_table_are_float64_and_the_model_is_not():
    x, y = (tensor.double().numpy() for tensor in truth(100, 1))
    ens = fit(trained(), (x, y[:, 0]), task="regression", members=4, recipe="rank1")
    single = fit(trained(), truth(100, 1), task="regression", members=4, recipe="rank1")
    assert ens.dtype == torch.float32
    assert ens.noise_variance == pytest.approx(single.noise_variance, rel=1e-5)
    x = torch.from_numpy(x)
    assert torch.equal(ens.predict(x).mean, single.predict(x.float()).mean)


def test_a_live_module_is_fitted_too():
    ens = fit(trained(), truth(100, 1), task="regression", members=8, recipe="rank1", live=True)
    assert ens.program.live
    assert ens.predict(truth(5, 2)[0], statistics=["prediction_interval"]).prediction_interval.shape == (5, 1, 2)


def test_a_recipe_without_a_scale_is_averaged_over_noise_alone(monkeypatch):
    monkeypatch.setattr(Recipe, "known", dict(Recipe.known))

    @dataclass(frozen=True)
    class Shifted(Perturbation, name="shifted"):
        by: float = 0.01

        def select(self, weights, trainable):
            return ["2.bias"]

        def draw(self, name, weight, seed, members):
            return weight + self.by + torch.tensor([0.01 * m for m in members]).unsqueeze(1)

    ens = fit(biased(), truth(150, 1), task="regression", members=8, recipe=Shifted(-2.0))
    assert ens.report["kept"]["recipe"] == "shifted"
    recipe = ens.origin.recipe
    assert all(part == Shifted(-2.0) for part in (recipe.parts if isinstance(recipe, Mixture) else [recipe]))
