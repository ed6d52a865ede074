import pytest
import torch

from ensemble import Rank1
from ensemble.random import standard_normal


def test_a_member_is_the_formula():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    drawn = Rank1(0.2).draw("w", weight, 9, range(2, 5)).double()
    r = 1 + 0.2 * standard_normal(9, range(2, 5), "w/left", (6, 1)).double()
    s = 1 + 0.2 * standard_normal(9, range(2, 5), "w/right", (5, 1)).double()
    expected = weight.double() * (r @ s.mT)[..., None, None]
    torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=1e-6)


def test_vectors_get_dense_noise_of_their_own_scale():
    bias = torch.randn(4000)
    noise = Rank1(0.1).draw("b", bias, 0, range(50)) - bias
    assert float(noise.std() / bias.square().mean().sqrt()) == pytest.approx(0.1, rel=0.02)


def test_a_scale_of_zero_changes_nothing():
    weight = torch.randn(3, 4)
    assert torch.equal(Rank1(0).draw("w", weight, 0, range(2)), weight.expand(2, 3, 4))


def test_a_member_is_the_same_alone_and_in_any_range():
    weight = torch.randn(6, 5)
    many = Rank1(0.1).draw("w", weight, 1, range(20))
    assert torch.equal(many[7], Rank1(0.1).draw("w", weight, 1, range(7, 8))[0])
