"""docs/weights.md is true: its commands and its Python run against a real service, and its tables name what there is.

The page asks the example of `make serve`. Here a small model with the same inputs, outputs and last layers stands in
for it, so what is compared is the form of each answer, and its words where it is an error.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import OrderedDict

import pytest
import torch
from torch import nn

import ensemble
from app.settings import Settings
from tests.app.support import ROOT, serving
from tests.app.test_protocol_page import form, steps

PAGE = (ROOT / "docs" / "weights.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights-page")
    torch.manual_seed(0)
    layers = {"7": nn.Flatten(), "8": nn.Linear(64, 64), "9": nn.ReLU(), "10": nn.Linear(64, 10)}
    made = ensemble.perturb(
        nn.Sequential(OrderedDict(layers)),
        ensemble.Gaussian(scale=0.1),
        members=128,
        example=torch.rand(3, 1, 8, 8),
        task="classification",
    )
    made.save(root / "digits" / "1")
    with serving(root / "log", "--models", root, "--allow-weights") as running:
        yield running.wait_ready()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_its_commands_give_what_it_shows(server, block, tmp_path):
    before, shown_ones = "set -e\n", 0
    for command, shown in steps(block):
        script = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        done = subprocess.run(
            ["bash", "-c", before + script], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        if shown:
            got, want = json.loads(done.stdout), json.loads(shown)
            assert form(got) == form(want)
            assert got.get("perturbation") == want.get("perturbation")
            assert got.get("parameters") == want.get("parameters")
            shown_ones += 1
        else:
            before += f"{script}\n"
    assert shown_ones


def test_its_python_runs(server):
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code.replace("http://127.0.0.1:8000", server.url), names)
    assert (names["seeded"].seed, names["seeded"].members, names["seeded"].parameters["scale"]) == (7, 64, 0.1)
    assert names["brought"].members == 32
    assert (len(names["other"]), len(names["given"])) == (64, 5)


def test_its_settings_are_there_with_their_defaults():
    units = {"MiB": 2**20, "": 1}
    rows = re.findall(r"\| `--([a-z-]+)` \| (\d+)? ?(MiB|off)? \|", PAGE)
    assert len(rows) == 5
    for name, number, unit in rows:
        default = Settings.model_fields[name.replace("-", "_")].default
        assert default == (False if unit == "off" else int(number) * units[unit])
