"""How models are loaded, replaced and unloaded while others answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import threading
import weakref

import pytest
import torch

from app import served
from app.engine import Engine
from app.errors import BadRequest, NotFound, Unavailable
from app.repository import Repository, RepositoryError
from ensemble import EnsembledError
from tests.app.repository.lives import build, damage, exchange, touch


def make(root, **rest) -> Repository:
    return Repository(root, Engine(1), device=torch.device("cpu"), max_batch=1, **rest)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved ensembles by their seeds, to be copied."""
    root = tmp_path_factory.mktemp("saved")
    return {seed: build(root / str(seed), seed) for seed in (1, 2, 3)}


@pytest.fixture
def root(tmp_path, saved):
    """A directory with m/1, of seed 1."""
    exchange_into(tmp_path, "m/1", saved[1])
    return tmp_path


def exchange_into(root, name, new):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    exchange(root / name, new)


def live(root, life, **settings):
    """Run the life of a repository, whose first models are loaded."""

    async def main():
        repository = make(root, **settings)
        await repository.load_all()
        # The thread lets go of one call before the next.
        await repository._loader._engine.run(lambda: None)
        try:
            return await life(repository)
        finally:
            repository.stop()
            repository._loader._engine.close()

    return asyncio.run(main())


def seeds(repository) -> dict[str, int]:
    """What is served: {name/version: seed}."""
    return {
        f"{e.name}/{e.version}": e.model.ensemble.origin.seed
        for e in repository.entries.values()
        if e.model is not None
    }


def states(repository) -> dict[str, tuple[str, str]]:
    return {f"{e.name}/{e.version}": (e.state, e.reason) for e in repository.entries.values()}


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


def test_a_replacement_takes_over_and_what_has_not_changed_stays(root, saved):
    async def life(repository):
        first = repository.ready_model("m")
        await repository.load("m")
        assert repository.ready_model("m") is first
        exchange(root / "m" / "1", saved[2])
        await repository.load("m")
        assert repository.ready_model("m") is not first
        return seeds(repository)

    assert live(root, life) == {"m/1": 2}


def test_the_old_one_answers_until_the_new_one_is_ready(root, saved, monkeypatch):
    held, go = threading.Event(), threading.Event()
    real = served.load

    def slow(*args, progress, **rest):
        made = real(*args, progress=progress, **rest)
        progress("waiting", 0.5)
        held.set()
        assert go.wait(30)
        return made

    async def life(repository):
        monkeypatch.setattr(served, "load", slow)
        exchange(root / "m" / "1", saved[2])
        loading = asyncio.create_task(repository.load("m"))
        await asyncio.to_thread(held.wait, 30)
        await asyncio.sleep(0)
        during = seeds(repository), states(repository), repository.ready
        # The engine is free meanwhile.
        assert await asyncio.wait_for(repository._loader._engine.run(lambda: 7), 30) == 7
        go.set()
        await loading
        return during, (seeds(repository), states(repository), repository.ready)

    during, after = live(root, life)
    assert during == ({"m/1": 1}, {"m/1": ("READY", "being replaced: waiting (50%)")}, True)
    assert after == ({"m/1": 2}, {"m/1": ("READY", "")}, True)


def test_a_replacement_that_fails_keeps_the_old_one_and_says_why(root, saved):
    async def life(repository):
        first = repository.ready_model("m")
        exchange(root / "m" / "1", saved[2])
        damage(root / "m" / "1")
        with pytest.raises(BadRequest) as refused:
            await repository.load("m")
        kept = repository.ready_model("m") is first, repository.ready, states(repository)
        exchange(root / "m" / "1", saved[3])
        await repository.load("m")
        return refused.value.message, kept, states(repository), seeds(repository)

    message, (same, ready, told), after, served_now = live(root, life)
    why = "weights.safetensors is not what manifest.json says"
    assert message.startswith(f"model 'm' version 1 cannot be served: {why}")
    assert message.endswith("; version 1 goes on answering")
    assert str(root) not in message
    assert same
    assert ready
    assert told["m/1"][0] == "READY"
    assert told["m/1"][1].startswith(f"its replacement cannot be served: {why}")
    assert (after, served_now) == ({"m/1": ("READY", "")}, {"m/1": 3})


