"""What looking at the directory finds, and what it leaves alone."""

from __future__ import annotations

import shutil

import pytest

from app import served
from app.errors import Unavailable
from tests.app.repository.lives import damage, exchange, exchange_into, live, seeds, states


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


def test_what_is_rewritten_where_it_stands_takes_nobody_back_to_an_older_version(root, saved):
    async def life(repository):
        exchange(root / "m" / "2", saved[2])
        await repository.poll()
        assert seeds(repository) == {"m/2": 2}
        for name in ("manifest.json", "weights.safetensors"):
            content = (saved[3] / name).read_bytes()
            (root / "m" / "2" / name).write_bytes(content[: len(content) // 2])
            await repository.poll()
            assert seeds(repository) == {"m/2": 2}
            (root / "m" / "2" / name).write_bytes(content)
        # What is served follows the directory while what shall take its place is being written.
        (root / "m" / "3").mkdir()
        (root / "m" / "3" / "manifest.json").write_text("{}")
        await repository.poll()
        assert seeds(repository) == {"m/2": 3}
        exchange(root / "m" / "3", saved[1])
        await repository.poll()
        return seeds(repository)

    assert live(root, life) == {"m/3": 1}


def test_of_a_new_model_what_is_whole_is_served_until_the_rest_is(root, saved):
    async def life(repository):
        exchange_into(root, "n/1", saved[2])
        exchange(root / "n" / "2", saved[3])
        weights = root / "n" / "2" / "weights.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1])
        await repository.poll()
        assert seeds(repository) == {"m/1": 1, "n/1": 2}
        weights.write_bytes(content)
        await repository.poll()
        return seeds(repository)

    assert live(root, life) == {"m/1": 1, "n/2": 3}


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
