import hashlib
import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from ensemble import random as module
from ensemble.random import _normal_from_bits, _parabolas, root_mean_square, standard_normal

GOLDEN = (
    "bf118bffd70316a424a639a445dba7ec0beff89e87e3daefad8ed74aafdfa99f",
    "ed96ff2718c357a594d0ffab96084aadd5f307d3d0e57eeb37ad08404c5fbf32",
    [-3.3599562644958496, 0.15502849221229553, -0.8345556259155273, 0.6829825639724731],
    "124642a4bf7102d70b4a7f71f257fddbe6bff37ee075eff8525bea50f1f370b1",
)


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def test_the_draws_are_what_they_were_when_the_first_ensemble_was_saved():
    # Pinned: a change here makes every saved ensemble another one.
    assert digest(standard_normal(0, range(4), "fc.weight", (3, 5))) == GOLDEN[0]
    assert digest(standard_normal(2**63 - 1, range(10**6, 10**6 + 2), "naïve", (1001,))) == GOLDEN[1]
    first = standard_normal(0, range(1), "fc.weight", (4,))[0].tolist()
    assert first == GOLDEN[2]


def test_another_process_with_another_number_of_threads_draws_the_same_bits():
    code = (
        "import torch, hashlib; torch.set_num_threads(1)\n"
        "from ensemble.random import standard_normal as n, root_mean_square as r\n"
        "print(hashlib.sha256(n(7, range(16, 18), 'w', (700, 3)).numpy().tobytes()).hexdigest(),"
        " r(n(7, range(1), 'w', (2, 70001))).hex())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert digest(standard_normal(7, range(16, 18), "w", (700, 3))) == out[0]
            assert root_mean_square(standard_normal(7, range(1), "w", (2, 70001))).hex() == out[1]
        finally:
            torch.set_num_threads(before)


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**20),
    st.integers(1, 6),
    st.lists(st.integers(0, 5), max_size=3),
    st.text(max_size=8),
)
def test_a_row_is_the_same_in_whatever_range_it_is_drawn(seed, first, count, shape, name):
    together = standard_normal(seed, range(first, first + count), name, shape)
    assert together.shape == (count, *shape)
    assert together.dtype == torch.float32
    for row in range(count):
        alone = standard_normal(seed, range(first + row, first + row + 1), name, shape)
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64, 129])
def test_pieces_of_a_row_are_the_row(monkeypatch, size):
    whole = standard_normal(5, range(7), "w", (size,))
    assert torch.equal(standard_normal(5, range(7), "w", (2 * size,))[:, :size], whole)
    for block in (2, 6, 16, 100):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert torch.equal(standard_normal(5, range(7), "w", (size,)), whole)


def test_seeds_members_and_parameters_are_uncorrelated():
    size, bound = 20000, 4.5 / math.sqrt(20000)
    draws = [
        standard_normal(seed, range(member, member + 1), name, (size,))[0]
        for seed in (0, 1, 2**32)
        for member in (0, 1, 17)
        for name in ("a", "b", "a.b")
    ]
    correlations = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0)
    assert float(correlations.abs().max()) < bound
    # Nor is a number correlated with the next ones of its row.
    for lag in (1, 2, 3, 4, 8):
        assert abs(float(torch.corrcoef(torch.stack([draws[0][lag:], draws[0][:-lag]]))[0, 1])) < bound


def test_the_distribution_is_standard_normal():
    z = standard_normal(11, range(2), "w", (1_000_000,)).double().flatten().numpy()
    assert stats.kstest(z[:200_000], "norm").pvalue > 0.01
    n = len(z)
    # Standard errors of the moments of a normal sample: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - expected) < 4 * math.sqrt(variance / n)
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = stats.norm.sf(bound)
        for tail in (z > bound, z < -bound):
            assert abs(tail.mean() - share) < 4 * math.sqrt(share / n)
    assert np.abs(z).max() < 6.34


def test_the_transform_is_the_inverse_distribution_function():
    # Every tail probability (k + 1/2) / 2**31, from the smallest on, and many between.
    generator = torch.Generator().manual_seed(0)
    k = torch.cat(
        [torch.arange(3000), torch.randint(2**31, (200_000,), generator=generator), torch.tensor([2**31 - 1])]
    )
    bits = (k << 1).to(torch.int32)
    z = _normal_from_bits(bits).double().numpy()
    # Positions are rounded to float32, as the transform does.
    position = (k.to(torch.float32) + 0.5).double().numpy()
    exact = -ndtri(np.minimum(position / 2**31, 1) / 2)
    assert np.abs(z - exact).max() < 5e-7
    assert z.max() == pytest.approx(6.34, abs=0.005)
    assert (np.diff(z[:3000]) <= 0).all()
    assert torch.equal(_normal_from_bits(bits | 1), -_normal_from_bits(bits))


def test_no_value_of_the_table_is_near_a_rounding_boundary():
    # A C library's error of 1e-15 cannot change the table if every value is further than 1e-12 from where rounding
    # to the grid turns. The values are found with 40 digits, from scipy's by one step of Newton's method.
    knots = [math.ldexp(1 + half / 128, octave - 32) for octave in range(32) for half in range(128)]
    nearest = 1.0
    with mpmath.workdps(40):
        for p in knots:
            start = mpmath.mpf(float(-ndtri(p / 2)))
            density = mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-start * start / 2)
            exact = start + (mpmath.erfc(start / mpmath.sqrt(2)) - mpmath.mpf(p)) / density
            assert abs(exact - start) < 1e-13
            scaled = exact * 2**24
            nearest = min(nearest, abs(float(scaled - mpmath.floor(scaled)) - 0.5) / 2**24)
            assert module._tail_quantile(p) == float(mpmath.nint(scaled)) / 2**24
    assert nearest > 1e-12


def test_the_table_is_the_same_on_every_machine():
    table = np.concatenate([c.numpy() for c in _parabolas()])
    assert table.dtype == np.float32
    assert hashlib.sha256(table.tobytes()).hexdigest() == GOLDEN[3]


@given(st.lists(st.floats(-1e100, 1e100), max_size=70))
def test_the_root_mean_square_is_exact(values):
    found = root_mean_square(torch.tensor(values, dtype=torch.float64))
    exact = math.sqrt(math.fsum(v * v for v in values) / len(values)) if values else 0.0
    assert found == pytest.approx(exact, rel=1e-14)


def test_the_root_mean_square_of_a_large_weight():
    weight = standard_normal(0, range(1), "w", (100_003,)).to(torch.bfloat16)
    exact = math.sqrt(math.fsum(v * v for v in weight.double().flatten().tolist()) / weight.numel())
    assert root_mean_square(weight) == pytest.approx(exact, rel=1e-15)
    assert root_mean_square(torch.zeros(5)) == 0
    assert root_mean_square(torch.zeros(0)) == 0
    assert root_mean_square(torch.full((3, 3), -2.0)) == 2


def test_the_root_mean_square_of_a_weight_that_was_changed_is_its_own():
    weight = torch.ones(3, 4)
    assert module.root_mean_square(weight) == module.root_mean_square(weight) == 1
    weight.mul_(2)
    assert module.root_mean_square(weight) == 2
    with torch.inference_mode():
        weight = torch.ones(3, 4)
        assert module.root_mean_square(weight) == 1
        weight.mul_(2)
        assert module.root_mean_square(weight) == 2
