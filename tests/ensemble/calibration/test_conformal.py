import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ensemble import InputError
from ensemble.calibration.conformal import (
    aps,
    aps_set,
    cqr,
    cqr_interval,
    lac,
    lac_set,
    normalised,
    normalised_interval,
    percentile,
    required_rank,
    threshold,
)

# Draws of a calibration and of one row to be covered: so many at once, side by side in the second dimension.
DRAWS, CALIBRATION = 20_000, 19
INF = math.inf


def within_binomial_bounds(covered, probability):
    """Whether so many of independent draws are what this probability gives, but for one time in 10,000."""
    low, high = stats.binom.interval(1 - 1e-4, covered.numel(), probability)
    return low <= int(covered.sum()) <= high


def split(scores):
    """Ascending scores of the calibration rows; the last row is the one to be covered."""
    return scores[:CALIBRATION].sort(0).values


def regression(seed):
    """Targets that are skewed and spread unevenly, and a model that is wrong about both."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((CALIBRATION + 1, DRAWS), generator=generator, dtype=torch.float64)
    noise = torch.randn((CALIBRATION + 1, DRAWS), generator=generator, dtype=torch.float64).exp()
    return torch.sin(3 * x), 0.1 + x, x + (0.2 + x.square()) * noise


def classification(seed):
    """Classes drawn from other probabilities than the model gives."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((CALIBRATION + 1, DRAWS, 5), generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    true = (0.3 * logits + bias).softmax(-1).reshape(-1, 5)
    targets = torch.multinomial(true, 1, generator=generator).reshape(CALIBRATION + 1, DRAWS)
    return logits.softmax(-1), targets


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.93])
def test_intervals_cover_as_often_as_they_say_whatever_the_model(level):
    mean, std, y = regression(1)
    exact = math.ceil(20 * level - 1e-9) / 20
    bound = threshold(split(normalised(mean, std, y)), level)
    ends = normalised_interval(mean[-1:], std[-1:], bound)
    assert within_binomial_bounds((ends[..., 0] <= y[-1:]) & (y[-1:] <= ends[..., 1]), exact)
    lower, upper = mean - std, mean + std
    ends = cqr_interval(lower[-1:], upper[-1:], threshold(split(cqr(lower, upper, y)), level))
    assert within_binomial_bounds((ends[..., 0] <= y[-1:]) & (y[-1:] <= ends[..., 1]), exact)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.93])
def test_sets_cover_as_often_as_they_say_whatever_the_model(level):
    p, y = classification(2)
    exact = math.ceil(20 * level - 1e-9) / 20
    chosen = lac_set(p[-1:], threshold(split(lac(p, y)), level))
    assert within_binomial_bounds(chosen.gather(-1, y[-1:, :, None]), exact)
    bound = threshold(split(aps(p, y)), level)
    chosen = aps_set(p[-1:], bound)
    covered = chosen.gather(-1, y[-1:, :, None])
    # The least probable class always scores 1, and scores that are equal cover more often; so does the class that is
    # always there.
    low, _ = stats.binom.interval(1 - 1e-4, DRAWS, exact)
    assert int(covered.sum()) >= low
    assert chosen.sum(-1).double().mean() < (3 if level <= 0.5 else 4.9)


def test_without_the_rank_of_n_plus_1_coverage_would_be_missed():
    mean, std, y = regression(1)
    scores = normalised(mean, std, y)
    level = 0.93
    naive = split(scores)[math.ceil(CALIBRATION * level) - 1]
    low, _ = stats.binom.interval(1 - 1e-4, DRAWS, level)
    assert int((scores[-1:] <= naive).sum()) < low
    assert int((scores[-1:] <= threshold(split(scores), level)).sum()) >= low


@given(st.integers(1, 300), st.floats(0.01, 0.99))
def test_the_threshold_is_the_smallest_score_that_vouches_for_the_level(rows, level):
    scores = torch.arange(rows, dtype=torch.float64)
    bound = float(threshold(scores, level))
    if bound == INF:
        assert rows < (rows + 1) * level
        return
    held = bound + 1
    assert held / (rows + 1) >= level * (1 - 1e-12)
    assert (held - 1) / (rows + 1) < level


