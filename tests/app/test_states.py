"""What the metrics look up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from app.collector import DeviceMemory, ModelState
from app.states import build, device_memory, model_states
from app.variants import Kept
from app.version import VERSION


class Made:
    """As much of an ensemble as is looked at."""

    members = SimpleNamespace(nbytes=4096)

    def __len__(self) -> int:
        return 16


def entry(version: str, loaded: bool, compiling: bool = False):
    model = SimpleNamespace(ensemble=Made(), max_batch=64) if loaded else None
    return SimpleNamespace(name="m", version=version, model=model, compiling=compiling)


def test_a_version_is_ready_if_something_answers_for_it():
    entries = {"1": entry("1", False), "2": entry("2", True), "3": entry("3", True, compiling=True)}
    asked, other = Kept(10_000), Kept(0)
    asked.put("key", {"weight": torch.zeros(2)})
    found = [asked.get(key) for key in ("key", "key", "another")]
    assert found[2] is None
    kept = SimpleNamespace(kept=lambda model: asked if model is entries["2"].model else other)
    assert model_states(SimpleNamespace(entries=entries), kept) == [
        ModelState("m", "1", False, 0, 0, 0, False),
        ModelState("m", "2", True, 16, 4096, 64, False, 1, asked.nbytes, 2, 1),
        ModelState("m", "3", True, 16, 4096, 64, True),
    ]


def test_the_cpu_has_no_memory_of_its_own():
    assert device_memory(torch.device("cpu")) == []


@pytest.mark.parametrize(("device", "number"), [("cuda:1", 1), ("cuda", 0)])
def test_the_memory_of_a_gpu_is_what_pytorch_says(monkeypatch, device, number):
    asked = []

    def said(value):
        def say(index):
            asked.append(index)
            return value

        return say

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", said(SimpleNamespace(total_memory=100)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", said(50))
    monkeypatch.setattr(torch.cuda, "memory_allocated", said(25))
    assert device_memory(torch.device(device)) == [DeviceMemory(f"cuda:{number}", 100, 50, 25)]
    assert asked == [number] * 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_memory_of_a_real_gpu_grows_with_what_is_put_there():
    (before,) = device_memory(torch.device("cuda"))
    kept = torch.empty(2**20, device="cuda")
    (after,) = device_memory(torch.device("cuda"))
    assert after.allocated - before.allocated >= kept.nbytes
    assert after.allocated <= after.reserved <= after.total


def test_it_says_what_it_was_made_of():
    made = build(torch.device("cuda:3"))
    assert made["version"] == VERSION
    assert made["torch"] == torch.__version__
    assert made["device"] == "cuda"
