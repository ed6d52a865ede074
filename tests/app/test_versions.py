"""Which versions are served: what the setting says, and what it says wrongly."""

from __future__ import annotations

import pytest

from app.settings import Settings, SettingsError, load
from app.versions import as_text, parse

THERE = ["10", "9", "2", "1"]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("latest", ["10"]),
        ("latest:1", ["10"]),
        ("latest:2", ["9", "10"]),
        ("latest:7", ["1", "2", "9", "10"]),
        ("all", ["1", "2", "9", "10"]),
        ("2", ["2"]),
        ("9,1", ["1", "9"]),
        (" 9 , 1,9 ", ["1", "9"]),
        ("3,2", ["2"]),
        ("3", []),
        ("*=all", ["1", "2", "9", "10"]),
        ("m=1", ["1"]),
        ("m=latest:2; all", ["9", "10"]),
        ("all;m=1,2", ["1", "2"]),
        ("other=all", ["10"]),
        (" m = latest:2 ;*= 1", ["9", "10"]),
    ],
)
def test_what_is_chosen_of_a_model(text, chosen):
    assert parse(text).choose("m", THERE) == chosen
    assert parse(text).choose("m", []) == []


def test_a_list_is_known_whether_its_versions_are_there_or_not():
    policy = parse("latest:2; m=1,30")
    assert (policy.listed("m"), policy.listed("n")) == (("1", "30"), ())


@pytest.mark.parametrize(
    "text",
    ["", "newest", "latest:", "latest:0", "latest:-1", "latest:x", "all:1", "1,", ",1", "0", "01", "v1", "1.5", "m=",
     "=1", "../m=1", "m=1=2", "a b=1", "all;", "1" * 19, "latest:" + "9" * 10],
)  # fmt: skip
def test_what_is_no_rule_is_told_what_would_be_right(text):
    with pytest.raises(ValueError, match=r"must be latest, latest:N, all, or versions such as 1,3; for one model"):
        parse(text)


@pytest.mark.parametrize("text", ["m=1;m=2", "all;latest", "*=all;1"])
def test_a_second_rule_for_the_same_is_refused(text):
    with pytest.raises(ValueError, match=r"must have one rule for (m|\*)"):
        parse(text)


def test_a_table_of_the_file_says_the_same(tmp_path):
    (tmp_path / "a.toml").write_text('[versions]\n"*" = "latest:2"\ndigits = [1, 3]\nhouse = "all"\nwind = 4\n')
    policy = parse(load({}, tmp_path / "a.toml").versions)
    assert policy == parse("latest:2; digits=1,3; house=all; wind=4")
    (tmp_path / "b.toml").write_text("versions = 3\n")
    assert parse(load({}, tmp_path / "b.toml").versions) == parse("3")
    assert as_text({"m": True}) == "m=True"


@pytest.mark.parametrize("given", [{"m": True}, {"m": [1, "x"]}, {"m": []}, {"a b": 1}, {}, True, 1.5, None, ["1"]])
def test_a_value_of_the_file_that_is_none_is_an_error_of_the_setting(given):
    with pytest.raises(ValueError, match="versions"):
        Settings(versions=given)


def test_a_wrong_setting_is_named(monkeypatch):
    monkeypatch.setenv("ENSEMBLED_VERSIONS", "newest")
    with pytest.raises(SettingsError, match=r"^ENSEMBLED_VERSIONS: must be latest.*, however: 'newest'$"):
        load({})
    with pytest.raises(SettingsError, match=r"^--poll: must be 0, or at least 0.1, however: '0.01'$"):
        load({"versions": "all", "poll": "0.01"})
