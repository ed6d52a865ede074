"""A process that hangs, raises or dies costs its own answer."""

import operator
import os
import time

import pytest

from benchmarks.speed.worker import LostError, RefusedError, Worker, isolated, said


class _Environment:
    def get(self, name):
        return os.environ.get(name)


def test_an_object_keeps_its_state_between_questions():
    with Worker(dict, {"a": 1}) as worker:
        assert worker.ask("setdefault", "b", 2, timeout=60) == 2
        # What it raises is told, and it goes on.
        with pytest.raises(RefusedError, match="KeyError: 'c'") as caught:
            worker.ask("__getitem__", "c", timeout=60)
        assert not isinstance(caught.value, LostError)
        assert worker.ask("copy", timeout=60) == {"a": 1, "b": 2}


def test_it_has_variables_that_are_not_set_already(monkeypatch):
    monkeypatch.setenv("SPIN_ONE", "mine")
    assert "SPIN_TWO" not in os.environ
    with Worker(_Environment, environment={"SPIN_ONE": "theirs", "SPIN_TWO": "theirs"}) as worker:
        assert worker.ask("get", "SPIN_ONE", timeout=60) == "mine"
        assert worker.ask("get", "SPIN_TWO", timeout=60) == "theirs"
    assert "SPIN_TWO" not in os.environ


def test_one_that_hangs_is_ended():
    with Worker(operator.methodcaller, "split") as worker:
        assert worker.ask("__call__", "a b", timeout=60) == ["a", "b"]
        pid = worker._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    begun = time.monotonic()
    with pytest.raises(LostError, match="not done in 1 s") as caught:
        isolated(time.sleep, 600, timeout=1)
    assert caught.value.late
    assert time.monotonic() - begun < 60


def test_one_that_dies_says_so():
    with pytest.raises(LostError, match=r"its process ended \(3\)"):
        isolated(os._exit, 3, timeout=60)


def test_words():
    assert said(RefusedError("not written for this model")) == "not written for this model"
    assert said(ValueError("first\nsecond")) == "ValueError: first"
    assert said(MemoryError()) == "MemoryError"
    assert len(said(ValueError("x" * 1000))) == 160
