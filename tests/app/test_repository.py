"""The directory of models: what counts as one, and what becomes of each."""

from __future__ import annotations

import asyncio
import shutil
import time

import pytest
import torch

from app import served
from app.engine import Engine
from app.errors import NotFound, Unavailable
from app.repository import Repository, RepositoryError, scan
from ensemble import EnsembledError


def touch(root, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_text("{}")


def make(root, **rest) -> Repository:
    return Repository(root, Engine(), device=torch.device("cpu"), **rest)


def test_names_and_versions_are_found_in_order(tmp_path):
    touch(tmp_path, "b/10", "b/9", "a/1", "c.d_e-f/3")
    found = scan(tmp_path)
    assert {name: list(versions) for name, versions in found.items()} == {
        "a": ["1"],
        "b": ["9", "10"],
        "c.d_e-f": ["3"],
    }
    assert found["b"]["10"] == tmp_path / "b" / "10"


@pytest.mark.parametrize(
    "name",
    [
        ".hidden/1",
        "-a/1",
        "_a/1",
        "a b/1",
        "ä/1",
        "a" * 65 + "/1",
        "a/0",
        "a/01",
        "a/v1",
        "a/-1",
        "a/1.0",
        "a/" + "1" * 19,
    ],
)
def test_what_could_be_more_than_a_name_is_none(tmp_path, name):
    touch(tmp_path, "good/1", name)
    assert {n: list(v) for n, v in scan(tmp_path).items()} == {"good": ["1"]}


def test_directories_without_a_manifest_and_files_are_no_models(tmp_path):
    touch(tmp_path, "good/1")
    (tmp_path / "good" / "2").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "good" / "3").write_text("x")
    assert {n: list(v) for n, v in scan(tmp_path).items()} == {"good": ["1"]}


def test_links_that_lead_out_are_not_followed(tmp_path, caplog):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "good/1")
    touch(outside, "bad/1")
    (root / "linked").symlink_to(outside / "bad")
    # Seen twice, since it is below a link that stays inside.
    (root / "good" / "2").symlink_to(outside / "bad" / "1")
    (root / "loop").symlink_to(root / "loop")
    (root / "inside").symlink_to(root / "good")
    assert {n: list(v) for n, v in scan(root).items()} == {"good": ["1"], "inside": ["1"]}
    assert caplog.text.count("left out") == 3


def test_the_root_may_be_a_link(tmp_path):
    touch(tmp_path / "real", "good/1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(scan(tmp_path / "link")) == ["good"]


@pytest.mark.parametrize("make_it", [lambda p: None, lambda p: p.write_text("x")])
def test_no_directory(tmp_path, make_it):
    make_it(tmp_path / "models")
    with pytest.raises(RepositoryError, match=r"There is no directory .*Make a model first"):
        scan(tmp_path / "models")


def test_no_model(tmp_path):
    (tmp_path / "digits").mkdir()
    with pytest.raises(RepositoryError, match=r"holds no model. A model is a directory NAME/VERSION"):
        scan(tmp_path)


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "good/1")

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(RepositoryError, match=r"cannot be read: Permission denied"):
        scan(tmp_path)


def test_the_highest_version_is_served_and_the_default_follows_the_rules(tmp_path):
    touch(tmp_path, "a/1", "a/2")
    repository = make(tmp_path)
    assert repository.entry().version == "2"
    assert repository.entry("a", "2").name == "a"
    assert repository.default == "a"
    touch(tmp_path, "b/1")
    repository = make(tmp_path)
    assert repository.default is None
    with pytest.raises(NotFound, match=r"there is no default model among a, b; ask POST /v1/models/NAME/predict"):
        repository.entry()
    assert make(tmp_path, default="b").entry().name == "b"
    with pytest.raises(RepositoryError, match=r"The default model 'c' is not in .*; there are a, b"):
        make(tmp_path, default="c")


@pytest.mark.parametrize("name", ["c", "", "../a", "A", "a" * 1000, "a\x00", "\ud800", "a/1"])
def test_an_unknown_name_is_told_which_there_are(tmp_path, name):
    touch(tmp_path, "a/1")
    with pytest.raises(NotFound, match=r"unknown model .*; there are a") as refused:
        make(tmp_path).entry(name)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("version", ["1", "3", "", "02", "2 ", "x" * 999])
def test_an_unknown_version_is_told_which_there_is(tmp_path, version):
    touch(tmp_path, "a/1", "a/2")
    with pytest.raises(NotFound, match=r"has no version .*; it has 2"):
        make(tmp_path).entry("a", version)


def test_states_while_loading_and_after(models, tmp_path):
    shutil.copytree(models / "house", tmp_path / "house")
    touch(tmp_path, "broken/1")
    seen: list[tuple[str, str, str]] = []

    async def main():
        repository = make(tmp_path)
        repository.on_change = lambda: seen.extend((e.name, e.state, e.reason) for e in repository.entries.values())
        assert not repository.ready
        with pytest.raises(Unavailable, match=r"model 'house' is not ready: not loaded yet") as early:
            repository.ready_model("house")
        assert early.value.headers["Retry-After"] == "1"
        await repository.load_all()
        return repository

    repository = asyncio.run(main())
    states = {name: [state for n, state, _ in seen if n == name] for name in ("broken", "house")}
    assert list(dict.fromkeys(states["house"])) == ["UNAVAILABLE", "LOADING", "READY"]
    assert list(dict.fromkeys(states["broken"])) == ["LOADING", "UNAVAILABLE"]
    assert repository.ready_model("house").name == "house"
    assert not repository.ready
    with pytest.raises(Unavailable, match=r"model 'broken' is not ready: manifest.json has no format_version"):
        repository.ready_model("broken")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EnsembledError("{path} is damaged"), "a/1 is damaged"),
        (ZeroDivisionError("secret"), "an unexpected error; the log explains it"),
    ],
)
def test_why_a_model_cannot_be_served_is_told_without_where_it_is(tmp_path, monkeypatch, caplog, error, reason):
    touch(tmp_path, "a/1")

    def fails(name, version, path, **_):
        raise type(error)(str(error).format(path=path))

    monkeypatch.setattr(served, "load", fails)
    repository = make(tmp_path)
    asyncio.run(repository.load_all())
    assert repository.entry("a").state == "UNAVAILABLE"
    assert repository.entry("a").reason == reason
    assert str(error).format(path=tmp_path / "a" / "1") in caplog.text


def test_loading_stops_at_its_next_step(tmp_path, monkeypatch):
    touch(tmp_path, "a/1", "b/1")
    begun = []

    def endless(name, *_, progress, **__):
        begun.append(name)
        while True:
            progress("reading", 0.5)
            time.sleep(0.001)

    monkeypatch.setattr(served, "load", endless)

    async def main():
        repository = make(tmp_path)
        loading = asyncio.create_task(repository.load_all())
        while not begun:
            await asyncio.sleep(0.001)
        repository.stop_loading()
        await asyncio.wait_for(loading, 30)
        return repository

    repository = asyncio.run(main())
    assert begun == ["a"]
    assert {entry.reason for entry in repository.entries.values()} == {"the service is shutting down"}
