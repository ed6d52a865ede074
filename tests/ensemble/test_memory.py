import pytest
import torch

import ensemble
from ensemble import MemoryLimitError, memory
from ensemble.memory import available, human, require
from tests.scenarios import mlp

CPU = torch.device("cpu")


def test_a_system_says_what_is_free():
    free = available(CPU)
    assert free is None or free > 2**20
    assert available(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1, "1 B"), (1023, "1.02e+03 B"), (1024, "1 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**60, "1.05e+06 TiB")],
)
def test_sizes_for_people(nbytes, text):
    assert human(nbytes) == text


def test_what_fits_is_let_through_and_what_does_not_is_told_what_would(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    require(90, 10, CPU)
    with pytest.raises(MemoryLimitError) as caught:
        require(91, 10, CPU)
    text = str(caught.value)
    assert "10 members of 91 B each need 910 B on cpu, of which 1e+03 B is free" in text
    assert "What would fit: 9 members, or weights in bfloat16" in text
    monkeypatch.setattr(memory, "available", lambda device: None)
    require(2**60, 2**20, CPU)


def test_members_that_do_not_fit_are_refused_before_anything_is_allocated(monkeypatch, tmp_path):
    empty = torch.empty

    def small(*size, **kwargs):
        assert "2000" not in str(size), f"allocated {size}"
        return empty(*size, **kwargs)

    def never(*args, **kwargs):
        raise AssertionError("drew")

    example = torch.zeros(2, 6)
    kept = ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=20, example=example)
    kept.save(tmp_path / "m")
    models = [mlp() for _ in range(3)]
    monkeypatch.setattr(memory, "available", lambda device: 4000)
    monkeypatch.setattr(torch, "empty", small)
    each = 4 * (6 * 16 + 16 + 16 * 4 + 4)
    draw = ensemble.Gaussian.draw
    monkeypatch.setattr(ensemble.Gaussian, "draw", never)
    with pytest.raises(MemoryLimitError, match=f"What would fit: {3600 // each} members"):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2000, example=example)
    with pytest.raises(MemoryLimitError, match=f"What would fit: {3600 // (each // 2)} members"):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2000, example=example, dtype=torch.bfloat16)
    # Loading draws a few members first, to see that they are those that were saved.
    monkeypatch.setattr(ensemble.Gaussian, "draw", draw)
    with pytest.raises(MemoryLimitError, match="20 members of"):
        ensemble.load(tmp_path / "m")
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(MemoryLimitError, match="3 members of"):
        ensemble.stack(models, example=example)
