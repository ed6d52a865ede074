"""Loading one version: where it runs, what is told of it, and what becomes of failures."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch

from app import served
from app.engine import Engine
from app.errors import BadRequest, Unavailable
from app.repository.loading import Loader, LoadFailure, Place
from ensemble import EnsembledError, MemoryLimitError
from tests.app.repository.lives import build, damage, exchange, mean, rows


def load(path, *, beside=True, tell=lambda text: None):
    async def main():
        engine = Engine()
        try:
            loader = Loader(engine, Place(torch.device("cpu"), max_batch=2))
            return await loader.load("m", "1", path, beside=beside, tell=tell)
        finally:
            engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("beside", [True, False])
def test_it_is_loaded_measured_and_checked_on_the_thread_that_was_asked_for(tmp_path, monkeypatch, beside):
    seen = []
    real = served.load

    def watched(*args, **rest):
        seen.append((threading.current_thread().name, torch.is_grad_enabled()))
        return real(*args, **rest)

    monkeypatch.setattr(served, "load", watched)
    path, told = build(tmp_path / "1", seed=3), []
    loaded = load(path, beside=beside, tell=lambda text: told.append((threading.current_thread(), text)))
    [(thread, gradients)] = seen
    assert thread.startswith("loading" if beside else "engine")
    assert not gradients
    assert loaded.model.ensemble.plan is not None
    got = loaded.model.ensemble.predict(torch.from_numpy(rows(0)), statistics=["mean"]).mean.numpy()
    assert got.tolist() == mean(path, rows(0)).tolist()
    assert told[0][1] == "reading (0%)"
    assert {where for where, _ in told} == {threading.main_thread()}


def test_it_is_measured_with_as_many_threads_as_the_engine_has(tmp_path, monkeypatch):
    """PyTorch keeps the number that one thread has set for the threads that begin after it."""
    seen = []

    def watched(*_, **__):
        seen.append(torch.get_num_threads())
        raise EnsembledError("enough was seen")

    monkeypatch.setattr(served, "load", watched)

    async def main():
        engine = Engine(1)
        await engine.run(torch.get_num_threads)
        loader = Loader(engine, Place(torch.device("cpu")))
        with pytest.raises(LoadFailure, match=r"enough was seen"):
            await loader.load("m", "1", tmp_path, beside=True, tell=lambda text: None)
        engine.close()

    asyncio.run(main())
    assert seen == [1]


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        (EnsembledError("{path} is damaged"), "m/1 is damaged", BadRequest),
        (MemoryLimitError("2 GiB of 1"), "2 GiB of 1", Unavailable),
        (ZeroDivisionError("secret"), "an unexpected error; the log explains it", Unavailable),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_why_it_cannot_be_served_is_told_without_where_it_is(
    tmp_path, monkeypatch, caplog, beside, error, reason, kind
):
    def fails(name, version, path, **_):
        raise type(error)(str(error).format(path=path))

    monkeypatch.setattr(served, "load", fails)
    with pytest.raises(LoadFailure) as failed:
        load(tmp_path, beside=beside)
    assert (failed.value.reason, failed.value.kind) == (reason, kind)
    assert str(error).format(path=tmp_path) in caplog.text


def test_files_that_were_exchanged_while_they_were_read_are_read_again(tmp_path, monkeypatch):
    path, new = build(tmp_path / "1", seed=1), build(tmp_path / "new", seed=2)
    real, attempts = served.load, []

    def disturbed(*args, **rest):
        attempts.append(args)
        if len(attempts) == 1:
            damage(path)
            try:
                return real(*args, **rest)
            finally:
                exchange(path, new)
        return real(*args, **rest)

    monkeypatch.setattr(served, "load", disturbed)
    assert load(path).model.ensemble.origin.seed == 2
    assert len(attempts) == 2


def test_files_that_are_damaged_are_read_once(tmp_path, monkeypatch):
    path = build(tmp_path / "1", seed=1)
    damage(path)
    real, attempts = served.load, []
    monkeypatch.setattr(served, "load", lambda *args, **rest: attempts.append(args) or real(*args, **rest))
    with pytest.raises(LoadFailure, match=r"weights.safetensors is not what manifest.json says"):
        load(path)
    assert len(attempts) == 1


@pytest.mark.parametrize("beside", [True, False])
def test_it_is_left_at_its_next_step(tmp_path, monkeypatch, beside):
    begun = threading.Event()

    def endless(*_, progress, **__):
        begun.set()
        while True:
            progress("reading", 0.5)
            time.sleep(0.001)

    monkeypatch.setattr(served, "load", endless)

    async def main():
        engine = Engine()
        loader = Loader(engine, Place(torch.device("cpu")))
        work = asyncio.create_task(loader.load("m", "1", tmp_path, beside=beside, tell=lambda text: None))
        await asyncio.to_thread(begun.wait, 30)
        loader.stop()
        with pytest.raises(LoadFailure, match=r"^the service is shutting down$") as failed:
            await asyncio.wait_for(work, 30)
        engine.close()
        return failed.value.kind

    assert asyncio.run(main()) is Unavailable
