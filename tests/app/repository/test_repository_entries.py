"""The table of models: which version answers, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import NotFound, Unavailable
from app.repository import Entry, Table
from app.served import wrap


@pytest.fixture(scope="module")
def model(loaded):
    return lambda name, version: wrap(name, version, loaded["house"], 4)


def table(*entries: Entry, default: str | None = None) -> Table:
    made = Table(default)
    for entry in entries:
        made._add(entry)
    return made


def entry(name: str, version: str, **rest) -> Entry:
    return Entry(name, version, Path("nowhere"), **rest)


def ready(made) -> Entry:
    return entry(made.name, made.version, state="READY", reason="", model=made)


def test_names_and_versions_are_in_order_however_they_came():
    made = table(entry("b", "10"), entry("b", "9"), entry("a", "1"), entry("b", "11"))
    assert list(made.entries) == [("a", "1"), ("b", "9"), ("b", "10"), ("b", "11")]
    assert made.names == ["a", "b"]
    assert [e.version for e in made.versions("b")] == ["9", "10", "11"]
    assert made.versions("c") == []


def test_without_a_version_the_latest_that_is_ready_answers(model):
    first, second = model("m", "2"), model("m", "10")
    made = table(entry("m", "1"), ready(first), ready(second), entry("m", "11", state="LOADING"), entry("m", "12"))
    assert made.ready_model("m") is second
    assert made.ready_model() is second
    assert made.ready_model("m", "2") is first
    assert made.served("m") == ["2", "10"]
    assert made.is_served(second)
    assert not made.is_served(model("m", "10"))
    with pytest.raises(Unavailable, match=r"^model 'm' version 11 is not ready: not loaded yet$"):
        made.ready_model("m", "11")
    with pytest.raises(NotFound, match=r"^model 'm' has no version '3'; it has 1, 2, 10, 11, 12$"):
        made.ready_model("m", "3")


def test_if_none_is_ready_the_one_that_is_coming_says_so():
    made = table(entry("m", "1", state="LOADING", reason="drawing members (50%)"), entry("m", "2"))
    assert made.entry("m").version == "1"
    with pytest.raises(Unavailable, match=r"^model 'm' is not ready: drawing members \(50%\)$"):
        made.ready_model("m")
    assert table(entry("m", "1"), entry("m", "2")).entry("m").version == "2"


@pytest.mark.parametrize(
    ("about", "again"),
    [
        ({}, True),
        ({"state": "LOADING", "required": False}, True),
        ({"tried": ()}, False),
        ({"required": False, "reason": "unloaded"}, False),
    ],
)
def test_only_what_is_coming_is_worth_asking_again(about, again):
    with pytest.raises(Unavailable) as refused:
        table(entry("m", "1", **about)).ready_model("m")
    assert refused.value.headers == ({"Retry-After": "1"} if again else {})


def test_the_default_follows_the_rules(model):
    a, b = model("a", "1"), model("b", "1")
    assert table(entry("a", "1"), entry("a", "2")).default == "a"
    assert table(entry("a", "1"), entry("b", "1")).default is None
    assert table(ready(a), entry("b", "1")).default == "a"
    assert table(ready(a), entry("b", "1", state="LOADING")).default is None
    assert table(ready(a), ready(b), default="b").ready_model() is b
    with pytest.raises(NotFound, match=r"there is no default model among a, b; ask POST /v1/models/NAME/predict"):
        table(ready(a), ready(b)).entry()
    with pytest.raises(NotFound, match=r"there is no default model among none;"):
        table().entry()


def test_a_default_that_was_unloaded_says_so(model):
    made = table(ready(model("a", "1")), entry("b", "1", reason="unloaded", required=False), default="b")
    with pytest.raises(Unavailable, match=r"^model 'b' is not ready: unloaded$"):
        made.ready_model()
    with pytest.raises(NotFound, match=r"unknown model 'c'; there are a"):
        table(ready(model("a", "1")), default="c").ready_model()


@pytest.mark.parametrize("name", ["c", "", "../a", "A", "a" * 1000, "a\x00", "\ud800", "a/1"])
def test_an_unknown_name_is_told_which_there_are(name):
    with pytest.raises(NotFound, match=r"unknown model .*; there are a") as refused:
        table(entry("a", "1")).entry(name)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("version", ["1", "3", "", "02", "2 ", "x" * 999])
def test_an_unknown_version_is_told_which_there_is(version):
    with pytest.raises(NotFound, match=r"has no version .*; it has 2"):
        table(entry("a", "2")).entry("a", version)


def test_it_is_ready_with_all_that_should_be(model):
    assert table(ready(model("a", "1")), entry("b", "1", required=False)).ready
    made = table(ready(model("a", "1")), entry("b", "1"), entry("c", "1", reason="x"), entry("c", "2", reason="y"))
    assert not made.ready
    assert made.waiting == {"b": "not loaded yet", "c/1": "x", "c/2": "y"}


def test_a_service_that_is_shutting_down_has_nothing_to_offer(model):
    made = table(ready(model("a", "1")))
    made.draining = True
    assert not made.ready
    with pytest.raises(Unavailable, match=r"the service is shutting down; ask another instance"):
        made.ready_model("a")