def test_a_replacement_that_is_taken_back_is_forgotten(root, saved):
    async def life(repository):
        (root / "m" / "1").rename(root / "kept")
        exchange(root / "m" / "1", saved[2])
        damage(root / "m" / "1")
        with pytest.raises(BadRequest):
            await repository.load("m")
        shutil.rmtree(root / "m" / "1")
        (root / "kept").rename(root / "m" / "1")
        await repository.load("m")
        return states(repository), seeds(repository)

    assert live(root, life) == ({"m/1": ("READY", "")}, {"m/1": 1})


def test_a_new_version_takes_the_place_of_the_old_one(root, saved):
    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        assert seeds(repository) == {"m/1": 1}
        await repository.load("m")
        with pytest.raises(NotFound, match=r"model 'm' has no version '1'; it has 2"):
            repository.entry("m", "1")
        return seeds(repository)

    assert live(root, life) == {"m/2": 2}


def test_a_new_version_that_fails_leaves_the_old_one_and_the_service_ready(root, saved):
    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        damage(root / "m" / "2")
        with pytest.raises(BadRequest, match=r"model 'm' version 2 cannot be served: .*; version 1 goes on answering"):
            await repository.load("m")
        assert repository.ready
        assert repository.ready_model("m").version == "1"
        assert states(repository)["m/2"][0] == "UNAVAILABLE"
        exchange(root / "m" / "2", saved[2])
        await repository.load("m")
        return seeds(repository)

    assert live(root, life) == {"m/2": 2}


def test_several_versions_answer_beside_each_other(root, saved):
    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        await repository.load("m")
        both = seeds(repository), repository.served("m"), repository.ready_model("m").version
        assert repository.ready_model("m", "1").ensemble.origin.seed == 1
        exchange(root / "m" / "3", saved[3])
        await repository.load("m")
        return both, seeds(repository)

    both, after = live(root, life, versions="latest:2")
    assert both == ({"m/1": 1, "m/2": 2}, ["1", "2"], "2")
    assert after == {"m/2": 2, "m/3": 3}


def test_a_new_model_and_one_that_is_not_there(root, saved):
    async def life(repository):
        exchange_into(root, "n/1", saved[2])
        await repository.load("n")
        for name in ("nobody", "..", "../m", "", "m/1", "M" * 999):
            with pytest.raises(NotFound, match=r"there is no model .* in the directory of models"):
                await repository.load(name)
        return seeds(repository)

    assert live(root, life) == {"m/1": 1, "n/1": 2}


def test_versions_that_are_not_to_be_served_are_not_loaded(root, saved):
    async def life(repository):
        exchange_into(root, "n/2", saved[2])
        with pytest.raises(NotFound, match=r"no model 'n' .*; of it there are versions 2, which are not to be served"):
            await repository.load("n")
        return seeds(repository)

    assert live(root, life, versions="latest; n=1") == {"m/1": 1}


def test_a_new_model_that_fails_does_not_make_the_service_unready(root):
    async def life(repository):
        touch(root, "n/1")
        with pytest.raises(BadRequest, match=r"^model 'n' version 1 cannot be served: manifest.json has no"):
            await repository.load("n")
        return repository.ready, states(repository)["n/1"][0]

    assert live(root, life) == (True, "UNAVAILABLE")


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


@contextlib.contextmanager
def no_collector():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def remains(model) -> list[weakref.ref]:
    """What is to go with a model: itself, and the tensors of its members."""
    made = model.ensemble
    every = [*made.members.stacked.values(), *made.members.shared.values(), *made.origin.reference.values()]
    return [weakref.ref(thing) for thing in (model, made, made.program, *every)]


@pytest.mark.parametrize("way", ["replaced", "unloaded", "superseded", "removed"])
def test_what_is_not_served_any_more_is_freed_at_once(root, saved, way):
    async def life(repository):
        watched = remains(repository.ready_model("m"))
        assert all(reference() is not None for reference in watched)
        if way == "replaced":
            exchange(root / "m" / "1", saved[2])
            await repository.load("m")
        elif way == "superseded":
            exchange(root / "m" / "2", saved[2])
            await repository.load("m")
        elif way == "unloaded":
            await repository.unload("m")
        else:
            exchange_into(root, "n/1", saved[2])
            shutil.rmtree(root / "m")
            await repository.poll()
            await repository.poll()
        # What the loop had planned for this step.
        await asyncio.sleep(0)
        return [reference() for reference in watched if reference() is not None]

    gc.collect()
    # Not found by the collector, but given back with the last reference.
    with no_collector():
        assert live(root, life) == []


