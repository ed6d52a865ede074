"""Counts that a request names or brings: rows, levels, steps, examples, members and weights of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.app.security.conftest import (
    BROUGHT_BYTES,
    EXAMPLES,
    KEPT,
    MAX_BODY,
    OWN_BYTES,
    OWN_MEMBERS,
    ROWS,
    STEPS,
)
from tests.app.support import plain_body, rows_of, v2_body

INFER, PREDICT, ADAPT = "/v2/models/house/infer", "/v1/models/house/predict", "/v1/models/house/adapt"
BODY, PLAIN = v2_body(rows_of("house", 2)), plain_body(rows_of("house", 2))
# What `levels` mean something for.
QUANTILES = {"outputs": [{"name": "quantiles"}]}


def tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}


def adapting(examples: int = 2, **more: Any) -> dict[str, Any]:
    support = {"inputs": np.zeros((examples, 5)).tolist(), "targets": np.ones((examples, 2)).tolist()}
    return {"support": support, "queries": np.zeros((1, 5)).tolist(), **more}


def adapting_v2(examples: int = 2, **parameters: Any) -> dict[str, Any]:
    brought = {"support.input": np.zeros((examples, 5)), "support.targets": np.ones((examples, 2))}
    return {
        "inputs": [*BODY["inputs"], *(tensor(name, array) for name, array in brought.items())],
        "parameters": parameters,
    }


def levels(count: int) -> list[float]:
    return [(number + 1) / (count + 1) for number in range(count)]


@dataclass(frozen=True)
class Counted:
    """A count that has a bound.

    Attributes:
        path: where it is asked.
        most: the bound.
        body: a request with so many.
        says: what who asks for one more is told.
    """

    path: str
    most: int
    body: Callable[[int], dict[str, Any]]
    says: str


COUNTED = {
    "rows": Counted(INFER, ROWS, lambda n: {"inputs": [tensor("input", np.zeros((n, 5)))]}, f"{ROWS} rows at most"),
    "rows of the plain API": Counted(
        PREDICT, ROWS, lambda n: {"inputs": np.zeros((n, 5)).tolist()}, f"{ROWS} rows at most"
    ),
    "levels": Counted(
        INFER, 100, lambda n: {**BODY, **QUANTILES, "parameters": {"levels": levels(n)}}, "must be 1 to 100 numbers"
    ),
    "levels as a text": Counted(
        INFER,
        100,
        lambda n: {**BODY, **QUANTILES, "parameters": {"levels": ",".join(f"{x:.6f}" for x in levels(n))}},
        "must be 1 to 100 numbers",
    ),
    "levels of the plain API": Counted(
        PREDICT,
        100,
        lambda n: {**PLAIN, "outputs": ["quantiles"], "parameters": {"levels": levels(n)}},
        "must be 1 to 100 numbers",
    ),
    "steps": Counted(ADAPT, STEPS, lambda n: adapting(steps=n), f"steps must be a whole number from 1 to {STEPS}"),
    "steps of V2": Counted(
        INFER, STEPS, lambda n: adapting_v2(steps=n), f"steps must be a whole number from 1 to {STEPS}"
    ),
    "examples": Counted(ADAPT, EXAMPLES, adapting, f"{EXAMPLES} examples at most"),
    "examples of V2": Counted(INFER, EXAMPLES, adapting_v2, f"{EXAMPLES} examples at most"),
    "queries": Counted(
        ADAPT, ROWS, lambda n: adapting(queries=np.zeros((n, 5)).tolist()), f"queries must have {ROWS} rows at most"
    ),
    "own members": Counted(
        INFER,
        OWN_MEMBERS,
        lambda n: {**BODY, "parameters": {"recipe": "rank1", "scale": 0.1, "seed": 1, "members": n}},
        f"members must be a whole number from 1 to {OWN_MEMBERS}",
    ),
    "own members of the plain API": Counted(
        PREDICT,
        OWN_MEMBERS,
        lambda n: {
            **PLAIN,
            "parameters": {"perturbation": {"recipe": "rank1", "scale": 0.1, "seed": 1, "members": n}},
        },
        f"members must be a whole number from 1 to {OWN_MEMBERS}",
    ),
    "members of brought weights": Counted(
        INFER,
        OWN_MEMBERS,
        lambda n: {"inputs": [*BODY["inputs"], tensor("2.bias", np.zeros((n, 2)))]},
        f"weights may be of {OWN_MEMBERS} members at most",
    ),
    "bytes of own members": Counted(
        INFER,
        # As many as have a value each of their own of every parameter.
        OWN_BYTES // (4 * (8 * 5 + 8 + 2 * 8 + 2)),
        lambda n: {**BODY, "parameters": {"recipe": "gaussian", "scale": 0.1, "seed": 1, "members": n}},
        "ask for 7 at most",
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_as_many_as_are_allowed_are_answered_and_one_more_is_refused(fortress, name):
    """11: the body is small either way, so that nothing but the count is in the way."""
    count = COUNTED[name]
    with fortress.client() as client:
        for number, status in ((count.most, 200), (count.most + 1, 400)):
            content = json.dumps(count.body(number), separators=(",", ":"))
            assert len(content) < MAX_BODY
            reply = client.post(count.path, content=content)
            assert reply.status_code == status, reply.text[:500]
        assert count.says in reply.json()["error"]
    assert fortress.is_well()


def test_weights_that_a_request_brings_have_a_size(fortress):
    """11: they are copied, looked through and kept while the request waits."""
    with fortress.client() as client:
        for members, status in ((BROUGHT_BYTES // (4 * 8 * 5), 200), (BROUGHT_BYTES // (4 * 8 * 5) + 1, 413)):
            brought = tensor("0.weight", np.zeros((members, 8, 5)))
            reply = client.post(INFER, json={"inputs": [*BODY["inputs"], brought]})
            assert reply.status_code == status, reply.text[:500]


def test_adapted_models_that_are_kept_have_a_number(fortress):
    """11: what is beyond it is told when the next one ends, and one that is forgotten makes room."""
    with fortress.client() as client:
        kept = [client.post(ADAPT, json=adapting(keep_seconds=600)) for _ in range(KEPT)]
        assert [reply.status_code for reply in kept] == [200] * KEPT
        refused = client.post(ADAPT, json=adapting(keep_seconds=600))
        assert refused.status_code == 429
        assert f"{KEPT} adapted models" in refused.json()["error"]
        assert 0 < int(refused.headers["retry-after"]) <= 600
        for reply in kept:
            assert client.delete(f"/v1/adapted/{reply.json()['adapted']['handle']}").status_code == 200
        again = client.post(ADAPT, json=adapting(keep_seconds=0.01))
        assert again.status_code == 200
    assert fortress.is_well()


def test_an_output_cannot_be_asked_for_many_times(fortress):
    """11: each would be encoded anew."""
    with fortress.client() as client:
        reply = client.post(INFER, json={**BODY, "outputs": [{"name": "mean"}] * 1000})
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("members", 10**9),
        ("members", 0),
        ("members", -1),
        ("members", 2**70),
        ("members", 1.5),
        ("tolerance", 0),
        ("tolerance", -1.0),
        ("timeout", 10**18),
        ("timeout", 0),
        ("priority", 10**6),
    ],
)
def test_counts_in_a_request_have_bounds(fortress, name, value):
    """11: no more members than the model has, no time that never ends."""
    with fortress.client() as client:
        reply = client.post(INFER, json={**BODY, "parameters": {name: value}})
        assert reply.status_code == 400
        assert name in reply.json()["error"]
        plain = {"timeout": "timeout_seconds"}.get(name, name)
        reply = client.post(
            "/v1/models/house/predict", json={**plain_body(rows_of("house", 1)), "parameters": {plain: value}}
        )
        assert reply.status_code == 400
