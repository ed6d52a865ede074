import math

import pytest
import torch

from ensemble import LowRank, RecipeError
from ensemble.random import root_mean_square, standard_normal


def test_a_member_is_the_formula():
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)) * 3
    for rank in (1, 2, 7):
        drawn = LowRank(0.2, rank=rank).draw("w", weight, 9, range(6)).double()
        a = standard_normal(9, range(3), "w/left", (6, rank)).double()
        b = standard_normal(9, range(3), "w/right", (5, rank)).double()
        step = 0.2 * root_mean_square(weight) * a @ b.mT / math.sqrt(rank)
        for pair in range(3):
            torch.testing.assert_close(drawn[2 * pair], weight + step[pair], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(drawn[2 * pair + 1], weight - step[pair], rtol=1e-6, atol=1e-6)


def test_the_two_members_of_a_pair_have_the_trained_weight_as_their_mean():
    for shape in ((8, 3), (4, 2, 3, 3), (7,)):
        weight = torch.randn(shape)
        drawn = LowRank(0.3, rank=2).draw("w", weight, 0, range(10))
        torch.testing.assert_close((drawn[0::2] + drawn[1::2]) / 2, weight.expand(5, *shape))


def test_the_noise_has_the_scale_that_was_asked_for():
    weight = torch.randn(200, 100)
    for rank in (1, 8):
        noise = LowRank(0.05, rank=rank).draw("w", weight, 0, range(0, 400, 2)) - weight
        relative = noise.square().mean().sqrt() / weight.square().mean().sqrt()
        assert float(relative) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("shape", [(6, 5), (6,)])
def test_a_member_is_the_same_alone_and_in_any_range(shape):
    weight, recipe = torch.randn(shape), LowRank(0.1, rank=2)
    many = recipe.draw("w", weight, 1, range(20))
    assert torch.equal(many[3:8], recipe.draw("w", weight, 1, range(3, 8)))
    assert torch.equal(many[7], recipe.draw("w", weight, 1, range(7, 8))[0])


def test_factors_give_what_is_drawn():
    weight, recipe = torch.randn(4, 2, 3, 3), LowRank(0.1, rank=3)
    factors = recipe.factors("w", weight, 1, range(5))
    assert (factors.left.shape, factors.right.shape) == ((5, 4, 3), (5, 18, 3))
    assert torch.equal(factors.materialise(weight), recipe.draw("w", weight, 1, range(5)))
    assert recipe.factors("b", torch.randn(4), 1, range(5)) is None


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "2", 257])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(RecipeError, match="rank must be an integer between 1 and 256"):
        LowRank(0.1, rank=rank)


def test_settings_go_round():
    recipe = LowRank(rank=4, scale=0.1, exclude="head.*")
    assert LowRank.from_settings(recipe.settings()) == recipe
