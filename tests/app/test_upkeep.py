"""What goes on beside the requests."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest
import torch

from app import upkeep
from app.engine import Engine
from app.repository import Repository
from app.upkeep import Upkeep
from tests.app.repository.lives import build, exchange
from tests.app.support import PATIENCE


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return {seed: build(root / str(seed), seed) for seed in (1, 2)}


@pytest.fixture
def root(tmp_path, saved):
    (tmp_path / "m").mkdir()
    exchange(tmp_path / "m" / "1", saved[1])
    return tmp_path


class Accelerator:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    async def accelerate(self, model, wanted) -> None:
        await asyncio.sleep(0)
        self.seen.append((model.version, model.ensemble.origin.seed))


async def until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def keeping(root, life, *, accelerator=None, poll=0.0):
    async def main():
        engine = Engine(1)
        repository = Repository(root, engine, device=torch.device("cpu"), max_batch=1)
        kept = Upkeep(repository, accelerator, poll)
        kept.start()
        await kept.loading
        await engine.run(lambda: None)
        try:
            return await life(repository)
        finally:
            await kept.stop()
            engine.close()
            assert len(asyncio.all_tasks()) == 1

    return asyncio.run(main())


def test_each_model_that_becomes_ready_is_made_faster(root, saved):
    accelerator = Accelerator()

    async def life(repository):
        await until(lambda: len(accelerator.seen) == 1)
        exchange(root / "m" / "1", saved[2])
        await repository.load("m")
        await until(lambda: len(accelerator.seen) == 2)

    keeping(root, life, accelerator=accelerator)
    assert accelerator.seen == [("1", 1), ("1", 2)]


def test_the_directory_is_looked_at_now_and_then_and_errors_do_not_end_that(root, saved, monkeypatch, caplog):
    looks = 0
    real = Repository.poll

    async def unsteady(self):
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ZeroDivisionError
        await real(self)

    monkeypatch.setattr(Repository, "poll", unsteady)

    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        await until(lambda: repository.served("m") == ["2"])

    keeping(root, life, poll=0.01)
    assert "the directory of models could not be looked at" in caplog.text


@pytest.mark.parametrize("accelerator", [None, Accelerator()])
def test_a_model_with_cycles_is_freed_although_the_collector_did_not_see_it(root, saved, monkeypatch, accelerator):
    monkeypatch.setattr(upkeep, "_CLEAR_AFTER", 0.01)

    async def life(repository):
        model = repository.ready_model("m")
        # Anything may refer to itself: a compiled call does.
        model.outputs["itself"] = model
        seen = weakref.ref(model)
        del model
        if accelerator:
            await until(lambda: accelerator.seen and gc.get_freeze_count() and not repository.entry("m").compiling)
        exchange(root / "m" / "1", saved[2])
        await repository.load("m")
        # What came last is watched by the collector as ever.
        await until(lambda: gc.collect() < 0 or seen() is None)

    keeping(root, life, accelerator=accelerator)
