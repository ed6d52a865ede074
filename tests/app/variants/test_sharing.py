"""Which requests with members of their own share calls."""

import torch

import ensemble
from app.variants.model import Drawn, Own
from ensemble.variants.kind import Kind


def own(numbers, source):
    return Own(None, Kind(1, (("weight", torch.float32, (numbers,)),)), source, {})


def test_small_ones_share_by_kind_and_large_ones_only_with_the_same():
    one, other = (Drawn(ensemble.Gaussian(0.1), 1, seed) for seed in (1, 2))
    assert own(1000, one).sharing == own(1000, other).sharing == own(1000, {}).sharing
    assert own(1000, one).sharing != own(1001, one).sharing
    # Drawing it takes long, and others would wait for all of them.
    assert own(2**20, one).sharing == own(2**20, Drawn(*one)).sharing
    assert own(2**20, one).sharing != own(2**20, other).sharing
    first, second = {}, {}
    assert own(2**20, first).sharing != own(2**20, second).sharing
