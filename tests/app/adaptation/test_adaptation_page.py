"""docs/adaptation.md is true: its commands and its Python run, and its tables name what there is.

A small model of the same name and shapes stands in for the trained example, so the form of each answer is compared: its
keys, types and lengths, and its words where it is an error.
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
from app.protocol import adapting, plain_adaptation
from app.settings import Settings
from tests.app.support import ROOT, serving
from tests.app.test_protocol_page import form, steps

PAGE = (ROOT / "docs" / "adaptation.md").read_text()
ADDRESS = "127.0.0.1:8000"
MARK = "--- the end of an answer ---"
BLOCKS = [block for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("sinusoid")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    made = ensemble.perturb(net, ensemble.Gaussian(0.1), members=32, example=torch.randn(3, 1), task="regression")
    made.save(root / "models" / "sinusoid" / "1")
    with serving(root / "log", "--models", root / "models", "--adaptation") as running:
        yield running.wait_ready()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_its_commands_give_what_it_shows(server, block, tmp_path):
    commands = steps(block)
    # One script, since what one command made the next one uses.
    script = "set -e\n" + "".join(
        f"{command}\n" + (f"echo; echo {MARK}\n" if shown else "") for command, shown in commands
    )
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, f"127.0.0.1:{server.port}")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = [(command, shown) for command, shown in commands if shown]
    assert len(wanted) >= 2
    for got, (command, shown) in zip(done.stdout.split(MARK)[:-1], wanted, strict=True):
        assert form(json.loads(got)) == form(json.loads(shown)), command


def test_its_python_runs(server):
    asking, *library = PYTHON
    names: dict = {}
    exec(asking.replace(ADDRESS, f"127.0.0.1:{server.port}"), names)
    assert names["result"]["mean"].shape == (50, 1)
    # Computed twice, by products of other heights: the last bit may differ.
    assert names["again"]["mean"] == pytest.approx(names["result"]["mean"], rel=1e-5, abs=1e-6)
    names = {}
    for code in library:
        exec(code, names)
    assert names["rates"]["0.weight"].grad.abs().max() > 0
    assert names["model"][0].weight.grad.abs().max() > 0
    for line, shape in re.findall(r"^(members\.\w+\S*\.shape)  # \(([^)]*)\)", PAGE, re.MULTILINE):
        assert eval(line, names) == tuple(int(size.split()[0]) for size in shape.split(","))
    assert names["p"].mean.shape == names["p"].std.shape == (25, 7, 1)


def test_its_tables_name_what_there_is():
    keys = PAGE.split("| key | default | |")[1].split("\n\n")[0]
    named = {key for row in keys.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(plain_adaptation._KEYS)
    assert (f"`steps` | {adapting.STEPS} |" in keys, f"`learning_rate` | {adapting.LEARNING_RATE} |" in keys) == (
        True,
        True,
    )
    settings = PAGE.split("| setting | default | |")[1].split("\n\n")[0]
    flags = {flag.replace("-", "_") for flag in re.findall(r"^\| `--([a-z-]+)`", settings, re.MULTILINE)}
    assert flags == {name for name in Settings.model_fields if name.startswith("adapt")}
    for flag, default in re.findall(r"^\| `--([a-z-]+)` \| (\S+(?: MiB)?) \|", settings, re.MULTILINE):
        value = Settings.model_fields[flag.replace("-", "_")].default
        said = {"no": False}.get(default) if default == "no" else int(default.removesuffix(" MiB"))
        assert value == (said * 2**20 if default.endswith("MiB") else said)
