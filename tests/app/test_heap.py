"""Memory that models leave behind."""

from __future__ import annotations

import gc
import weakref

import pytest

from app import heap


class Thing:
    """Part of a cycle, which only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before():
    before = gc.get_freeze_count()
    yield
    if not before:
        gc.unfreeze()


def test_what_was_settled_is_not_seen_by_the_collector_until_it_is_cleared():
    thing = Thing()
    seen = weakref.ref(thing)
    heap.settle()
    assert gc.get_freeze_count() > 0
    del thing
    gc.collect()
    assert seen() is not None
    heap.clear()
    assert seen() is None
    assert gc.get_freeze_count() > 0


def test_what_came_later_is_seen():
    heap.settle()
    thing = Thing()
    seen = weakref.ref(thing)
    del thing
    gc.collect()
    assert seen() is None


def test_freed_memory_is_given_back_wherever_that_can_be_asked_for(monkeypatch):
    heap.trim()
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap.trim()
