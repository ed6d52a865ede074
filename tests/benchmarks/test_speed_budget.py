"""How a run's time is shared."""

import pytest

from benchmarks.speed import budget
from benchmarks.speed.running import WAYS

ALL = list(WAYS)


def test_members_that_share_weights_come_first_then_the_loop_then_dense_ones():
    found = budget.order(ALL)
    assert found[:4] == ["low_rank", "rank1", "loop", "dense"]
    assert set(found) == set(ALL)
    assert budget.order(["loop", "jax"], {"loop"}) == ["jax", "loop"]


def test_a_shift_with_this_library_in_it_takes_what_it_needs():
    assert budget.end(["low_rank", "loop", "vmap"], 3, 10.0, 110.0) == 110
    assert budget.end(["loop", "jax"], 3, 10.0, 1010.0) == 260
    # A quarter of so little would do for nobody.
    assert budget.end(["loop", "jax"], 3, 10.0, 110.0) == 10 + budget.LEAST
    assert budget.end(["loop", "jax"], 3, 10.0, 20.0) == 20
    assert budget.end(["loop", "jax"], 3, 30.0, 20.0) == 30


def test_batch_sizes_share_the_time_of_a_shift_but_where_only_peers_are():
    assert budget.cell(["low_rank", "loop"], 2, 10.0, 40.0) == 20
    assert budget.cell(["loop", "jax"], 2, 10.0, 40.0) == 40


def test_the_loop_that_runs_again_is_work_too():
    once, again = [["low_rank", "loop", "jax", "openvino"]], [["low_rank", "loop", "jax"], ["loop", "openvino"]]
    assert budget.effort(again, 3, 1.5, 8) - budget.effort(once, 3, 1.5, 8) == budget.effort([["loop"]], 3, 1.5, 8)
    assert budget.effort([["low_rank"]], 3, 1.5, 8) - budget.effort([["loop"]], 3, 1.5, 8) == 24
    assert budget.effort([], 3, 1.5, 8) == 0


def test_plans_are_made_in_the_time_that_there_is():
    ways = ["low_rank", "loop", "dense", "vmap"]
    assert budget.planning(8.0, ways, 3, 1000.0) == 8
    assert budget.planning(8.0, ways, 3, 24.0) == pytest.approx(2.4)
    assert budget.planning(8.0, ways[1:], 3, 18.0) == pytest.approx(3.6)
    assert budget.planning(8.0, ways, 3, -1.0) == 0
