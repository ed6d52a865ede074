"""Another reader of the description: schemathesis makes requests from it, right and wrong, and finds no fault.

It is a process of its own, so that neither its hypothesis nor its plugin has to do with these tests.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.support import Server, plain_body, rows_of, serving, v2_body

# All but "positive_data_acceptance": a description cannot say that numbers must be as many as their shape has.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
# A time that a request gives may be over before it is answered.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
# What an ordinary service answers 403 to.
PERMITTED = (
    "/v1/models/{name}/adapt",
    "/v1/models/{name}/versions/{version}/adapt",
    "/v1/adapted/{handle}",
    "/v1/adapted/{handle}/predict",
    "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload",
)
ROWS = rows_of("house", 2)
SUPPORT = {"inputs": ROWS["input"].tolist(), "targets": np.ones((2, 2)).tolist()}
WEIGHTS = {"name": "2.bias", "shape": [3, 2], "datatype": "FP32", "data": [0.5] * 6}


def run(description: str | Path, directory: Path, *more: str) -> int:
    """The operations that were tried, none of which was at fault."""
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", str(description), *more, "--no-color",
         "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--seed", "1"],
        capture_output=True, text=True, cwd=directory, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None
    return int(tested[1])


def operations(document: dict[str, Any]) -> int:
    return sum(map(len, document["paths"].values()))


def test_requests_made_from_the_description_meet_no_fault_of_the_service(service, tmp_path):
    tried = run(f"{service.url}/openapi.json", tmp_path, "--max-examples", "4")
    assert tried == operations(service.get("/openapi.json").json())


@pytest.fixture(scope="module")
def permitting(models, tmp_path_factory):
    """A service that permits all that an ordinary one does not."""
    log = tmp_path_factory.mktemp("permitting") / "log"
    permitted = ("--management", "--adaptation", "--allow-weights", "--adapted-seconds", 600)
    with serving(log, "--models", models, "--default-model", "house", *permitted) as server:
        yield server.wait_ready()
        assert "Traceback" not in server.text()


def keep(server: Server) -> str:
    """The handle of an adapted model."""
    reply = server.post("/v1/models/house/adapt", json={"support": SUPPORT, "keep_seconds": 600})
    return reply.json()["adapted"]["handle"]


def narrowed(document: dict[str, Any], server: Server) -> dict[str, Any]:
    """The description as one of the model house alone, with rows, examples, weights and handles that there are.

    What is made from it gets further than to the first check, with wishes of all kinds beside what is right.
    """
    document = copy.deepcopy(document)
    plain, asked = plain_body(ROWS)["inputs"], v2_body(ROWS)["inputs"]
    right = {"support": [SUPPORT], "queries": [SUPPORT["inputs"], None]}
    for path, methods in document["paths"].items():
        for verb, operation in methods.items():
            # What is unloaded answers nobody any more, and what is deleted neither.
            named = {"name": "weather" if path.endswith("load") else "house", "version": "1"}
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "handle":
                    parameter["schema"] = {"enum": [keep(server) for _ in range(2 if verb == "delete" else 1)]}
                elif parameter["in"] == "path":
                    parameter["schema"] = {"enum": [named[parameter["name"]]]}
                parameter.pop("example", None)
            content = operation.get("requestBody", {}).get("content", {})
            content.pop("application/octet-stream", None)
            if "application/json" not in content:
                continue
            content["application/json"].pop("examples", None)
            properties = content["application/json"]["schema"]["properties"]
            inputs = [asked, [*asked, WEIGHTS]] if path.endswith("/infer") else [plain]
            for name, values in {**right, "inputs": inputs}.items():
                if name in properties:
                    properties[name] = {"enum": values}
    return document


def test_what_must_be_permitted_and_is_meets_no_fault_either(permitting, tmp_path):
    """Management, adaptation and weights, by the description of a service that permits them."""
    document = narrowed(permitting.get("/openapi.json").json(), permitting)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    answered = {path: permitting.metric("ensembled_requests_total", route=path, status="200") for path in PERMITTED}
    tried = run(tmp_path / "openapi.json", tmp_path, "--url", permitting.url, "--max-examples", "8")
    assert tried == operations(document)
    for path, before in answered.items():
        assert permitting.metric("ensembled_requests_total", route=path, status="200") > before, path
