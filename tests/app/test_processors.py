import os

import pytest

from app import processors


@pytest.fixture
def group(monkeypatch, tmp_path):
    """A machine with eight processors, and a control group to be written."""
    monkeypatch.setattr(processors, "_GROUP", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("limit", "count", "threads"),
    [(None, 8, 7), ("max 100000", 8, 7), ("250000 100000", 2, 2), ("400000 100000", 4, 3), ("50000 100000", 1, 1)],
)
def test_the_least_of_what_is_bound_and_what_is_allowed(group, limit, count, threads):
    if limit is not None:
        group.write_text(limit)
    assert processors.available() == count
    assert processors.default_threads() == threads
