"""Good requests in every form, and what their answers must be."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.soak.malformed import PLAIN, V2
from benchmarks.soak.truth import POOL, WORDS, Truth
from benchmarks.soak.wire import head

FORMS = ("plain", "V2", "V2, bytes")
_numbers = itertools.count()


@dataclass(frozen=True)
class Question:
    """One good request.

    Args:
        form: of :data:`FORMS`.
        rows: which rows of the pool.
        parameters: of the plain API.
        headers: beside those that every request has.
        spoiled: one of its tokens is no word that the model knows.
    """

    form: str
    rows: NDArray[np.int64]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    spoiled: bool = False
    id: str = field(default_factory=lambda: f"soak-{next(_numbers)}")

    def encoded(self, truth: Truth) -> bytes:
        """The request as it is sent."""
        features, tokens = truth.features[self.rows], truth.tokens[self.rows]
        if self.spoiled:
            tokens = tokens.copy()
            tokens[-1, 0] = WORDS
        lines = [f"x-request-id: {self.id}", *self.headers]
        more = {"id": self.id, "parameters": dict(self.parameters)}
        if self.form == "plain":
            document = {"inputs": {"features": features.tolist(), "tokens": tokens.tolist()}, "outputs": ["mean"]}
            body = json.dumps(document | more).encode()
            return head(PLAIN, len(body), *lines) + body
        inputs: list[dict[str, Any]] = []
        tail = b""
        for name, datatype, array in (("features", "FP32", features), ("tokens", "INT64", tokens)):
            tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            if self.form == "V2":
                inputs.append(tensor | {"data": array.ravel().tolist()})
            else:
                inputs.append(tensor | {"parameters": {"binary_data_size": array.nbytes}})
                tail += array.tobytes()
        body = json.dumps({"inputs": inputs, "outputs": [{"name": "mean"}]} | more).encode()
        if tail:
            lines.append(f"inference-header-content-length: {len(body)}")
        return head(V2, len(body) + len(tail), *lines) + body + tail

    def fault(self, truth: Truth, headers: Mapping[str, str], body: bytes) -> str:
        """What is wrong with an answer whose status is 200; empty if nothing is."""
        if headers.get("x-request-id") != self.id:
            return f"{self.id} got the answer of {headers.get('x-request-id')}"
        answer = json.loads(body)
        if answer.get("id") != self.id:
            return f"{self.id} got the answer of {answer.get('id')}"
        if self.form == "plain":
            version, about, mean = answer["version"], answer, answer["outputs"]["mean"]
        else:
            version, about = answer["model_version"], answer["parameters"]
            (output,) = answer["outputs"]
            mean = np.reshape(output["data"], output["shape"])
        members = about["members"]
        if "members" in self.parameters and members != self.parameters["members"]:
            return f"{self.parameters['members']} members were asked for and {members} answered"
        return truth.fault(self.rows, version, about["seed"], members, mean)


def question(r: random.Random, truth: Truth, count: int | None = None, **rest: Any) -> Question:
    """A request at random.

    Args:
        count: rows; a few by default.
    """
    rows = np.array(r.choices(range(POOL), k=count or r.randint(1, 4)))
    parameters: dict[str, Any] = {}
    match r.random():
        case x if x < 0.2:
            parameters["members"] = r.randint(1, truth.count)
        case x if x < 0.3 and len(rows) == 1:
            # Of several rows each may need another number of members, and the answer says the largest alone.
            parameters["tolerance"] = r.choice([1e-6, 0.02, 0.1])
        case x if x < 0.4:
            parameters["priority"] = r.randint(1, 9)
    return Question(r.choice(FORMS), rows, parameters, **rest)
