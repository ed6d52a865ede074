"""What is loaded at the start, in which state it is, and how the service stops loading."""

from __future__ import annotations

import asyncio
import threading

import pytest

from app import served
from app.errors import NotFound, Unavailable
from app.repository import RepositoryError
from tests.app.repository.lives import damage, exchange, exchange_into, live, make, seeds, states, touch


def test_what_is_served_at_the_start_follows_the_setting(tmp_path):
    touch(tmp_path, "a/1", "a/2", "a/10", "b/3")

    def chosen(versions: str) -> list[str]:
        return ["/".join(key) for key in make(tmp_path, versions=versions).entries]

    assert chosen("latest") == ["a/10", "b/3"]
    assert chosen("all") == ["a/1", "a/2", "a/10", "b/3"]
    assert chosen("a=latest:2") == ["a/2", "a/10", "b/3"]
    assert chosen("a=1,2;b=all") == ["a/1", "a/2", "b/3"]
    # What is asked for by its number and is not there is missed, not left out.
    assert chosen("b=3,4") == ["a/10", "b/3", "b/4"]
    with pytest.raises(RepositoryError, match=r"The default model 'c' is not in .*; there are a, b"):
        make(tmp_path, default="c")


def test_a_setting_for_a_model_that_is_not_there_is_told(tmp_path, caplog):
    touch(tmp_path, "a/1")
    make(tmp_path, versions="latest; b=1")
    assert "the setting versions names a model that is not there" in caplog.text
    assert caplog.records[-1].model == "b"


def test_states_while_loading_and_after(root, monkeypatch):
    touch(root, "broken/1")
    seen = []

    async def main():
        repository = make(root, versions="latest; m=1,2")
        real = served.load

        def watched(*args, progress, **rest):
            def told(*about):
                progress(*about)
                seen.append(repository.entries["m", "1"].state)

            return real(*args, progress=told, **rest)

        monkeypatch.setattr(served, "load", watched)
        assert not repository.ready
        with pytest.raises(Unavailable, match=r"model 'm' is not ready: not loaded yet") as early:
            repository.ready_model("m")
        assert early.value.headers["Retry-After"] == "1"
        await repository.load_all()
        return repository

    repository = asyncio.run(main())
    assert set(seen) == {"LOADING"}
    assert repository.ready_model("m").name == "m"
    assert not repository.ready
    assert repository.waiting == {
        "broken": "manifest.json has no format_version, so it is not that of a saved ensemble.",
        "m": "There is no directory m/2; an ensemble is a directory with a manifest.json.",
    }
    with pytest.raises(Unavailable, match=r"model 'broken' is not ready: manifest.json has no format_version") as late:
        repository.ready_model("broken")
    assert late.value.headers == {}


def test_loading_stops_at_its_next_step(tmp_path, monkeypatch):
    touch(tmp_path, "a/1", "b/1")
    begun = threading.Event()

    def endless(*_, progress, **__):
        begun.set()
        while True:
            progress("reading", 0.5)

    monkeypatch.setattr(served, "load", endless)

    async def main():
        repository = make(tmp_path)
        loading = asyncio.create_task(repository.load_all())
        await asyncio.to_thread(begun.wait, 30)
        repository.stop()
        await asyncio.wait_for(loading, 30)
        return repository

    repository = asyncio.run(main())
    assert {entry.reason for entry in repository.entries.values()} == {"the service is shutting down"}


def test_what_failed_at_the_start_can_be_loaded_once_it_is_mended(root, saved):
    exchange(root / "m" / "1", saved[1])
    damage(root / "m" / "1")

    async def life(repository):
        assert not repository.ready
        exchange(root / "m" / "1", saved[3])
        await repository.load("m")
        return repository.ready, seeds(repository)

    assert live(root, life) == (True, {"m/1": 3})