def test_a_load_that_fails_leaves_nothing_behind(root, saved, monkeypatch):
    made = []
    real = served.load

    def fails(*args, **rest):
        model = real(*args, **rest)
        made.extend(remains(model))
        raise EnsembledError("no")

    async def life(repository):
        monkeypatch.setattr(served, "load", fails)
        exchange(root / "m" / "1", saved[2])
        with pytest.raises(BadRequest, match=r"version 1 cannot be served: no; version 1 goes on answering"):
            await repository.load("m")
        while repository.loading_beside:
            # The thread has told, but may not have ended.
            await asyncio.sleep(0.001)
        return seeds(repository)

    assert live(root, life) == {"m/1": 1}
    assert made
    # The traceback, which knows them, is garbage of the kind that only the collector finds.
    gc.collect()
    assert [reference() for reference in made if reference() is not None] == []


def test_polling_takes_up_what_is_new_changed_and_gone(root, saved):
    async def life(repository):
        await repository.poll()
        first = repository.ready_model("m")
        exchange(root / "m" / "1", saved[2])
        exchange_into(root, "n/1", saved[3])
        await repository.poll()
        assert seeds(repository) == {"m/1": 2, "n/1": 3}
        assert repository.ready_model("m") is not first
        exchange(root / "m" / "2", saved[3])
        await repository.poll()
        assert seeds(repository) == {"m/2": 3, "n/1": 3}
        shutil.rmtree(root / "m" / "2")
        await repository.poll()
        # It may be about to be exchanged.
        assert seeds(repository) == {"m/2": 3, "n/1": 3}
        await repository.poll()
        assert seeds(repository) == {"m/1": 2, "n/1": 3}
        shutil.rmtree(root / "n")
        await repository.poll()
        await repository.poll()
        assert repository.names == ["m"]
        return repository.ready

    assert live(root, life)


def test_polling_waits_for_what_is_half_written(root, saved):
    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        weights = root / "m" / "2" / "weights.safetensors"
        content = weights.read_bytes()
        for end in (0, len(content) // 2):
            weights.write_bytes(content[:end])
            await repository.poll()
            assert states(repository) == {"m/1": ("READY", "")}
        weights.unlink()
        await repository.poll()
        assert states(repository) == {"m/1": ("READY", "")}
        weights.write_bytes(content)
        await repository.poll()
        return states(repository)

    assert live(root, life) == {"m/2": ("READY", "")}


def test_polling_tries_what_failed_only_once_it_changes(root, saved, monkeypatch):
    attempts = []
    real = served.load

    def watched(name, version, *args, **rest):
        attempts.append(version)
        return real(name, version, *args, **rest)

    async def life(repository):
        monkeypatch.setattr(served, "load", watched)
        for version in ("1", "2"):
            exchange(root / "m" / version, saved[2])
            damage(root / "m" / version)
        for _ in range(3):
            await repository.poll()
        assert attempts == ["1", "2"]
        exchange(root / "m" / "2", saved[3])
        for _ in range(3):
            await repository.poll()
        return seeds(repository)

    assert live(root, life, versions="all") == {"m/1": 1, "m/2": 3}
    assert attempts == ["1", "2", "2"]


def test_a_directory_that_is_gone_or_empty_changes_nothing(root, caplog):
    async def life(repository):
        root.rename(root.with_name("away"))
        for _ in range(3):
            await repository.poll()
        root.mkdir()
        for _ in range(3):
            await repository.poll()
        kept = seeds(repository)
        root.rmdir()
        root.with_name("away").rename(root)
        await repository.poll()
        return kept, seeds(repository)

    assert live(root, life) == ({"m/1": 1}, {"m/1": 1})
    # Each of the two once.
    assert caplog.text.count("what is served stays as it is") == 2


def test_a_directory_that_cannot_be_read_is_told_without_where_it_is(root, monkeypatch, caplog):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    async def life(repository):
        monkeypatch.setattr(type(root), "iterdir", refused)
        with pytest.raises(Unavailable, match=r"^the directory of models cannot be read; the log explains it$"):
            await repository.load("m")
        return seeds(repository)

    assert live(root, life) == {"m/1": 1}
    assert "Permission denied" in caplog.text


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
