"""`ensembled key`: what it prints opens the service, and nothing else does."""

from __future__ import annotations

import hashlib
import io

import pytest

from app.keys import Keys, check_strength
from tests.app.test_cli import run


def test_a_key_and_the_line_of_its_hash(capsys, tmp_path):
    status, out, err = run(capsys, "key", "alice")
    assert (status, err) == (0, "")
    key, line = out.splitlines()
    assert line == f"{hashlib.sha256(key.encode()).hexdigest()} alice"
    (tmp_path / "keys").write_text(line)
    assert Keys(file=tmp_path / "keys").owner(key) == "alice"


def test_each_is_another_and_strong(capsys):
    keys = {run(capsys, "key")[1].splitlines()[0] for _ in range(20)}
    assert len(keys) == 20
    assert all(len(check_strength(key)) >= 43 for key in keys)


def test_a_key_of_ones_own_is_read_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("0123456789abcdef-mine\n"))
    status, out, err = run(capsys, "key", "--stdin", "bob")
    assert (status, err) == (0, "")
    assert out == f"{hashlib.sha256(b'0123456789abcdef-mine').hexdigest()} bob\n"


@pytest.mark.parametrize("key", ["", "password", "a" * 30])
def test_a_weak_one_is_refused_and_not_shown(capsys, monkeypatch, key):
    monkeypatch.setattr("sys.stdin", io.StringIO(key))
    status, out, err = run(capsys, "key", "--stdin")
    assert (status, out) == (2, "")
    assert err.startswith("ensembled key: a key ")
    assert not key or key not in err
