"""Low-rank noise in antithetic pairs: its moments, and the products on it, beside plain dense arithmetic."""

import pytest
import torch

from ensemble.evolution.antithetic import Noise
from ensemble.structured import LEFT, RIGHT

SHAPES = {"w": (3, 4), "conv": (2, 3, 2), "b": (5,), "scalar": ()}


def dense(noise: Noise, drawn: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """E of every pair, (pairs, *shape)."""
    if name in drawn:
        return drawn[name]
    product = torch.einsum("kir,kjr->kij", drawn[name + LEFT], drawn[name + RIGHT]) / noise.rank**0.5
    return product.reshape(-1, *noise.shapes[name])


@pytest.mark.parametrize("rank", [1, 3])
def test_each_element_has_variance_one_and_none_goes_with_another(rank):
    noise = Noise(rank, {"w": (3, 4), "b": (5,)})
    drawn = noise.draw(0, range(20_000))
    for name in noise.shapes:
        flat = dense(noise, drawn, name).flatten(1).double()
        assert flat.mean(0).abs().max() < 0.04
        covariance = flat.T @ flat / len(flat)
        # A product of two normal numbers has a fourth moment of 9: the standard error of its variance is 0.02.
        assert (covariance - torch.eye(len(covariance))).abs().max() < 0.08


def test_a_pair_is_a_function_of_the_seed_and_its_number_alone():
    noise = Noise(2, SHAPES)
    every, some = noise.draw(7, range(10)), noise.draw(7, range(4, 6))
    assert every.keys() == some.keys()
    assert all(torch.equal(every[name][4:6], some[name]) for name in some)
    assert not any(torch.equal(noise.draw(8, range(10))[name], every[name]) for name in every)


def test_both_members_of_a_pair_have_it_with_opposite_signs_and_of_the_asked_size():
    noise = Noise(2, SHAPES)
    drawn = noise.draw(1, range(3))
    for name in SHAPES:
        parts = noise.both(name, drawn, 0.5)
        if len(parts) == 2:
            own = torch.einsum("kir,kjr->kij", *parts).reshape(-1, *SHAPES[name])
        else:
            (own,) = parts
        assert torch.allclose(own[::2], 0.5 * dense(noise, drawn, name), atol=1e-6)
        assert torch.equal(own[1::2], -own[::2])


def test_the_weighted_sum_is_that_of_the_dense_matrices():
    noise = Noise(3, SHAPES)
    drawn, worth = noise.draw(2, range(6)), torch.randn(6, dtype=torch.float64)
    for name, shape in SHAPES.items():
        want = sum(w * e.double() for w, e in zip(worth, dense(noise, drawn, name), strict=True))
        got = noise.weighted(name, drawn, worth)
        assert got.shape == shape
        assert torch.allclose(got, want, atol=1e-6)


def test_it_says_what_memory_a_pair_takes():
    noise = Noise(3, SHAPES)
    drawn = noise.draw(0, range(1))
    assert noise.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in drawn.values())
