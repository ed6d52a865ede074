"""Which rows a member sees, in which order, and which it does not see."""

import pytest
import torch

import ensemble
from ensemble.training import Rows


def draw(members, rows=200, bootstrap=True, hold_back=True):
    return Rows.draw(7, members, rows, bootstrap=bootstrap, hold_back=hold_back)


def test_a_resample_is_judged_by_the_rows_that_it_left_out():
    rows = draw(range(40))
    for own, held, count in zip(rows.own, rows.held, rows.counts, strict=True):
        assert own.shape == (200,)
        assert set(own.tolist()) | set(held[:count].tolist()) == set(range(200))
        assert not set(own.tolist()) & set(held[:count].tolist())
    # (1 - 1/n)^n of 8000 draws; five standard deviations.
    assert float(rows.counts.float().mean()) / 200 == pytest.approx(0.367, abs=0.012)
    assert len({tuple(own.tolist()) for own in rows.own}) == 40


def test_resampled_rows_are_uniform():
    counts = torch.bincount(draw(range(500), 20).own.flatten(), minlength=20)
    assert counts.sum() == 10000
    assert (counts - 500).abs().max() < 5 * (500 * 0.95) ** 0.5


def test_without_a_resample_a_tenth_is_held_back():
    rows = draw(range(5), bootstrap=False)
    for own, held in zip(rows.own, rows.held, strict=True):
        assert len(held) == 20
        assert sorted([*own.tolist(), *held.tolist()]) == list(range(200))
    everything = draw(range(5), bootstrap=False, hold_back=False)
    assert everything.held is None
    assert torch.equal(everything.own, torch.arange(200).expand(5, -1))


@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_member_has_the_same_rows_in_any_company(bootstrap):
    many, few = draw(range(9), bootstrap=bootstrap), draw(range(4, 6), bootstrap=bootstrap)
    assert torch.equal(many.own[4:6], few.own)
    assert torch.equal(many.counts[4:6], few.counts)
    for member, count in enumerate(few.counts):
        assert torch.equal(many.held[4 + member, :count], few.held[member, :count])
    steps = zip(many.batches(32), few.batches(32), strict=False)
    for _, (batch, own) in zip(range(15), steps, strict=False):
        assert torch.equal(batch[4:6], own)
    assert (
        not torch.equal(many.own, Rows.draw(8, range(9), 200, bootstrap=bootstrap, hold_back=True).own) or not bootstrap
    )


def test_every_row_comes_once_in_each_order():
    rows = draw(range(3), bootstrap=False, hold_back=False)
    batches = rows.batches(30)
    passes = [torch.cat([next(batches) for _ in range(6)], 1) for _ in range(2)]
    for each in passes:
        assert each.shape == (3, 180)
        assert all(len(set(member.tolist())) == 180 for member in each)
    assert not torch.equal(*passes)
    assert next(rows.batches(1000)).shape == (3, 200)


def test_of_very_many_rows_held_back_some_are_looked_at(monkeypatch):
    monkeypatch.setattr("ensemble.training.rows.MOST_HELD", 10)
    rows = draw(range(6))
    assert rows.counts.tolist() == [10] * 6
    assert not any(set(own.tolist()) & set(held.tolist()) for own, held in zip(rows.own, rows.held, strict=True))


def test_too_few_rows_to_hold_some_back():
    with pytest.raises(ensemble.RecipeError, match="Of 4 rows none is left to be held back"):
        draw(range(2), 4, bootstrap=False)
