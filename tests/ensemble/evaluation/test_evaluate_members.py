"""An evaluation against numbers that are computed from the members' outputs by other means."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import ensemble
from ensemble import Calibration, Gaussian, InputError, Mixture, ModelError, evaluate
from tests.scenarios import mlp

MIXED = Mixture((Gaussian(0.1), Gaussian(0.4)), (1.0, 3.0))


def with_calibration(ens, calibration):
    return ensemble.Ensemble(
        ens.program, ens.members, ens.origin, task=ens.task, noise_variance=ens.noise_variance, calibration=calibration
    )


@pytest.fixture(scope="module")
def classifier():
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(70) % 4
    torch.manual_seed(0)
    made = ensemble.perturb(mlp(), MIXED, members=12, example=x[:3], task="classification")
    scores = torch.linspace(0.0, 1.0, 30, dtype=torch.float64)
    fitted = Calibration(temperature=2.0, set_score="lac", set_scores=scores, risk=0.7, abstain_above=1.32)
    return with_calibration(made, fitted), x, targets


def test_a_classification(classifier):
    ens, x, targets = classifier
    found = evaluate(ens, (x, targets), batch_size=16)
    p = ((ens(x).double() / 2).softmax(-1) * ens.members.mixture.view(-1, 1, 1)).sum(0)
    own = p[range(70), targets]
    entropy = -(p * p.log()).sum(-1)
    kept = entropy <= 1.32
    wrong = (p.argmax(-1) != targets).double()
    assert found["nll"] == pytest.approx(float(-own.log().mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(1 - float(wrong.mean()))
    assert found["brier"] == pytest.approx(float((p.square().sum(-1) - 2 * own + 1).mean()), rel=1e-5)
    # The 28th of 30 scores is the threshold at a level of 0.9.
    sets = 1 - p <= np.linspace(0, 1, 30)[27]
    assert found["picp"] == pytest.approx(float(sets[range(70), targets].double().mean()))
    assert found["set_size"] == pytest.approx(float(sets.sum(-1).double().mean()))
    assert found["answered"] == pytest.approx(float(kept.double().mean()))
    assert found["risk"] == pytest.approx(float(wrong[kept].mean()))
    assert found.interval == "prediction_set"
    assert int(found.reliability.count.sum()) == 70


@pytest.mark.parametrize("trailing", [(1,), (2, 2)])
def test_a_regression_with_weights_and_noise_of_each_member(trailing):
    torch.manual_seed(1)
    size = math.prod(trailing)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, size), nn.Unflatten(1, trailing))
    x, y = torch.randn(40, 3), torch.randn(40, *trailing)
    made = ensemble.perturb(net, MIXED, members=8, example=x[:3], task="regression", noise_variance=0.5)
    noise = torch.linspace(0.2, 1.0, 8, dtype=torch.float64)
    ens = with_calibration(made, Calibration(noise_variances=noise))
    found = evaluate(ens, (x, y), batch_size=7, confidence_level=0.8)
    w = ens.members.mixture.view(-1, *[1] * (1 + len(trailing)))
    means, v = ens(x).double(), noise.view(w.shape)
    density = (w * torch.distributions.Normal(means, v.sqrt()).log_prob(y.double()).exp()).sum(0)
    mean = (w * means).sum(0)
    assert found["nll"] == pytest.approx(float(-density.log().mean()), rel=1e-5)
    assert found["rmse"] == pytest.approx(float((mean - y).square().mean().sqrt()), rel=1e-5)
    below = (w * torch.special.ndtr((y.double() - means) / v.sqrt())).sum(0)
    assert found.interval == "credible_interval"
    assert found["picp"] == pytest.approx(float(((below >= 0.1) & (below <= 0.9)).double().mean()))
    levels = np.arange(1, 20) / 20
    observed = [(below.numpy() <= p).mean() for p in levels]
    assert found["ece"] == pytest.approx(np.abs(levels - observed).mean())
    # By draws from the mixture: E|Y − y| − E|Y − Y'| / 2.
    member = torch.multinomial(ens.members.mixture, 4000, replacement=True)
    draws = means[member] + v[member].sqrt() * torch.randn(4000, *y.shape, dtype=torch.float64)
    by_draws = (draws - y).abs().mean(0) - (draws[:2000] - draws[2000:]).abs().mean(0) / 2
    assert found["crps"] == pytest.approx(float(by_draws.mean()), abs=0.02)


def test_a_gaussian_model_whose_variances_are_multiplied():
    class Stating(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            mean, raw = self.layer(x).split(1, -1)
            return mean, raw.exp()

    torch.manual_seed(2)
    x, y = torch.randn(50, 3), torch.randn(50, 1)
    made = ensemble.perturb(Stating(), MIXED, members=8, example=x[:3], task="gaussian")
    factors = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    ens = with_calibration(made, Calibration(variance_factors=factors))
    means, variances = (t.double() for t in ens(x))
    std = (variances * factors.view(-1, 1, 1)).sqrt()
    w = ens.members.mixture.view(-1, 1, 1)
    density = (w * torch.distributions.Normal(means, std).log_prob(y.double()).exp()).sum(0)
    found = evaluate(ens, (x, y))
    assert found["nll"] == pytest.approx(float(-density.log().mean()), rel=1e-5)
    below = (w * torch.special.ndtr((y.double() - means) / std)).sum(0)
    observed = [float((below <= k / 20).double().mean()) for k in range(1, 20)]
    assert found.reliability.observed.tolist() == pytest.approx(observed)


def test_rows_from_elsewhere_are_told_apart(classifier):
    ens, x, targets = classifier
    found = evaluate(ens, (x, targets), ood=20 * torch.randn(30, 6))
    inside = ens.predict(x).mutual_information
    outside = ens.predict(20 * torch.randn(30, 6)).mutual_information
    assert outside.mean() > inside.mean()
    assert found["auroc_mutual_information"] > 0.6
    assert "tells the other rows" in found.meaning("auroc_mutual_information")


def test_without_a_noise_variance_it_says_what_is_lacking():
    x = torch.randn(20, 3)
    ens = ensemble.perturb(nn.Linear(3, 1), Gaussian(0.1), members=4, example=x, task="regression")
    found = evaluate(ens, (x, torch.randn(20)))
    assert "nll" not in found.metrics
    assert "fit() finds it" in found.notes[0]
    assert "fit() finds it" in found.table()
    with pytest.raises(ModelError, match="without a known noise variance"):
        found.plot("x.png")


def test_it_is_shown_as_table_json_and_plot(classifier, tmp_path):
    ens, x, targets = classifier
    found = evaluate(ens, (x, targets))
    assert json.loads(found.json())["metrics"] == found.metrics
    text = str(found)
    assert all(f"{name} " in text and found.meaning(name) in text for name in found.metrics)
    found.plot(tmp_path / "r.png")
    found.plot(tmp_path / "r.svg")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ensemble.EnsembledError, match="cannot be written"):
        found.plot(tmp_path / "no" / "r.png")
    with pytest.raises(ensemble.EnsembledError, match="not supported"):
        found.plot(tmp_path / "r.xyz")


def test_what_cannot_be_judged_is_refused(classifier):
    ens, x, targets = classifier
    with pytest.raises(InputError, match="there are no targets"):
        evaluate(ens, x)
    with pytest.raises(InputError, match="class indices from 0 to 3"):
        evaluate(ens, (x, targets + 1))
    with pytest.raises(InputError, match="batch_size must be"):
        evaluate(ens, (x, targets), batch_size=0)
    raw = ensemble.perturb(nn.Linear(3, 1), Gaussian(0.1), members=4, example=torch.randn(2, 3))
    with pytest.raises(ModelError, match="another task than raw"):
        evaluate(raw, (torch.randn(5, 3), torch.randn(5, 1)))


def test_an_infinite_interval_says_why():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    made = ensemble.perturb(mlp(), Gaussian(0.1), members=3, example=x, task="regression", noise_variance=1.0)
    fitted = Calibration(interval_score="normalised", interval_scores=torch.linspace(0, 2, 5, dtype=torch.float64))
    found = evaluate(with_calibration(made, fitted), (x, made.predict(x).mean))
    assert (found["mpiw"], found["picp"]) == (math.inf, 1)
    assert "vouch for no interval at 0.9: it is infinite" in found.table()
    assert "quantile's level" in found.meaning("ece")
    assert evaluate(with_calibration(made, fitted), (x, made.predict(x).mean), confidence_level=0.8).notes == ()
