"""A request's pieces."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batching import Answer, non_finite_rows
from app.batching.job import HEAD_START, Job, Pace, packed
from tests.app.batching.bench import Model, rows


def job(count: int, priority: int = 0, queued_at: float = 10.0) -> Job:
    answer = asyncio.new_event_loop()
    try:
        future = answer.create_future()
    finally:
        answer.close()
    inputs = rows(*range(count))
    return Job("key", Model(), inputs, ("double",), count, None, None, Pace(), future, priority, math.inf, queued_at)


def test_a_step_of_priority_is_a_head_start():
    assert job(1, priority=3).rank == job(1, queued_at=10 - 3 * HEAD_START).rank
    assert job(1, priority=-1).rank > job(1).rank


def test_pieces_are_views_of_a_request_and_what_remains_stands_anew():
    asked = job(5, priority=1)
    first, rest = asked.take(2, now=20.0), asked.take(3, now=30.0)
    assert (first.rank, rest.rank) == (10 - HEAD_START, 20 - HEAD_START)
    assert [first.inputs["x"].tolist(), rest.inputs["x"].tolist()] == [[[0], [1]], [[2], [3], [4]]]
    assert np.shares_memory(rest.inputs["x"], asked.inputs["x"])
    assert asked.handed == 5


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_are_joined_in_the_order_of_the_rows_whichever_came_first(order):
    asked = job(3)
    pieces = [asked.take(2, 0.0), asked.take(1, 0.0)]
    parts = [
        Answer({"double": np.array([[0.0], [2.0]])}, 5, 1.0, 0.25, (1,)),
        Answer({"double": np.array([[4.0]])}, 7, 1.0, 0.5, (0,)),
    ]
    for n in order:
        assert not asked.answer.done()
        before = asked.computed
        asked.give(pieces[n], parts[n])
        assert asked.computed == before + parts[n].computed
    answer = asked.answer.result()
    assert answer.arrays["double"].tolist() == [[0], [2], [4]]
    assert (answer.members, answer.computed, answer.non_finite_rows) == (7, 0.75, (1, 2))
    # A second answer changes nothing.
    asked.fail(ValueError("late"))
    asked.give(pieces[0], parts[0])
    assert asked.answer.result() is answer


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 12))
def test_rows_are_packed_whole_in_their_order_into_calls_that_are_not_too_large(sizes, limit):
    pieces = [job(size).take(size, 0.0) for size in sizes]
    calls = packed(pieces, limit)
    assert all(1 <= sum(piece.rows for piece in call) <= limit for call in calls)
    flat = [(pieces.index(next(p for p in pieces if p.job is q.job)), q.start, q.stop) for call in calls for q in call]
    assert [(n, row) for n, start, stop in flat for row in range(start, stop)] == [
        (n, row) for n, size in enumerate(sizes) for row in range(size)
    ]
    # A piece that fits is not cut.
    assert all(sum(q[0] == n for q in flat) == -(-size // limit) for n, size in enumerate(sizes))


def test_rows_that_are_no_numbers_are_found_in_any_shape_and_only_where_there_are_some():
    deep = np.zeros((3, 2, 2), np.float32)
    deep[2, 1, 0] = np.nan
    found = non_finite_rows({"deep": deep, "fine": np.ones(3), "flat": np.array([np.inf, 0, 1]), "n": np.arange(3)})
    assert {name: bad.tolist() for name, bad in found.items()} == {
        "deep": [False, False, True],
        "flat": [True, False, False],
    }


def test_a_pace_follows_what_is_measured():
    pace = Pace()
    pace.measured(10, 1.0)
    assert pace.seconds == 0.1
    for _ in range(50):
        pace.measured(10, 2.0)
    assert pace.seconds == pytest.approx(0.2, rel=1e-3)
