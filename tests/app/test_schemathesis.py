"""Another reader of the description: schemathesis makes requests from it, right and wrong, and finds no fault.

It is a process of its own, so that neither its hypothesis nor its plugin has to do with these tests.
"""

from __future__ import annotations

import re
import subprocess
import sys

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


def test_requests_made_from_the_description_meet_no_fault_of_the_service(service, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--no-color",
         "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--seed", "1"],
        capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None
    assert int(tested[1]) == sum(map(len, service.get("/openapi.json").json()["paths"].values()))
