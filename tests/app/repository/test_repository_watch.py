"""Looking at the directory again and again."""

from __future__ import annotations

import asyncio
import logging
import shutil

import pytest

from app.repository import Entry, Table
from app.repository.watch import Watch
from tests.app.repository.lives import build, touch


def table(root, *names: str) -> Table:
    made = Table()
    for name in names:
        made._add(Entry(*name.split("/"), root / name))
    return made


def test_a_model_follows_what_is_there_and_what_is_gone_for_two_looks(tmp_path):
    touch(tmp_path, "a/1", "b/1", "b/2", "new/1")
    served, watch = table(tmp_path, "a/1", "b/1", "b/2"), Watch(tmp_path)

    async def main():
        assert await watch.look(served) == {"a": True, "b": True, "new": True}
        shutil.rmtree(tmp_path / "a")
        shutil.rmtree(tmp_path / "b" / "2")
        assert await watch.look(served) == {"new": True}
        # Back again, so it was exchanged.
        touch(tmp_path, "b/2")
        assert await watch.look(served) == {"b": True, "new": True, "a": False}
        shutil.rmtree(tmp_path / "b" / "2")
        assert "b" not in await watch.look(served)
        assert (await watch.look(served))["b"] is True

    asyncio.run(main())


def test_trouble_is_told_once_and_nothing_follows_it(tmp_path, caplog):
    root = tmp_path / "root"
    touch(root, "a/1")
    served, watch = table(root, "a/1"), Watch(root)

    async def main():
        for _ in range(2):
            root.rename(tmp_path / "away")
            assert [await watch.look(served) for _ in range(3)] == [{}] * 3
            (tmp_path / "away").rename(root)
            # What was out of sight meanwhile was not missed.
            assert await watch.look(served) == {"a": True}

    asyncio.run(main())
    assert caplog.text.count("what is served stays as it is: There is no directory") == 2


def test_a_link_that_leads_out_is_told_at_the_start_and_not_with_every_look(tmp_path, caplog):
    touch(tmp_path / "root", "a/1")
    touch(tmp_path / "outside", "b/1")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "outside" / "b")
    watch = Watch(tmp_path / "root")
    with caplog.at_level(logging.INFO):
        assert asyncio.run(watch.look(Table())) == {"a": True}
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["nobody", "..", "half"])
def test_which_versions_are_whole(tmp_path, name):
    build(tmp_path / "a" / "1", seed=1)
    touch(tmp_path, "a/2", "half/1")
    watch = Watch(tmp_path)
    assert asyncio.run(watch.versions("a")) == ({"1": tmp_path / "a" / "1", "2": tmp_path / "a" / "2"}, {"1"})
    assert asyncio.run(watch.versions(name))[1] == set()
