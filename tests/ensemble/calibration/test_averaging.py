import math

import pytest
import torch

from ensemble.calibration.averaging import evidence, gain, left_out, slots, weights


def cells(count=5, rows=7):
    return torch.randn(count, rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_weights_are_the_likelihoods_normalised():
    found = cells()
    likelihood = found.exp().prod(1)
    torch.testing.assert_close(weights(found), likelihood / likelihood.sum())
    prior = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2], dtype=torch.float64)
    posterior = prior * likelihood
    torch.testing.assert_close(weights(found, prior.log()), posterior / posterior.sum())
    assert evidence(found, prior.log()) == pytest.approx(math.log(posterior.sum()))


def test_a_row_left_out_has_no_say_in_the_weights_that_judge_it():
    found = cells()
    for row, got in enumerate(left_out(found).tolist()):
        others = torch.cat([found[:, :row], found[:, row + 1 :]], 1)
        assert got == pytest.approx(math.log(float((weights(others) * found[:, row].exp()).sum())))


def test_thousands_of_rows_single_out_the_best_without_overflow():
    found = torch.stack([torch.full((50_000,), -1.0), torch.full((50_000,), -1.001)]).double()
    assert weights(found).tolist() == pytest.approx([1.0, math.exp(-50)])
    assert float(left_out(found).mean()) == pytest.approx(-1.0)


def test_gain_is_a_paired_difference():
    ours, theirs = cells(2)
    difference = ours - theirs
    assert gain(ours, theirs) == pytest.approx((float(difference.mean()), float(difference.std()) / 7**0.5))


def test_places_are_given_by_weight_and_spread_out():
    share = torch.tensor([0.5, 0.25, 0.25, 0.0])
    found = slots(share, 8)
    assert [sum(cell == c for cell, _ in found) for c in range(4)] == [4, 2, 2, 0]
    assert all(weight == pytest.approx(1 / 8) for _, weight in found)
    # Each half holds what the whole does.
    assert sorted(cell for cell, _ in found[:4]) == [0, 0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_weights_of_places_sum_to_one_and_follow_the_cells(count):
    share = torch.tensor([0.62, 0.3, 0.06, 0.02], dtype=torch.float64)
    found = slots(share, count)
    assert len(found) == count
    assert sum(weight for _, weight in found) == pytest.approx(1)
    used = {cell for cell, _ in found}
    total = {cell: sum(w for c, w in found if c == cell) for cell in used}
    for cell in used:
        assert total[cell] == pytest.approx(float(share[cell] / share[list(used)].sum()))
