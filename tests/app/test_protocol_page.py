"""docs/protocol.md is true: its commands are run, its Python is run, and what its tables name exists.

The page asks the example of `make serve`. Here a small model of the same name and shapes stands in for it, so what is
compared is the form of each answer: its keys, types and lengths, and its words where it is an error.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

import ensemble
from app import errors
from app.protocol import DATATYPES, HEADER_LENGTH, TIMEOUT_HEADER, explain_plain_options, explain_v2_options
from tests.app.support import ROOT, serving

PAGE = (ROOT / "docs" / "protocol.md").read_text()
ADDRESS = "127.0.0.1:8000"
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A service of a model that takes and gives what the example does."""
    root = tmp_path_factory.mktemp("example")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made = ensemble.perturb(
        network, ensemble.Gaussian(scale=0.1), members=128, example=torch.rand(3, 1, 8, 8), task="classification"
    )
    made.save(root / "digits" / "1")
    with serving(root / "log", "--models", root) as server:
        yield server.wait_ready()


def steps(block: str) -> list[tuple[str, str]]:
    """Each command of a block, and what it shows."""
    found = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        # A command goes on as long as a quotation is open.
        end = next((n for n in range(1, len(lines)) if "\n".join(lines[:n]).replace('\\"', "").count('"') % 2 == 0), 1)
        found.append(("\n".join(lines[:end]), "\n".join(lines[end:])))
    return found


def form(value):
    """What a value is, without its numbers."""
    if isinstance(value, dict):
        return {key: value[key] if key in ("error", "id", "name", "members") else form(value[key]) for key in value}
    if isinstance(value, list):
        return [form(item) for item in value]
    return type(value).__name__


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_its_commands_give_what_it_shows(digits, block, tmp_path):
    before, shown_ones = "set -e\n", 0
    for command, shown in steps(block):
        script = command.replace(ADDRESS, f"127.0.0.1:{digits.port}")
        done = subprocess.run(
            ["bash", "-c", before + script], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        if shown:
            assert form(json.loads(done.stdout)) == form(json.loads(shown))
            shown_ones += 1
        else:
            before += f"{script}\n"
    assert shown_ones


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_its_python_runs(digits, code):
    pytest.importorskip("tritonclient.http")
    names: dict = {}
    exec(code.replace(ADDRESS, f"127.0.0.1:{digits.port}"), names)
    assert names["label"].shape == names["information"].shape == (2,)
    assert (names["information"] > 0).all()
    assert names["members"] == 64


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_its_endpoints_are_all_that_there_are(digits):
    paths = set(digits.get("/openapi.json").json()["paths"]) | {"/docs", "/openapi.json"}
    listed = re.findall(r"`(?:GET |POST )?(/[^`]*)`", section("Endpoints"))
    assert set().union(*map(spelled, listed)) == paths


def spelled(path: str) -> set[str]:
    """The paths that one with brackets stands for."""
    if found := re.search(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]", path):
        without = path[: found.start()] + path[found.end() :]
        return spelled(without) | spelled(path[: found.start()] + found[1] + path[found.end() :])
    return {path.replace("/M", "/{name}").replace("/V", "/{version}")}


def test_its_parameters_datatypes_headers_and_errors_are_those_that_there_are():
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", section("Request parameters"), re.MULTILINE)
    v2, plain = (
        {name for row in rows for name in re.findall(r"`(\w+)`", row[column])} - {"parameters"} for column in (0, 1)
    )
    assert v2 == {*explain_v2_options(1), "binary_data_output"}
    assert plain == set(explain_plain_options(1))
    named = set(re.findall(r"`([A-Z]+[0-9]*)`", section("Datatypes"))) - {"JSON"}
    assert named == {*DATATYPES, "BYTES"}
    assert f"`{HEADER_LENGTH}`" in section("Headers")
    assert f"`{TIMEOUT_HEADER}`" in section("Headers")
    statuses = {int(status) for row in re.findall(r"^\| ([0-9, ]+) \|", section("Errors"), re.MULTILINE)
                for status in row.split(", ")}  # fmt: skip
    classes = {getattr(errors, name).status for name in errors.__all__}
    # A client that went away reads nothing; heads are refused before they are requests.
    assert statuses == (classes - {499}) | {431}
