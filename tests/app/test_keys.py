"""Keys: which are strong, which are accepted, and a file of them that changes."""

from __future__ import annotations

import hashlib
import os
import re

import pytest

from app import keys
from app.keys import KeyFileError, Keys, WeakKey, check_strength, hash_line, make_key


@pytest.fixture
def impatient(monkeypatch):
    """The file is looked at on every request."""
    monkeypatch.setattr(keys, "_LOOK_EVERY", 0.0)


def test_a_new_key_is_long_random_and_strong():
    made = {make_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", check_strength(key)) for key in made)


@pytest.mark.parametrize("key", ["", "short", "0123456789abcde", "a" * 50, "ababababababababab", "x" * 300, "a b" * 9,
                                 "schlüssel-mit-umlaut", "0123456789abcdef\n", "0123456789abcdef\x00"])  # fmt: skip
def test_a_weak_key_is_refused_and_not_shown(key):
    for use in (check_strength, hash_line, Keys):
        with pytest.raises(WeakKey) as refused:
            use(key)
        assert not key.strip() or key.strip() not in str(refused.value)


def test_no_keys_ask_for_none_and_open_nothing():
    assert not Keys()
    assert Keys().owner("anything") is None


def test_the_one_key_opens_and_others_do_not():
    key = make_key()
    made = Keys(key)
    assert made
    assert made.owner(key) == "key"
    for other in ("", key[:-1], key + "x", key.upper(), make_key(), hashlib.sha256(key.encode()).hexdigest(), "\udc80"):
        assert made.owner(other) is None


def test_neither_key_nor_hash_is_shown():
    key = make_key()
    assert key not in repr(Keys(key))
    assert repr(Keys(key)) == "Keys(1 hashes)"
    assert not any(key in str(value) for value in vars(Keys(key)).values())


def test_every_hash_is_compared_in_constant_time_wherever_the_right_one_stands(tmp_path, monkeypatch):
    several = [make_key() for _ in range(5)]
    (tmp_path / "keys").write_text("\n".join(map(hash_line, several)))
    made = Keys(make_key(), tmp_path / "keys")
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for key in [*several, "wrong"]:
        compared.clear()
        made.owner(key)
        assert len(compared) == 6
        assert {len(side) for pair in compared for side in pair} == {32}


def test_a_file_has_names_comments_and_capital_digits(tmp_path):
    first, second, third = make_key(), make_key(), make_key()
    unnamed = hash_line(second)
    (tmp_path / "keys").write_text(f"# ours\n\n{hash_line(first, 'a@b.c')} # since May\n  {unnamed.upper()}\n")
    made = Keys(file=tmp_path / "keys")
    assert made
    assert made.owner(first) == "a@b.c"
    assert made.owner(second) == unnamed[:8]
    assert made.owner(third) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no key"),
        ("# nothing", "holds no key"),
        ("my-secret-key-in-clear", "line 1: a line is the SHA-256 of a key in 64 hex digits"),
        ("\n" + "0" * 63, "line 2: "),
        ("0" * 64 + " two names", "line 1: "),
        ("0" * 64 + " ../x", "line 1: "),
        ("\x00\xff", "line 1: "),
        ("0" * 64 + "\n" + "#" * 2**20, "is larger than"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_shows_nothing(tmp_path, content, says):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(KeyFileError, match=r"the file of keys ") as refused:
        Keys(file=tmp_path / "keys")
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        Keys(file=tmp_path / "keys")


def test_a_key_is_added_and_taken_away_while_the_service_runs(tmp_path, impatient):
    first, second = make_key(), make_key()
    file = tmp_path / "keys"
    file.write_text(hash_line(first))
    made = Keys(file=file)
    file.write_text(f"{hash_line(first)}\n{hash_line(second, 'new')}\n")
    assert made.owner(second) == "new"
    # As secrets are mounted: another file takes the place of the old one.
    (tmp_path / "other").write_text(hash_line(second, "new"))
    os.replace(tmp_path / "other", file)
    assert made.owner(first) is None
    assert made.owner(second) == "new"
    # All are taken away: then nobody may ask, and not everybody.
    file.write_text("# none\n")
    assert made
    assert made.owner(second) is None


@pytest.mark.parametrize("change", ["broken", "gone"])
def test_a_change_that_cannot_be_read_leaves_the_keys_of_before_and_is_logged(tmp_path, impatient, caplog, change):
    key, file = make_key(), tmp_path / "keys"
    file.write_text(hash_line(key, "a"))
    made = Keys(file=file)
    if change == "broken":
        file.write_text("half a li")
    else:
        file.unlink()
    assert made.owner(key) == "a"
    assert made.owner(make_key()) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the keys of before stay valid" in caplog.text
    file.write_text(hash_line(key, "again"))
    assert made.owner(key) == "again"


def test_the_file_is_looked_at_now_and_then_only(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(hash_line(make_key()))
    made, looks = Keys(file=file), []
    monkeypatch.setattr(keys, "_stamp", lambda f: looks.append(f))
    for _ in range(50):
        made.owner("x")
    assert looks == []


@pytest.mark.parametrize(("value", "sent"), [(None, {}), ("", {}), ("a\nb", {}), ("abc", {"X-API-Key": "abc"})])
def test_commands_send_the_key_of_the_environment(monkeypatch, value, sent):
    monkeypatch.delenv("ENSEMBLED_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("ENSEMBLED_API_KEY", value)
    assert keys.key_header() == sent
