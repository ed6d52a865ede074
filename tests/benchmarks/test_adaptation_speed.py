"""benchmarks.adaptation times what gives the same answers, and its table says so."""

from __future__ import annotations

import pytest
import torch

import ensemble
from benchmarks.adaptation import __main__ as benchmark


@pytest.fixture
def made():
    torch.manual_seed(0)
    model = benchmark.network()
    example = torch.randn(4, 1)
    return ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=example, task="regression"), model


def test_rates_are_those_of_the_same_work(made):
    rows = benchmark.in_the_library(*made, counts=[1, 3], seconds=0.0)
    assert [row[0] for row in rows] == ["1", "3"]
    for row in rows:
        together, each, times, unrolled = map(float, row[1:])
        assert min(together, each, unrolled) > 0
        assert times == pytest.approx(together / each, rel=0.1)
    text = benchmark.table(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| ---: | ---: |\n| 1 | 2 |"


def test_another_answer_is_not_timed(made, monkeypatch):
    original = benchmark.unrolled

    def other(*args):
        found = original(*args)
        found[0][1]["0.bias"] = found[0][1]["0.bias"] + 0.01
        return found

    monkeypatch.setattr(benchmark, "unrolled", other)
    with pytest.raises(AssertionError):
        benchmark.in_the_library(*made, counts=[1], seconds=0.0)
