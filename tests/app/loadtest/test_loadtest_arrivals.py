"""The schedule is the promise of an open loop: how many requests are due, and when."""

import numpy as np
import pytest

from app.loadtest.arrivals import constant, poisson, schedule
from app.loadtest.config import Config


@pytest.mark.parametrize(("rate", "duration"), [(200, 10), (7, 3), (0.1, 30), (1 / 3, 3), (1000, 0.5), (0.3, 10)])
@pytest.mark.parametrize("warmup", [0, 0.3, 1])
def test_constant_arrivals_count_rate_times_duration(rate, duration, warmup):
    times = constant(rate, warmup, duration)
    counted = times[times >= 0]
    assert len(counted) == round(rate * duration)
    assert counted[0] == 0
    assert counted[-1] < duration
    assert np.allclose(np.diff(times), 1 / rate)
    assert times[0] >= -warmup - 1e-9


def test_poisson_arrivals_have_the_mean_and_the_spread_of_independent_users():
    rate, duration = 500, 100
    times = poisson(rate, 2.0, duration, seed=3)
    counted = times[times >= 0]
    gaps = np.diff(counted)
    # Five standard errors; the seed is fixed, so this does not flicker.
    assert abs(len(counted) - rate * duration) < 5 * np.sqrt(rate * duration)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    assert gaps.std() == pytest.approx(1 / rate, rel=0.03)
    assert np.all(gaps > 0)
    assert times[0] >= -2.0
    assert times[-1] < duration


def test_poisson_arrivals_follow_the_seed_and_not_the_warm_up():
    with_warmup = poisson(100, 1.0, 5, seed=1)
    without = poisson(100, 0.0, 5, seed=1)
    assert np.array_equal(with_warmup[with_warmup >= 0], without)
    assert not np.array_equal(without[:10], poisson(100, 0.0, 5, seed=2)[:10])


def test_schedule_takes_what_the_config_names():
    even = schedule(Config(url="http://localhost", rate=10, duration=2))
    random = schedule(Config(url="http://localhost", rate=10, duration=2, arrivals="poisson", seed=5))
    assert len(even) == 30
    assert np.array_equal(random, poisson(10, 1.0, 2, seed=5))
    with pytest.raises(ValueError, match="closed loop"):
        schedule(Config(url="http://localhost", concurrency=1))
