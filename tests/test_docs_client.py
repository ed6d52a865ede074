"""docs/client.md is true: its code runs against a real service, and its tables name what there is."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
from torch import nn

import app.client
import ensemble
from app.client import AsyncClient, Client, ClientError, Refused, Retry
from tests.app.support import ROOT, serving

PAGE = (ROOT / "docs" / "client.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A model of the example's name and shapes."""
    root = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made = ensemble.perturb(
        model, ensemble.Gaussian(scale=0.1), members=4, example=torch.rand(2, 1, 8, 8), task="classification"
    )
    made.save(root / "models" / "digits" / "1")
    with serving(root / "log", "--models", root / "models") as running:
        yield running.wait_ready()


def test_its_code_runs_one_block_after_the_other(server):
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code.replace("http://127.0.0.1:8000", server.url), names)
    assert names["result"]["label"].shape == (2,)
    assert names["result"].members == 4
    assert [result["mean"].shape for result in names["results"]] == [(1, 10)] * 2
    assert names["said"].startswith("output must be one of")
    assert names["found"][0] == 400


def table(heading: str) -> list[str]:
    after = PAGE.split(f"| {heading} |", 1)[1].split("\n\n")[0]
    return re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in after.splitlines()[2:]))


def test_its_tables_name_every_argument_and_no_other():
    asked = set(inspect.signature(Client.infer).parameters) - {"self", "inputs"}
    assert set(table("`infer(inputs, outputs=None, ...)`")) == asked
    for kind in (Client, AsyncClient):
        made = set(inspect.signature(kind).parameters) - {"url"}
        assert set(table("`Client(url, ...)`, `AsyncClient(url, ...)` | default")) == made
    named = set(re.findall(r"`(first|longest|longest_asked)`", PAGE))
    assert named | {"attempts"} == {field.name for field in dataclasses.fields(Retry)}


def test_its_table_of_errors_names_every_error_and_says_what_is_repeated():
    rows = re.findall(r"^\| `(\w+)` \| .* \| ?(.*?) ?\|$", PAGE.split("| error |")[1], re.MULTILINE)
    kinds = {name: getattr(app.client, name) for name, _ in rows}
    assert set(kinds.values()) == {
        value
        for value in vars(app.client).values()
        if isinstance(value, type) and issubclass(value, ClientError) and value is not ClientError
    }
    for name, repeated in rows:
        if kinds[name] is not Refused:
            assert kinds[name].retryable == (repeated in ("yes", "where there is time")), name


def test_its_defaults_are_those():
    defaults = {name: p.default for name, p in inspect.signature(Client).parameters.items()}
    assert (defaults["timeout"], defaults["connections"], defaults["binary"]) == (60, 256, True)
    assert (defaults["compress"], defaults["retry"], Retry().longest_asked) == (False, Retry(), 30)
