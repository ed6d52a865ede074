"""The shaping of fitness, beside closed forms."""

import pytest
import torch

from ensemble.evolution.fitness import shape_fitness


def test_ranks_are_even_and_centred_whatever_the_scores_and_ties_share_theirs():
    assert shape_fitness(torch.tensor([3.0, -1e9, 3.5]), "centred_ranks").tolist() == [0, -0.5, 0.5]
    assert shape_fitness(torch.tensor([1, 1, 0, 5]), "centred_ranks").tolist() == pytest.approx([0, 0, -0.5, 0.5])
    assert shape_fitness(torch.full((4,), 2.0), "centred_ranks").tolist() == [0, 0, 0, 0]


def test_z_scores_have_mean_0_and_deviation_1_and_equal_scores_none():
    shaped = shape_fitness(torch.tensor([1.0, 2.0, 6.0]), "z_scores")
    assert float(shaped.mean()) == pytest.approx(0, abs=1e-12)
    assert float(shaped.std(correction=0)) == pytest.approx(1)
    assert shape_fitness(torch.full((3,), 7.0), "z_scores").tolist() == [0, 0, 0]
    assert shape_fitness(torch.tensor([1, 5]), "raw").tolist() == [1, 5]
