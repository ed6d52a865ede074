import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from ensemble import Calibration, ModelError
from ensemble.calibration.likelihood import row_log_likelihood
from ensemble.program.program import TensorSpec
from ensemble.tasks import heads

SPEC = (TensorSpec("y", torch.float32, (-1, 2)), TensorSpec("v", torch.float32, (-1, 2)))
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def members(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 2, generator=g), torch.rand(3, 6, 2, generator=g) + 0.1, torch.randn(6, 2, generator=g)


def mixture(means, variances, weights):
    each = Normal(means.double().movedim(0, -1), variances.double().sqrt().movedim(0, -1))
    return MixtureSameFamily(Categorical(weights.expand(*means.shape[1:], 3)), each)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_of_a_regression_it_is_the_mixture_of_normals(weights):
    means, _, targets = members()
    noise = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    (head,) = heads("regression", SPEC[:1])
    got = row_log_likelihood("regression", head, (means,), targets, Calibration(noise_variances=noise), weights)
    share = torch.full((3,), 1 / 3).double() if weights is None else weights
    wanted = mixture(means, noise.view(3, 1, 1).expand(3, 6, 2), share).log_prob(targets.double()).mean(1)
    torch.testing.assert_close(got, wanted)


def test_of_a_gaussian_model_stated_variances_are_multiplied():
    means, variances, targets = members()
    factors = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    (head,) = heads("gaussian", SPEC)
    calibration = Calibration(variance_factors=factors)
    got = row_log_likelihood("gaussian", head, (means, variances), targets, calibration, WEIGHTS)
    wanted = mixture(means, variances * factors.view(3, 1, 1), WEIGHTS).log_prob(targets.double()).mean(1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_of_a_classification_probabilities_are_averaged_and_not_logits():
    logits = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6) % 4
    (head,) = heads("classification", (TensorSpec("y", torch.float32, (-1, 4)),))
    got = row_log_likelihood("classification", head, (logits,), targets, Calibration(temperature=2.0), WEIGHTS)
    p = ((logits.double() / 2).softmax(-1) * WEIGHTS.view(3, 1, 1)).sum(0)
    torch.testing.assert_close(got, p[range(6), targets].log(), rtol=1e-5, atol=1e-6)


def test_a_variance_of_nothing_gives_a_number():
    means, _, targets = members()
    (head,) = heads("regression", SPEC[:1])
    got = row_log_likelihood(
        "regression", head, (means,), targets, Calibration(noise_variances=torch.zeros(3).double())
    )
    assert not got.isnan().any()
    assert math.isfinite(float(got.max()))


def test_what_has_no_noise_has_no_likelihood():
    means, _, targets = members()
    (head,) = heads("regression", SPEC[:1])
    with pytest.raises(ModelError, match="their noise is not known"):
        row_log_likelihood("regression", head, (means,), targets, Calibration())
