"""Each metric against its definition, or another implementation."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from ensemble.evaluation.metrics import (
    aurc,
    auroc,
    brier,
    calibration_error,
    confidence_bins,
    crps,
    mixture_cdf,
    quantile_bins,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(rows=200, classes=4):
    targets = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
    return (2 * drawn(rows, classes)).softmax(-1), targets


def test_brier_is_the_squared_distance():
    p, targets = probabilities()
    wanted = [sum((p[r, c] - float(c == targets[r])) ** 2 for c in range(4)) for r in range(200)]
    torch.testing.assert_close(brier(p, targets), torch.stack(wanted))
    two = (2 * drawn(50, 2)).softmax(-1)
    truth = torch.arange(50) % 2
    wanted = 2 * sklearn.brier_score_loss(truth.numpy(), two[:, 1].numpy())
    assert float(brier(two, truth).mean()) == pytest.approx(wanted)


def test_ece_and_auroc_are_those_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    p, targets = probabilities()
    wanted = float(functional.multiclass_calibration_error(p.float(), targets, 4, n_bins=15))
    assert calibration_error(confidence_bins(p.float(), targets, 15)) == pytest.approx(wanted, abs=1e-6)
    scores = torch.cat([drawn(80), drawn(60, seed=3) + 0.7])
    truth = (torch.arange(140) >= 80).long()
    wanted = float(functional.binary_auroc(scores.sigmoid(), truth))
    assert auroc(scores[:80], scores[80:]) == pytest.approx(wanted, abs=1e-6)


def test_every_row_is_in_a_bin():
    p = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1 / 3, 2 / 3]])
    diagram = confidence_bins(p, torch.tensor([1, 0, 0]), bins=2)
    assert diagram.count.tolist() == [1, 2]
    assert diagram.expected.tolist() == pytest.approx([0.5, 5 / 6])
    assert diagram.observed.tolist() == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_counts_pairs_and_ties_half(ties):
    inside, outside = drawn(70), drawn(50, seed=2) + 0.5
    if ties:
        inside, outside = inside.round(), outside.round()
    pairs = [(float(b > a) + 0.5 * float(a == b)) for a in inside for b in outside]
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))
    truth = [0] * 70 + [1] * 50
    assert auroc(inside, outside) == pytest.approx(sklearn.roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


def test_aurc_is_the_mean_selective_risk():
    uncertainty, loss = drawn(40), drawn(40, seed=5).square()
    order = np.argsort(uncertainty.numpy())
    wanted = np.mean([loss.numpy()[order][:k].mean() for k in range(1, 41)])
    assert aurc(uncertainty, loss) == pytest.approx(wanted)


def test_aurc_does_not_depend_on_the_order_of_rows_that_tie():
    uncertainty = torch.tensor([1.0, 1.0, 1.0, 0.0])
    loss = torch.tensor([0.0, 3.0, 0.0, 2.0])
    assert aurc(uncertainty, loss) == aurc(uncertainty[[2, 1, 0, 3]], loss[[2, 1, 0, 3]])
    assert aurc(torch.zeros(4), loss) == pytest.approx(float(loss.mean()))


@pytest.fixture
def mixture():
    means, variances = drawn(5, 7), drawn(5, 7, seed=1).square() + 0.05
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64)
    each = Normal(means.movedim(0, -1), variances.sqrt().movedim(0, -1))
    return means, variances, weights, MixtureSameFamily(Categorical(weights.expand(7, 5)), each)


def test_the_distribution_function_is_that_of_the_mixture(mixture):
    means, variances, weights, wanted = mixture
    y = drawn(7, seed=8)
    torch.testing.assert_close(mixture_cdf(y, means, variances, weights), wanted.cdf(y))
    # Members without noise are steps.
    steps = mixture_cdf(y, means, torch.zeros(()), weights)
    torch.testing.assert_close(steps, ((y >= means) * weights.unsqueeze(1)).sum(0))


def test_crps_is_the_integral_that_defines_it(mixture):
    means, variances, weights, distribution = mixture
    y = drawn(7, seed=8)
    t = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    cdf = distribution.cdf(t.unsqueeze(1).expand(-1, 7))
    wanted = torch.trapezoid((cdf - (t.unsqueeze(1) >= y).double()).square(), t, dim=0)
    torch.testing.assert_close(crps(y, means, variances, weights), wanted, rtol=1e-3, atol=1e-3)


def test_crps_of_one_member_is_the_known_form_and_of_members_without_noise_the_ensembles():
    y, mean = drawn(6), drawn(1, 6, seed=2)
    z = y - mean[0]
    known = z * (2 * torch.special.ndtr(z) - 1) + 2 * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) - math.pi**-0.5
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(crps(y, mean, torch.ones(()), one), known)
    values = drawn(4, 6, seed=3)
    spread = (values.unsqueeze(0) - values.unsqueeze(1)).abs().mean((0, 1)) / 2
    wanted = (values - y).abs().mean(0) - spread
    torch.testing.assert_close(crps(y, values, torch.zeros(()), torch.full((4,), 0.25)), wanted)


def test_crps_in_parts_is_that_of_all(mixture, monkeypatch):
    means, variances, weights, _ = mixture
    y = drawn(7, seed=8)
    whole = crps(y, means, variances, weights)
    monkeypatch.setattr("ensemble.evaluation.metrics._PAIRS", 50)
    torch.testing.assert_close(crps(y, means, variances, weights), whole)


def test_targets_of_the_predicted_distribution_lie_below_each_quantile_as_often_as_it_says():
    diagram = quantile_bins(torch.linspace(0.0005, 0.9995, 1000), levels=9)
    assert diagram.expected.tolist() == pytest.approx([k / 10 for k in range(1, 10)])
    assert diagram.observed.tolist() == pytest.approx([k / 10 for k in range(1, 10)])
