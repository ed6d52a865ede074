import math

import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.machine import Limits, describe, free_memory, limits, multiplying, version


def test_limits_are_measured():
    found = limits(0.2, sizes=(2**17, 2**20, 2**22), products=((64, 32, 48),))
    assert 1e8 < found.streaming < 1e13
    assert 1e8 < found.float32 < 1e15
    # A smaller buffer is read at least as fast.
    speeds = [found.bandwidth[size] for size in sorted(found.bandwidth)]
    assert speeds == sorted(speeds, reverse=True)


def test_every_kernel_multiplies():
    a, b = torch.randn(8, 20), torch.randn(20, 12)
    kernels = multiplying(a, b)
    assert ("openvino" in kernels) == (version("openvino") is not None)
    assert ("onednn" in kernels) == torch.backends.mkldnn.is_available()
    for name, call in kernels.items():
        np.testing.assert_allclose(np.asarray(call()), a.numpy() @ b.numpy(), atol=1e-4, err_msg=name)


def test_the_peak_is_that_of_the_fastest_kernel(monkeypatch):
    speeds = {"blas": 1e9, "onednn": 3e9, "openvino": 2e9}

    def kernels(a, b):
        """One shape suits them twice as well as the others."""
        better = 1 if len(a) == 4 else 0.5
        return {name: 2 * a.numel() * b.shape[1] / (better * speed) for name, speed in speeds.items()}

    monkeypatch.setattr(machine, "multiplying", kernels)
    monkeypatch.setattr(machine, "_fastest", lambda seconds, _: seconds)
    monkeypatch.setattr(machine, "_reading", lambda *_: [1.0])
    found = limits(0.1, sizes=(2**20,), products=((2, 3, 5), (4, 3, 5), (6, 3, 5)))
    assert math.isclose(found.float32, 3e9)
    assert math.isclose(found.bfloat16, 3e9)


def test_no_large_product_waits_for_a_kernel_that_lacks_instructions_for_it(monkeypatch):
    asked = []

    def kernels(a, b):
        def slow():
            asked.append(len(a))
            return 2 * a.numel() * b.shape[1] / 1e6

        return {"slow": slow} if a.dtype == torch.bfloat16 else {"fast": lambda: 2 * a.numel() * b.shape[1] / 1e9}

    monkeypatch.setattr(machine, "multiplying", kernels)
    monkeypatch.setattr(machine, "_fastest", lambda call, _: call())
    monkeypatch.setattr(machine, "_reading", lambda *_: [1.0])
    found = limits(0.1, sizes=(2**20,), products=((2048, 2048, 2048),))
    assert asked == [512]
    assert math.isclose(found.float32, 1e9)
    assert math.isclose(found.bfloat16, 1e6)


def test_a_bound_is_reading_or_computing():
    ceilings = Limits({1000: 100.0, 10_000: 10.0}, float32=50.0, bfloat16=90.0)
    assert ceilings.seconds(5000, 0) == 5000 / 100
    assert ceilings.seconds(20_000, 0) == 20_000 / 10
    assert ceilings.seconds(10, 500) == 10
    assert ceilings.streaming == 10


def test_the_best_of_two_measurements():
    a = Limits({1: 10.0, 2: 20.0}, 5.0, 6.0)
    b = Limits({1: 12.0, 2: 4.0}, 7.0, 3.0)
    assert a.best(b) == Limits({1: 20.0, 2: 20.0}, 7.0, 6.0)


def test_description():
    assert "torch" in describe()
    assert version("no-such-package") is None
    assert "no-such-package" not in describe(["no-such-package"])
    assert free_memory() > 0


def test_speeds_are_positive():
    assert Limits({1: 1.0}, 1.0, 1.0).reading(0.5) == pytest.approx(1.0)
