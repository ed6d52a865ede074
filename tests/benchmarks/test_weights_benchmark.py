"""Every request gets what the library says of its own members, and the tables' ratios are those of their rates."""

import json

import pytest
import torch

import ensemble
from app.protocol import decode_infer
from app.served import wrap
from app.variants import Limits
from app.variants.limits import bringable
from benchmarks.weights.__main__ import row
from benchmarks.weights.asking import fresh, requests_of
from benchmarks.weights.without_http import measure
from benchmarks.weights.work import OUTPUTS, build, factors, rows


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights-benchmark") / "digits" / "1"
    build(path)
    return path


@pytest.mark.parametrize("kind", ["kept", "weights", "drawn"])
def test_together_and_one_at_a_time_are_the_same(path, kind, monkeypatch):
    monkeypatch.setattr("benchmarks.weights.without_http._REPEATS", 1)
    one, other = measure(path, 4, 8, kind)
    assert min(one, other) > 0


def test_requests_have_as_many_different_members_as_is_said_and_know_their_answers(path):
    made = ensemble.load(path)
    for keys in (1, 8):
        requests = requests_of(path, 4, keys, "kept")
        seeds = [json.loads(request.body)["parameters"]["seed"] for request in requests]
        assert len(set(seeds)) == keys
    assert len({json.loads(r.body)["parameters"]["seed"] for r in fresh(path, 4, 0)[:100]}) == 100
    requests = requests_of(path, 4, 2, "weights")
    assert len({request.headers for request in requests}) == 1
    specs = wrap("digits", "1", made, 64).inputs
    brings = bringable(made, Limits(weights=True))
    for number, request in enumerate(requests[:4]):
        length = int(dict(request.headers)["inference-header-content-length"])
        asked = decode_infer(request.body, specs, OUTPUTS, OUTPUTS, length, brings=brings)
        assert all(
            torch.equal(torch.tensor(asked.weights[name]), want) for name, want in factors(made, 4, number % 2).items()
        )
        got = made.with_weights(factors(made, 4, number % 2)).predict(rows(made, len(requests))[number])
        assert abs(float(got.predictive_entropy[0]) - request.entropy) < 1e-6


def test_ratios_are_those_of_the_rates_beside_them():
    assert row("kept", 8, 100, 1500) == ["perturbation", "8", "100", "1,500", "15.0"]
    assert row("drawn", 64, 100, 250)[1:] == ["all", "100", "250", "2.5"]
