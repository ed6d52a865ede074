import time

import pytest
import torch

from ensemble.plan import LOOP, Plan, Way, candidates, measure


def run_of(costs):
    """A run that takes so many seconds for each chunk, and what was asked of it."""
    asked = []

    def run(chunk):
        asked.append(chunk)
        time.sleep(costs[chunk])

    return run, asked


def test_the_fastest_candidate_is_chosen():
    run, _ = run_of({8: 0.03, LOOP: 0.05, 4: 0.005, 2: 0.04})
    way = measure(run, 3, [8, LOOP, 4, 2], seconds=10)
    assert (way.rows, way.chunk) == (3, 4)
    assert 0.005 <= way.seconds <= 0.03
    assert way.loop_seconds >= 0.05


def test_the_loop_is_chosen_where_it_is_fastest():
    run, _ = run_of({8: 0.05, LOOP: 0.005, 4: 0.05})
    way = measure(run, 1, [8, LOOP, 4], seconds=10)
    assert way.chunk == LOOP
    assert way.seconds == way.loop_seconds


def test_a_hopeless_candidate_is_run_once():
    run, asked = run_of({8: 0.005, LOOP: 0.1})
    measure(run, 1, [8, LOOP], seconds=10)
    assert asked.count(LOOP) == 1
    assert asked.count(8) > 1


def test_no_more_is_tried_once_the_time_is_spent():
    run, asked = run_of({8: 0.05, LOOP: 0.05, 4: 0.05})
    way = measure(run, 1, [8, LOOP, 4], seconds=0)
    assert asked == [8]
    assert way.loop_seconds is None


@pytest.mark.parametrize(("members", "most"), [(1, 5), (2, 2), (3, 100), (128, 128), (128, 10), (100_000, 50_000)])
def test_candidates_are_chunks_that_fit_and_the_loop(members, most):
    found = candidates(members, most)
    assert LOOP in found[:2]
    assert len(set(found)) == len(found)
    assert all(chunk == LOOP or 1 <= chunk <= min(members, most) for chunk in found)
    assert found[0] == min(members, most)


def test_a_batch_is_run_as_the_next_larger_one_that_was_measured():
    plan = Plan((Way(1, 7, 1.0, None), Way(8, 4, 1.0, None), Way(64, LOOP, 1.0, None)))
    assert [plan.way(rows).chunk for rows in (1, 2, 8, 9, 64, 1000)] == [7, 4, 4, 0, 0, 0]


def test_a_compiled_call_runs_the_batches_that_it_is_fastest_for():
    plan = Plan((Way(1, 7, 1.0, 9.0, eager=7), Way(8, 4, 3.0, None, eager=4), Way(64, 4, 5.0, None, eager=2)))
    plan = plan.with_compiled(8, 16, 2.0)
    assert [(way.kind, way.chunk, way.compiled) for way in plan.ways] == [
        ("vmap", 7, None),
        ("compiled", 16, 8),
        ("vmap", 4, None),
    ]
    # A batch larger than any that was measured fits no compiled call.
    plan = plan.with_compiled(64, 16, 1.0)
    assert plan.way(64).kind == "compiled"
    assert (plan.way(65).kind, plan.way(65).chunk) == ("vmap", 2)


def test_an_ensemble_runs_as_it_was_measured_and_answers_the_same(made):
    ens = made("cnn").to("cpu")
    x = torch.randn(5, 2, 8, 8)
    before = ens(x)
    told = []
    plan = ens.measure((1, 4, 8), seconds=5, progress=told.append)
    assert [way.rows for way in plan.ways] == told == [1, 4, 8]
    assert ens.plan is plan
    assert all(way.seconds <= way.loop_seconds for way in plan.ways if way.loop_seconds)
    torch.testing.assert_close(ens(x), before, rtol=1e-5, atol=1e-6)
    assert ens.check() < 1e-5


def test_sizes_for_which_no_time_is_left_are_run_as_the_largest_that_was_measured(made):
    ens = made("cnn").to("cpu")
    plan = ens.measure((1, 2, 4, 8, 16, 32, 64), seconds=0)
    assert len(plan.ways) == 1
    assert ens(torch.randn(9, 2, 8, 8)).shape[:2] == (5, 9)