def test_a_level_means_what_it_says():
    assert [required_rank(9, level) for level in (0.1, 0.7, 0.9, 0.91)] == [1, 7, 9, 10]
    # In doubles 100 · 0.07 is above 7.
    assert 100 * 0.07 > 7
    assert required_rank(99, 0.07) == 7
    for wrong in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"must be between 0 and 1, such as 0\.9, however"):
            required_rank(9, wrong)


def test_too_few_rows_vouch_for_nothing():
    bound = threshold(torch.arange(9.0).reshape(9, 1).expand(9, 2), 0.91)
    assert bound.tolist() == [INF, INF]
    zero = torch.zeros(3, 2)
    assert normalised_interval(zero, zero, bound).tolist() == [[[-INF, INF]] * 2] * 3
    assert cqr_interval(zero, zero, bound).tolist() == [[[-INF, INF]] * 2] * 3
    p = torch.tensor([[[0.1, 0.9, 0.0], [0.2, 0.3, 0.5]]])
    assert lac_set(p, bound).all()
    assert aps_set(p, bound).all()
    assert threshold(torch.zeros(0), 0.5).tolist() == INF


def test_each_element_of_a_target_has_a_threshold_of_its_own():
    scores = torch.stack([torch.arange(1.0, 10), torch.arange(10.0, 100, 10)], -1)
    bound = threshold(scores, 0.5)
    assert bound.tolist() == [5, 50]
    ends = normalised_interval(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5]]), bound)
    assert ends.tolist() == [[[-4, 6], [-23, 27]]]


def test_scores_by_hand():
    p = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    y = torch.tensor([2, 0])
    np.testing.assert_allclose(lac(p, y), [0.7, 0.9])
    np.testing.assert_allclose(aps(p, y), [0.8, 0.9])
    np.testing.assert_allclose(aps(p, torch.tensor([1, 1])), [1.0, 1.0])
    mean, std = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.0, 0.0])
    assert normalised(mean, std, torch.tensor([0.0, 1.0, 2.0])).tolist() == [2, 0, INF]
    assert cqr(mean, mean + 1, torch.tensor([0.0, 1.5, 4.0])).tolist() == [1, -0.5, 2]


def test_sets_and_intervals_by_hand():
    p = torch.tensor([[0.5, 0.2, 0.3], [0.05, 0.05, 0.9]], dtype=torch.float64)
    assert lac_set(p, torch.tensor(0.75)).tolist() == [[True, False, True], [False, False, True]]
    # No class is probable enough.
    assert lac_set(p, torch.tensor(0.4)).tolist() == [[False] * 3, [False, False, True]]
    assert aps_set(p, torch.tensor(0.85)).tolist() == [[True, False, True], [False, False, True]]
    assert aps_set(p, torch.tensor(1.0)).all()
    nan = torch.full((1, 3), math.nan)
    assert lac_set(nan, torch.tensor(0.5)).all()
    assert aps_set(nan, torch.tensor(0.5)).all()
    ends = cqr_interval(torch.tensor([0.0, 0.0]), torch.tensor([4.0, 1.0]), torch.tensor(-1.0))
    assert ends.tolist() == [[1, 3], [0.5, 0.5]]


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(0, 1))
def test_a_set_holds_the_classes_whose_score_is_at_most_the_threshold(logits, bound):
    p = torch.tensor([logits], dtype=torch.float64).softmax(-1)
    classes = torch.arange(len(logits))
    every = p.expand(len(logits), -1)
    bound = torch.tensor(bound, dtype=torch.float64)
    assert torch.equal(lac_set(p, bound)[0], lac(every, classes) <= bound)
    want = aps(every, classes) <= bound
    want[p[0].argmax()] = True
    assert torch.equal(aps_set(p, bound)[0], want)
    assert aps_set(p, torch.tensor(1.0)).all()


def test_the_percentile_is_the_share_of_the_scores_below():
    scores = torch.tensor([0.0, 0.0, 1.0, 2.0])
    values = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0, math.nan])
    got = percentile(scores, values).tolist()
    assert got[:5] == [0, 0, 0.5, 0.75, 1]
    assert math.isnan(got[5])
    assert got[:5] == [stats.percentileofscore(scores.numpy(), v, kind="strict") / 100 for v in values[:5].numpy()]
