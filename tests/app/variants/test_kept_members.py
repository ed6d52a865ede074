import torch

from app.variants import Kept


def members(nbytes):
    return {"weight": torch.zeros(nbytes, dtype=torch.uint8)}


def test_what_is_kept_has_a_bound_and_the_least_recently_used_goes_first():
    kept = Kept(10_000)
    a = members(2000)
    kept.put("a", a)
    one = kept.nbytes
    assert 2000 < one < 3333
    kept.put("b", members(2000))
    kept.put("c", members(2000))
    assert kept.get("a") is a
    kept.put("d", members(2000))
    assert [kept.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert kept.nbytes == 3 * one
    kept.put("a", members(1))
    assert kept.get("a") is a
    kept.put("e", members(10_000))
    assert kept.get("e") is None
    kept.put("f", members(8000))
    assert [kept.get(key) is not None for key in "acdf"] == [False, False, False, True]
    assert (kept.hits, kept.misses) == (6, 5)


def test_ten_thousand_tiny_ones_take_no_more_than_the_bound():
    kept = Kept(2**20)
    for key in range(10_000):
        kept.put(key, members(4))
    # The tensor and its place take many times what its numbers do.
    assert 100 < len(kept) < 1100
    assert kept.nbytes <= 2**20
    assert kept.get(9_999) is not None
