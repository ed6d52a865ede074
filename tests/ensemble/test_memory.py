import re

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
    require([(torch.uint8, (9, 10))], 10, CPU)
    with pytest.raises(MemoryLimitError) as caught:
        require([(torch.uint8, (9, 10)), (torch.uint8, ())], 10, CPU)
    text = str(caught.value)
    assert "10 members of 91 B each need 910 B on cpu, of which 1e+03 B is free" in text
    # Integers stay as they are.
    assert text.endswith("What would fit: 9 members, or a recipe that perturbs fewer weights (include=, exclude=).")
    monkeypatch.setattr(memory, "available", lambda device: None)
    require([(torch.float32, (2**30, 2**30))], 2**20, CPU)


@pytest.mark.parametrize(
    ("free", "dtype", "factors", "text"),
    [
        # 4 · 272 bytes a member, 4 · 48 as factors; nine tenths of what is free are given.
        (4000, torch.float32, "", "3 members, or 6 members with weights in bfloat16, or a recipe"),
        (1300, torch.float32, "", "1 member, or 2 members with weights in bfloat16, or a recipe"),
        (1000, torch.float32, "", "1 member with weights in bfloat16, or a recipe"),
        (1000, torch.bfloat16, "", "1 member, or a recipe"),
        (500, torch.bfloat16, "", "a recipe that perturbs fewer"),
        (500, torch.bfloat16, "LowRank", "4 members with factors in place of whole weights (LowRank), or a recipe"),
        (9000, torch.float32, "rank=1", "7 members, or 14 members with weights in bfloat16, or 20 members with fac"),
        (0, torch.float32, "LowRank", "a recipe that perturbs fewer"),
        (-1, torch.float32, "LowRank", "a recipe that perturbs fewer"),
    ],
)
def test_what_would_fit_is_told_of_what_was_not_done_yet(monkeypatch, free, dtype, factors, text):
    monkeypatch.setattr(memory, "available", lambda device: free)
    with pytest.raises(MemoryLimitError) as caught:
        require([(dtype, (16, 4, 4)), (dtype, (16,))], 20, CPU, factors=factors)
    assert f"What would fit: {text}" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_would_fit_does_and_one_more_member_does_not(monkeypatch, dtype):
    model, example = mlp(), torch.zeros(2, 6)
    monkeypatch.setattr(memory, "available", lambda device: 8000)

    def fits(recipe, members, kind):
        try:
            ensemble.perturb(model, recipe, members=members, example=example, dtype=kind)
        except MemoryLimitError as error:
            return str(error)
        return ""

    text = fits(ensemble.Gaussian(0.1), 500, dtype)
    told = [int(count) for count in re.findall(r"(\d+) members?(?= with|, or)", text.split("would fit")[1])]
    ways = [(ensemble.Gaussian(0.1), dtype), (ensemble.Gaussian(0.1), torch.bfloat16), (ensemble.LowRank(0.1), dtype)]
    if dtype == torch.bfloat16:
        del ways[1]
    assert len(told) == len(ways)
    for (recipe, kind), count in zip(ways, told, strict=True):
        assert count > 1
        assert not fits(recipe, count, kind)
        assert fits(recipe, count + 1, kind)
    assert "LowRank" not in fits(ensemble.LowRank(0.1), 500, dtype)


@pytest.fixture
def container(monkeypatch, tmp_path):
    """Writes what the kernel tells of a machine and of a control group, in bytes."""
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)

    def write(free=None, **files):
        if free is not None:
            (tmp_path / "meminfo").write_text(f"MemTotal:  99 kB\nMemAvailable:   {free // 1024} kB\n")
        for name, text in files.items():
            (tmp_path / f"memory.{name}").write_text(str(text))

    return write


def test_files_that_a_container_read_and_that_make_way_are_free(container):
    assert available(CPU) is None
    container(max=1000 * 2**20, current=900 * 2**20)
    assert available(CPU) == 100 * 2**20
    container(stat=f"anon 5\nfile {700 * 2**20}\ninactive_file {600 * 2**20}\nactive_file {100 * 2**20}\n")
    assert available(CPU) == 700 * 2**20
    # What the machine itself has left is a limit all the same.
    container(free=300 * 2**20)
    assert available(CPU) == 300 * 2**20
    container(free=800 * 2**20)
    assert available(CPU) == 700 * 2**20


@pytest.mark.parametrize("stat", ["", "damaged", "inactive_file", "inactive_file x\n", "anon 1\n"])
def test_a_group_without_these_figures_is_as_full_as_it_says(container, stat):
    container(max=1000, current=900, stat=stat)
    assert available(CPU) == 100


def test_a_group_without_a_limit_sets_none(container):
    container(max="max\n", current=900, stat="inactive_file 5\n")
    assert available(CPU) is None
    container(free=2**20)
    assert available(CPU) == 2**20


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
