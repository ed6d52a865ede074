"""The directory of models: what counts as one, and how a change of it is seen."""

from __future__ import annotations

import os
import shutil

import pytest

from app.repository import RepositoryError, scan
from app.repository.scan import complete, scan_model, stamp_of
from tests.app.repository.lives import touch


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


def test_one_model_is_looked_at_alone(tmp_path):
    touch(tmp_path / "root", "a/1", "a/2", "b/1")
    touch(tmp_path / "outside", "c/1")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "outside" / "c")
    root = tmp_path / "root"
    assert scan_model(root, "a") == scan(root)["a"]
    for name in ("nobody", "linked", "..", "../outside/c", "a/..", "", "a\x00", "x" * 300):
        assert scan_model(root, name) == {}


@pytest.fixture
def saved(models, tmp_path):
    return shutil.copytree(models / "house" / "1", tmp_path / "house" / "1")


def test_a_stamp_changes_with_any_file(saved):
    stamps = [stamp_of(saved)]
    weights = saved / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content + b"x")
    stamps.append(stamp_of(saved))
    os.utime(saved / "graph.json", ns=(1, 1))
    stamps.append(stamp_of(saved))
    # The same bytes, but another file.
    (saved / "new").write_bytes(b"")
    (saved / "new").rename(saved / "example.safetensors")
    stamps.append(stamp_of(saved))
    assert len(set(stamps)) == 4
    assert stamp_of(saved) == stamps[-1]
    shutil.rmtree(saved)
    assert stamp_of(saved) == ()


def test_what_is_half_written_is_not_complete(saved):
    assert complete(saved)
    weights = saved / "weights.safetensors"
    content = weights.read_bytes()
    for end in (0, len(content) - 1):
        weights.write_bytes(content[:end])
        assert not complete(saved)
    weights.unlink()
    assert not complete(saved)
    weights.write_bytes(content)
    assert complete(saved)
    (saved / "manifest.json").write_text("{")
    assert not complete(saved)
    (saved / "manifest.json").unlink()
    assert not complete(saved)
    assert not complete(saved / "nothing")
