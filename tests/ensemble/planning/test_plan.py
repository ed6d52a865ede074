import pytest

from ensemble.planning.plan import LOOP, Plan, Trial, Way


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
