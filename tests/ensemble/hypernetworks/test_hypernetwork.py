"""The ready-made hypernetwork: its forms, and where it begins."""

import pytest
import torch
from torch import nn

import ensemble
from ensemble.errors import InputError, ModelError, RecipeError


def target() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def codes():
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def test_full_weights_begin_near_those_of_the_target_and_differ_between_codes(codes):
    found = ensemble.Hypernetwork(target(), 2)(codes)
    for name, weight in target().named_parameters():
        assert found[name].shape == (5, *weight.shape)
        error = (found[name] - weight).square().mean().sqrt() / weight.square().mean().sqrt()
        assert 0 < error < 0.3
        assert not torch.allclose(found[name][0], found[name][1])


def test_low_rank_deltas_begin_at_zero_and_learn(codes):
    made = ensemble.Hypernetwork(target(), 2, rank=2)
    found = made(codes)
    assert [tuple(factor.shape) for factor in found["0.weight"]] == [(5, 4, 2), (5, 18, 2)]
    assert found["2.bias"].shape == (5, 3)
    left, right = found["2.weight"]
    delta = left @ right.transpose(1, 2)
    assert not delta.any()
    delta.sum().backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in list(made.heads)[3:4])


def test_a_rank_is_no_more_than_the_weight_has(codes):
    left, right = ensemble.Hypernetwork(target(), 2, rank=9)(codes)["2.weight"]
    assert (left.shape, right.shape) == ((5, 3, 3), (5, 16, 3))


def test_chunks_hold_all_weights_with_few_parameters_and_their_magnitude(codes):
    large = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 10))
    made = ensemble.Hypernetwork(large, 2, hidden=(16,), chunk=100)
    chunks = made(codes).detach()
    numbers = sum(p.numel() for p in large.parameters())
    assert chunks.shape == (5, -(-numbers // 100), 100)
    assert sum(p.numel() for p in made.parameters()) < numbers
    weights = torch.cat([p.detach().flatten() for p in large.parameters()])
    assert chunks.square().mean().sqrt() == pytest.approx(float(weights.square().mean().sqrt()), rel=0.5)


def test_it_may_give_some_weights_and_take_one_number_as_a_code():
    found = ensemble.Hypernetwork(target(), 1, hidden=(), include="2.*")(torch.tensor([0.0, 1.0]))
    assert {name: tuple(t.shape) for name, t in found.items()} == {"2.weight": (2, 3, 16), "2.bias": (2, 3)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"code_size": 0}, "code_size must be a positive integer, however: 0"),
        ({"rank": 1.5}, "rank must be a positive integer, however: 1.5"),
        ({"chunk": -1}, "chunk must be a positive integer"),
        ({"hidden": (8, 0)}, "hidden must be a positive integer, however: 0"),
        ({"hidden": 8}, r"hidden must be the widths of the hidden layers, such as \(64,\), however: 8"),
        ({"rank": 1, "chunk": 8}, "choose one of them"),
    ],
)
def test_sizes_that_are_none_are_refused(settings, said):
    with pytest.raises(ModelError, match=said):
        ensemble.Hypernetwork(target(), **{"code_size": 2, **settings})


def test_what_is_no_target_and_codes_of_another_size_are_refused(codes):
    with pytest.raises(ModelError, match=r"target must be a torch\.nn\.Module, however: int"):
        ensemble.Hypernetwork(3, 2)
    with pytest.raises(InputError, match=r"Codes must have shape \[n, 3\], however: \[5, 2\]"):
        ensemble.Hypernetwork(target(), 3)(codes)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(RecipeError, match="matches none"):
        ensemble.Hypernetwork(target(), 2, include="head.*")
