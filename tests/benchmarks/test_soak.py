"""The fault run finds nothing in the service in a few seconds of it, and would find what it is made to find."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.soak.asking import FORMS, Question, question
from benchmarks.soak.clients import ANSWERED, GONE, GOOD, MALFORMED, RAISES, Soak
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.malformed import KINDS
from benchmarks.soak.running import soak
from benchmarks.soak.truth import build
from benchmarks.soak.watch import Watch
from benchmarks.soak.wire import Reply


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return build(tmp_path_factory.mktemp("soak"), members=8, width=16)


def test_a_few_seconds_of_it(truth, tmp_path):
    ledger = soak(truth, tmp_path, 1.5)
    assert ledger.clean, ledger.table()
    assert all(ledger.sent[kind] > 0 for kind in (GOOD, RAISES, MALFORMED, GONE, "SIGTERM"))
    assert sum(ledger.ended[kind]["200"] for kind in ANSWERED) > 20
    assert "200 after 429" in str(ledger.ended)
    assert "Nothing" not in ledger.table()
    assert ledger.table().count("\n| ") > 12


def answer(truth, asked, *, seed=1, version="1", members=None, off=0.0, name=None):
    """A plain answer, right but for what is said."""
    members = truth.count if members is None else members
    mean = truth.members[seed][:members, asked.rows].mean(0) + off
    document = {"version": version, "seed": seed, "members": members, "outputs": {"mean": mean.tolist()}}
    return {"x-request-id": name or asked.id}, json.dumps(document | {"id": name or asked.id}).encode()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, ""),
        ({"members": 3}, ""),
        ({"seed": 3}, ""),
        ({"seed": 2, "version": "2"}, ""),
        ({"seed": 2}, "version 1 answers with seed 2"),
        ({"off": 2e-4}, "off by 2.0e-04"),
        ({"off": float("nan")}, "off by nan"),
        ({"name": "another"}, "got the answer of another"),
    ],
)
def test_a_wrong_answer_is_seen(truth, wrong, said):
    asked = Question("plain", np.array([5, 9]))
    fault = asked.fault(truth, *answer(truth, asked, **wrong))
    assert (said in fault) if said else not fault


def test_other_members_than_were_asked_for_are_seen(truth):
    asked = Question("plain", np.array([1]), {"members": 4})
    assert "4 members were asked for" in asked.fault(truth, *answer(truth, asked))
    # The right number in words, the mean of all.
    headers, body = answer(truth, asked)
    body = body.replace(f'"members": {truth.count}'.encode(), b'"members": 4')
    assert "off by" in asked.fault(truth, headers, body)


def test_members_of_both_versions_differ(truth):
    first, second, third = (truth.members[seed].mean(0) for seed in (1, 2, 3))
    assert min(np.abs(a - b).max(-1).min() for a, b in ((first, second), (first, third), (second, third))) > 1e-3


def test_requests_are_all_different_and_well_formed(truth):
    r = random.Random(0)
    asked = [question(r, truth) for _ in range(300)]
    assert len({each.id for each in asked}) == 300
    assert {each.form for each in asked} == set(FORMS)
    for each in asked:
        head, _, body = each.encoded(truth).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        assert each.id.encode() in body


def test_malformed_requests_are_of_many_kinds():
    r = random.Random(0)
    assert len(KINDS) > 30
    assert all(
        statuses and all(400 <= status < 500 for status in statuses) for _, statuses in (k(r) for k in KINDS.values())
    )


def test_a_request_without_an_answer_is_a_violation():
    ledger = Ledger()
    ledger.sent["a"] = 2
    ledger.end("a", "200")
    ledger.close(["a", "b"])
    assert ledger.violations == {"a": 1, "b": 1}
    assert "a: 2 were sent and 1 ended" in ledger.table()
    assert "b: none was sent" in ledger.table()


@pytest.mark.parametrize(("late", "clean"), [(310, True), (600, False)])
def test_memory_that_grows_is_a_violation(late, clean):
    watch, shared = Watch(), SimpleNamespace(ledger=Ledger())
    watch.memory = [(at, (300 if at < 200 else late) * 2**20) for at in range(300)]
    watch.judge(shared, 300)
    assert shared.ledger.clean is clean
    assert f"{late} MiB at its end" in shared.ledger.notes["memory"]


@pytest.mark.parametrize(
    ("reply", "how", "said"),
    [
        (Reply(200, {}, b"{}"), "200", "got the answer of None"),
        (Reply(200, {"x-request-id": "mine"}, b"no JSON"), "200", "an answer that is none"),
        (Reply(200, {"x-request-id": "mine"}, b"", b"HTTP/1.1 200"), "200", "something after its answer"),
        (Reply(500, {"x-request-id": "mine"}, b"oh"), "500", "was answered 500"),
        (Reply(504, {"x-request-id": "another"}, b"{}"), "504", "another's error"),
        (Reply(504, {"x-request-id": "mine"}, b"{}"), "504", ""),
        (Reply(429, {}, b"{}"), "429", "Retry-After ''"),
        (EOFError("closed"), "lost", "got no answer"),
        (ConnectionResetError(), "lost", "got no answer"),
    ],
)
def test_what_a_request_must_not_meet_is_a_violation(truth, reply, how, said):
    async def send(_):
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def settle():
        shared = Soak(0, truth, Ledger(), asyncio.Event())
        await shared.settle("a", Question("plain", np.array([0]), id="mine"), send, 504)
        return shared.ledger

    ledger = asyncio.run(settle())
    assert ledger.ended["a"] == {how: 1}
    assert ledger.clean is not bool(said)
    assert said in "".join(ledger.texts)


def test_inputs_on_which_the_model_raises_must_not_be_answered(truth):
    asked = Question("plain", np.array([0]), spoiled=True)
    assert b"[50," in asked.encoded(truth)
    headers, body = answer(truth, asked)
    shared = Soak(0, truth, Ledger(), asyncio.Event())
    assert "was answered 200" in shared.fault(asked, Reply(200, headers, body), (400,))
