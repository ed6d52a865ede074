import time

import pytest
import torch

from ensemble.planning.plan import LOOP, Plan, Trial, Way, candidates, measure


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


def eager(rows, chunk, seconds=1.0):
    return Trial("loop" if chunk == LOOP else "vmap", chunk, rows, seconds)


def test_a_batch_is_run_as_the_next_larger_one_that_was_measured():
    plan = Plan(tuple(Way.of(rows, [eager(rows, chunk)]) for rows, chunk in ((1, 7), (8, 4), (64, LOOP))))
    assert [plan.trial(rows).chunk for rows in (1, 2, 8, 9, 64, 1000)] == [7, 4, 4, 0, 0, 0]


def test_a_compiled_call_runs_the_batches_that_it_is_fastest_for():
    plan = Plan((
        Way.of(1, [eager(1, 7, 1.0), eager(1, LOOP, 9.0)]),
        Way.of(8, [eager(8, 4, 3.0)]),
        Way.of(64, [eager(64, 2, 5.0)]),
    ))  # fmt: skip
    plan = plan.with_trial(Trial("openvino", 16, 8, 2.0))
    assert [(way.kind, way.chunk, way.best.rows) for way in plan.ways] == [
        ("vmap", 7, 1),
        ("openvino", 16, 8),
        ("vmap", 2, 64),
    ]
    # A batch larger than any that was measured fits no compiled call.
    plan = plan.with_trial(Trial("inductor", 16, 64, 1.0))
    assert plan.trial(64).kind == "inductor"
    assert (plan.trial(65).kind, plan.trial(65).chunk) == ("vmap", 2)
    assert plan.ways[1].kind == "inductor"


def test_a_second_try_replaces_the_first():
    plan = Plan((Way.of(8, [eager(8, 4, 3.0)]),))
    plan = plan.with_trial(Trial("openvino", 16, 8, 2.0)).with_trial(Trial("openvino", 16, 8, 4.0))
    assert [(trial.kind, trial.seconds) for trial in plan.ways[0].trials] == [("vmap", 3.0), ("openvino", 4.0)]


def test_a_way_is_described_with_all_that_was_tried():
    way = Way.of(8, [eager(8, 4, 3e-3), eager(8, LOOP, 9e-3), Trial("openvino", 16, 8, 2e-3, "bfloat16", 1e-3)])
    about = way.described()
    assert (about["rows"], about["way"], about["ms"], about["loop_ms"]) == (8, "openvino", 2.0, 9.0)
    assert (about["precision"], about["relative_error"]) == ("bfloat16", 1e-3)
    assert [tried["way"] for tried in about["tried"]] == ["openvino", "vmap", "loop"]
    assert str(way) == "8 rows: openvino, 16 members at a time, bfloat16, 2 ms, the loop takes 9 ms"


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


@pytest.mark.parametrize(
    ("rows", "covered"), [((1, 8), True), ((1,), False), ((1, 8, 64), False), ((1, 4), False), ((), False)]
)
def test_a_plan_covers_the_sizes_that_it_has_and_no_others(rows, covered):
    plan = Plan(tuple(Way.of(size, [eager(size, 4), eager(size, LOOP)]) for size in (1, 8)))
    assert plan.covers(rows) is covered


def test_a_plan_without_a_loop_to_be_measured_by_covers_nothing():
    plan = Plan((Way.of(1, [eager(1, 4), eager(1, LOOP)]), Way.of(8, [eager(8, 4)])))
    assert not plan.covers((1, 8))
    assert not plan.covers((1,))