def test_unloading_and_loading_again(root, saved):
    async def life(repository):
        await repository.unload("m")
        await repository.unload("m")
        assert states(repository) == {"m/1": ("UNAVAILABLE", "unloaded")}
        assert repository.ready
        with pytest.raises(Unavailable, match=r"^model 'm' is not ready: unloaded$"):
            repository.ready_model()
        # Nothing but a request brings it back.
        exchange(root / "m" / "1", saved[2])
        await repository.poll()
        assert seeds(repository) == {}
        await repository.load("m")
        with pytest.raises(NotFound, match=r"unknown model 'nobody'; there are m"):
            await repository.unload("nobody")
        return seeds(repository)

    assert live(root, life) == {"m/1": 2}


def test_a_model_that_is_unloaded_at_the_start_does_not_hold_readiness(root):
    touch(root, "broken/1")

    async def life(repository):
        assert not repository.ready
        await repository.unload("broken")
        return repository.ready

    assert live(root, life)


def test_who_asks_for_a_load_and_goes_away_does_not_end_it(root, saved):
    async def life(repository):
        exchange(root / "m" / "1", saved[2])
        asked = asyncio.create_task(repository.load("m"))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        # It waits for the turn of the one before.
        await repository.load("m")
        return seeds(repository)

    assert live(root, life) == {"m/1": 2}


def test_loads_of_the_same_model_come_one_after_the_other(root, saved, monkeypatch):
    running, most = 0, 0
    real = served.load

    def counted(*args, **rest):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return real(*args, **rest)
        finally:
            running -= 1

    async def life(repository):
        monkeypatch.setattr(served, "load", counted)
        exchange(root / "m" / "2", saved[2])
        exchange_into(root, "n/1", saved[3])
        every = [repository.load("m"), repository.load("n"), repository.unload("m"), repository.load("m")]
        await asyncio.gather(*every, repository.poll())
        return seeds(repository)

    assert live(root, life) == {"m/2": 2, "n/1": 3}
    assert most == 1


def test_a_stop_ends_a_load_at_once_and_keeps_what_answers(root, saved, monkeypatch):
    held, go = threading.Event(), threading.Event()

    def stuck(*args, **rest):
        held.set()
        go.wait(60)

    async def life(repository):
        monkeypatch.setattr(served, "load", stuck)
        model = repository.ready_model("m")
        exchange(root / "m" / "1", saved[2])
        loading = asyncio.create_task(repository.load("m"))
        await asyncio.to_thread(held.wait, 30)
        repository.stop()
        with pytest.raises(Unavailable, match=r"the service is shutting down"):
            await asyncio.wait_for(loading, 30)
        # The thread cannot be stopped, so it is left behind.
        assert repository.loading_beside
        assert repository.entry("m").model is model
        with pytest.raises(Unavailable, match=r"the service is shutting down"):
            await repository.load("m")
        with pytest.raises(Unavailable, match=r"the service is shutting down"):
            await repository.unload("m")
        await repository.poll()
        go.set()

    live(root, life)


def test_whoever_makes_models_faster_is_told_which_are_still_served(root, saved):
    class Accelerator:
        async def accelerate(self, model, wanted):
            self.seen = wanted(), repository_compiling()
            exchange(root / "m" / "1", saved[2])
            await repository.load("m")
            self.after = wanted(), repository_compiling()

    def repository_compiling() -> bool:
        return repository.entry("m").compiling

    async def life(made):
        nonlocal repository
        repository = made
        accelerator = Accelerator()
        await repository.accelerate("m", "1", accelerator)
        await repository.accelerate("m", "7", accelerator)
        return accelerator.seen, accelerator.after, repository_compiling()

    repository = None
    assert live(root, life) == ((True, True), (False, False), False)


def test_what_has_become_ready_is_told(root, saved):
    told = []

    async def life(repository):
        repository.on_ready = lambda *which: told.append(which)
        repository.on_retired = lambda model: told.append(("retired", model.version))
        exchange(root / "m" / "2", saved[2])
        await repository.load("m")
        await repository.unload("m")

    live(root, life)
    assert told == [("m", "2"), ("retired", "1"), ("retired", "2")]
