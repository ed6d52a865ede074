"""Quantiles of a mixture, against closed forms, SciPy's root finder and numpy's weighted quantiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from ensemble.statistics import mixture
from ensemble.statistics.mixture import quantiles

LEVELS = (0.001, 0.05, 0.3, 0.5, 0.9, 0.999)


def searched(means, deviations, weights, level):
    """The root of the distribution function by Brent's method, one element at a time."""
    ends = stats.norm.ppf(level, means, deviations)
    if ends.min() == ends.max():
        return float(ends.min())
    return optimize.brentq(
        lambda t: float((weights * stats.norm.cdf(t, means, deviations)).sum()) - level,
        ends.min() - 1e-9,
        ends.max() + 1e-9,
        xtol=1e-14,
        rtol=1e-14,
    )


def drawn(seed, members=7, elements=5):
    rng = np.random.default_rng(seed)
    means, deviations = rng.normal(0, 3, (members, elements)), rng.gamma(1.0, 1.0, (members, elements)) + 1e-3
    return means, deviations, rng.dirichlet(np.ones(members))


@pytest.mark.parametrize("weighted", [False, True])
def test_quantiles_are_the_roots_of_the_distribution_function(weighted):
    means, deviations, weights = drawn(0)
    if not weighted:
        weights = np.full(len(means), 1 / len(means))
    got = quantiles(
        torch.from_numpy(means),
        torch.from_numpy(deviations**2),
        LEVELS,
        torch.from_numpy(weights) if weighted else None,
    )
    want = [[searched(m, d, weights, level) for level in LEVELS] for m, d in zip(means.T, deviations.T, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_of_one_member_they_are_those_of_its_gaussian():
    got = quantiles(torch.tensor([[1.5, -2.0]]), torch.tensor([[4.0, 0.25]]), LEVELS)
    np.testing.assert_allclose(got, stats.norm.ppf(LEVELS, [[1.5], [-2.0]], [[2.0], [0.5]]), rtol=1e-12)


def test_they_are_not_those_of_one_gaussian_fitted_to_the_members():
    means, variances = torch.tensor([[-10.0], [10.0]]), torch.ones(2, 1)
    low, high = quantiles(means, variances, (0.25, 0.75))[0].tolist()
    # Each is the median of one member; of the Gaussian that has this mean and variance they are at ∓6.8.
    assert (low, high) == (pytest.approx(-10, abs=1e-6), pytest.approx(10, abs=1e-6))
    assert abs(math.sqrt(101) * stats.norm.ppf(0.25) - low) > 3


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e8])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_they_move_with_the_members_and_grow_with_them(shift, scale):
    means, deviations, weights = map(torch.from_numpy, drawn(1))
    plain = quantiles(means, deviations.square(), LEVELS, weights)
    moved = quantiles(means * scale + shift, (deviations * scale).square(), LEVELS, weights)
    np.testing.assert_allclose(moved, plain * scale + shift, rtol=1e-9, atol=1e-9 * scale + 1e-15 * abs(shift))


normal = st.tuples(st.floats(-100, 100), st.sampled_from([0.0, 1e-7, 0.01, 1.0, 30.0]), st.integers(0, 5))


@given(st.lists(normal, min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_below_a_quantile_lies_as_much_as_its_level_says_and_not_less(members, level):
    means, deviations, counts = (np.array(column, dtype=float) for column in zip(*members, strict=True))
    if not counts.sum():
        counts += 1
    weights = counts / counts.sum()
    components = [torch.from_numpy(column[:, None]) for column in (means, deviations**2)]
    quantile = float(quantiles(*components, [level], torch.from_numpy(weights)))

    def below(t):
        standard = np.where(deviations > 0, (t - means) / np.where(deviations > 0, deviations, 1), 0)
        return float((weights * np.where(deviations > 0, stats.norm.cdf(standard), means <= t)).sum())

    step = 1e-9 * max(1, abs(quantile))
    assert below(quantile + step) >= level - 1e-9
    assert below(quantile - step) <= level + 1e-9


@pytest.mark.parametrize("levels", [LEVELS, (0.05, 0.5, 0.95), (0.25,)])
@pytest.mark.parametrize("members", [1, 2, 20, 33])
def test_without_variances_they_are_values_of_members(levels, members):
    rng = np.random.default_rng(members)
    values = rng.normal(size=(members, 3, 2))
    want = np.moveaxis(np.quantile(values, levels, axis=0, method="inverted_cdf"), 0, -1)
    got = quantiles(torch.from_numpy(values), None, levels)
    assert np.array_equal(got, want)
    # No noise and a noise of 0 are the same.
    assert torch.equal(quantiles(torch.from_numpy(values), torch.zeros(()), levels), got)
    weights = rng.integers(0, 4, members) + np.eye(members)[0]
    repeated = np.repeat(values, weights.astype(int), axis=0)
    want = np.moveaxis(np.quantile(repeated, levels, axis=0, method="inverted_cdf"), 0, -1)
    got = quantiles(torch.from_numpy(values), None, levels, torch.from_numpy(weights / weights.sum()))
    assert np.array_equal(got, want)


def test_a_sum_of_weights_that_is_the_level_but_for_rounding_has_reached_it():
    weights = torch.full((10,), 0.1, dtype=torch.float64)
    assert float(weights.cumsum(0)[7]) < 0.8
    values = torch.arange(10.0)[:, None]
    assert quantiles(values, None, (0.3, 0.8, 0.9), weights).tolist() == [[2, 7, 8]]
    assert quantiles(values, None, (0.3, 0.8, 0.9)).tolist() == [[2, 7, 8]]


def test_members_without_weight_have_no_say_and_what_is_no_number_is_told():
    means, variances = torch.tensor([[0.0, 0.0], [5.0, math.nan], [math.nan, 1.0]]), torch.ones(3, 2)
    weights = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    for spread in (variances, None):
        got = quantiles(means, spread, (0.5, 0.9), weights)
        assert got[0].isfinite().all()
        assert got[1].isnan().all()
    assert quantiles(means[:1], -variances[:1], (0.5,)).isnan().all()


def test_many_elements_are_searched_in_parts(monkeypatch):
    means, deviations, weights = (torch.from_numpy(a) for a in drawn(2, elements=50))
    whole = quantiles(means, deviations.square(), LEVELS, weights)
    monkeypatch.setattr(mixture, "_AT_ONCE", 7 * len(LEVELS) * 3)
    parts = quantiles(means.reshape(7, 5, 10), deviations.square().reshape(7, 5, 10), LEVELS, weights)
    assert torch.equal(parts, whole.reshape(5, 10, len(LEVELS)))
