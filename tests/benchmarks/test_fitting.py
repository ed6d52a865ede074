from benchmarks.speed.counting import Size
from benchmarks.speed.fitting import PROCESS, calling, holding, shifts


def test_all_together_where_they_fit():
    assert shifts({"loop": 2, "a": 3, "b": 4}, 9, "loop") == ([["loop", "a", "b"]], {})


def test_the_loop_runs_again_beside_what_did_not_fit_with_the_others():
    assert shifts({"loop": 2, "a": 5, "b": 6, "c": 1}, 9, "loop") == ([["loop", "a"], ["loop", "b", "c"]], {})


def test_alone_where_the_loop_does_not_fit_beside_it():
    groups, reasons = shifts({"loop": 5, "a": 8}, 9, "loop")
    assert groups == [["loop"], ["a"]]
    assert not reasons


def test_what_does_not_fit_at_all_says_how_much_it_needs():
    groups, reasons = shifts({"loop": 48_000_000_000, "a": 3}, 20_000_000_000, "loop")
    assert groups == [["a"]]
    assert reasons == {"loop": "does not fit: 48 GB"}


def test_every_way_that_fits_is_in_a_group():
    needs = {"loop": 4, "a": 3, "b": 3, "c": 7, "d": 1, "e": 12}
    groups, reasons = shifts(needs, 10, "loop")
    assert {way for group in groups for way in group} | set(reasons) == set(needs)
    assert all(sum(needs[way] for way in group) <= 10 for group in groups)
    assert all(group.count("loop") <= 1 for group in groups)


def test_what_ways_hold():
    size = Size(member=1000, shared={"dense": 0, "low_rank": 900}, own={"dense": 1000, "low_rank": 10}, activation=50)
    assert holding("loop", size, 100) == PROCESS + 100 * 1000
    assert holding("low_rank", size, 100) == PROCESS + 1.5 * (900 + 100 * 10)
    assert calling("vmap", size, 100, 8) == 3 * 50 * 100 * 8
    # A loop, or a call in chunks, does not hold the activations of all members.
    assert calling("loop", Size(1000, {}, {}, 10**9), 1000, 8) < 10**9
