"""How a model takes the place of another while that one answers, and what becomes of the old one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import threading
import weakref

import pytest

from app import served
from app.errors import BadRequest, NotFound
from ensemble import EnsembledError
from tests.app.repository.lives import damage, exchange, exchange_into, live, seeds, states, touch


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
