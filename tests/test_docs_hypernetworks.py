"""docs/hypernetworks.md is true: its code runs, its example learns, and the service answers as the page shows."""

import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ensemble
from app.client import BadRequest, Client
from tests.app.support import ROOT, command, serving

PAGE = (ROOT / "docs" / "hypernetworks.md").read_text()


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    try:
        import hypernetwork

        yield hypernetwork
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def trained(example):
    """With fewer steps than the page's."""
    torch.manual_seed(0)
    return example.train(example.contextual(), 400)


class Words(torch.nn.Module):
    """The mean of a table's rows, (batch, 3 words) to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.table(words).mean(1)


def words() -> ensemble.Ensemble:
    """A model of which each row reads a table of its own."""
    torch.manual_seed(0)
    example = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2)
    return ensemble.generate(ensemble.Hypernetwork(Words(), 2, hidden=()), Words(), context="topic", example=example)


@pytest.fixture(scope="module")
def served(example, trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("turned")
    made = example.save(trained, root / "models" / "turned" / "1")
    words().save(root / "models" / "words" / "1")
    started = ("--models", root / "models", "--default-model", "turned", "--no-compile")
    with serving(root / "log", *started) as server:
        yield server.wait_ready(), made


def test_its_code_runs_one_block_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert names["members"](names["x"]).shape == (64, 5, 3)
    assert len(ensemble.load("models/domains/1")) == 32
    assert names["loss"].item() < np.log(3)


def test_a_small_network_with_weights_of_the_angle_beats_one_without(example, trained):
    torch.manual_seed(0)
    plain = example.accuracy(example.train(example.WithoutAngle(16), 400))
    assert example.accuracy(trained) > plain + 0.15


def test_the_page_shows_what_each_network_learns(example):
    rows = dict(re.findall(r"^(the small.*?|a network.*?)  +[\d,]+ +([\d.]+)%", PAGE, re.MULTILINE))
    assert len(rows) == 5
    best = float(rows["the small network, weights of the angle"])
    assert best > 94
    assert best > max(float(value) for name, value in rows.items() if not name.endswith("weights of the angle"))
    parameters = sum(p.numel() for p in example.contextual().hypernetwork.parameters())
    assert f"{parameters:,}" in PAGE


def test_its_curl_gets_what_it_shows(served):
    server, made = served
    shown = re.search(r"\$ (curl -s http://127.0.0.1:8000.*?\}')\n(\{.*?\})\n", PAGE, re.DOTALL)
    words = shlex.split(shown[1].replace("http://127.0.0.1:8000", server.url))
    answer = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
    expected = json.loads(shown[2])
    assert answer.keys() == expected.keys()
    assert {k: answer[k] for k in ("model", "version", "members", "seed")} == {
        k: expected[k] for k in ("model", "version", "members", "seed")
    }
    # Of a model with less training: it too reads the same image otherwise when it is told another angle.
    assert answer["outputs"].keys() == expected["outputs"].keys()
    assert expected["outputs"]["label"] == [9, 6]
    assert answer["outputs"]["label"][0] == 9 != answer["outputs"]["label"][1]
    body = json.loads(words[-1])
    inputs = {name: torch.tensor(value, dtype=torch.float32) for name, value in body["inputs"].items()}
    want = made.predict(inputs).mutual_information
    assert answer["outputs"]["mutual_information"] == pytest.approx(want.tolist(), abs=1e-5)


def test_concurrent_requests_with_different_contexts_each_get_what_they_get_alone(example, served):
    server, made = served
    images, angle, _ = example.held_out(1)
    images, angle = images[:24], angle[:24]
    with Client(server.url, model="turned") as client:

        def ask(row):
            given = {"input": images[row : row + 1].numpy(), "angle": angle[row : row + 1].numpy()}
            return client.infer(given, outputs=["mean"])["mean"][0]

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(24)))
    for row, mean in enumerate(answers):
        want = made.predict(images[row : row + 1], angle[row : row + 1], statistics=["mean"]).mean[0]
        np.testing.assert_allclose(mean, want.numpy(), atol=1e-5)


def test_an_index_beyond_its_own_table_is_that_requests_error_and_nobody_elses(served):
    server, made = served[0], words()
    generator = torch.Generator().manual_seed(0)
    given, topics = torch.randint(5, (24, 3), generator=generator), torch.randn(24, 2, generator=generator)
    bad = {3: 5, 10: -1, 17: 14}
    for row, index in bad.items():
        given[row, 1] = index
    with Client(server.url, model="words") as client:

        def ask(row):
            try:
                asked = {"words": given[row : row + 1].numpy(), "topic": topics[row : row + 1].numpy()}
                return client.infer(asked, outputs=["mean"])["mean"][0]
            except BadRequest as error:
                return error

        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(ask, range(24)))
    for row, answer in enumerate(answers):
        if row in bad:
            assert isinstance(answer, BadRequest)
            assert "an index beyond the model's table" in str(answer)
        else:
            want = made.predict(given[row : row + 1], topics[row : row + 1], statistics=["mean"]).mean[0]
            np.testing.assert_allclose(answer, want.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input": np.zeros((1, 1, 8, 8)).tolist()}, "angle"),
        ({"input": np.zeros((1, 1, 8, 8)).tolist(), "angle": [[1.0]]}, "angle"),
        ({"input": np.zeros((1, 1, 8, 8)).tolist(), "angle": [1.0, 2.0]}, "rows"),
        ({"input": np.zeros((1, 1, 8, 8)).tolist(), "angle": ["north"]}, "angle"),
        ({"input": np.zeros((1, 1, 8, 8)).tolist(), "degrees": [1.0]}, "degrees"),
        ({"input": np.zeros((1, 1, 8, 8)).tolist(), "angle": [float("nan")]}, "NaN"),
    ],
)
def test_a_context_that_does_not_fit_is_a_clear_error(served, inputs, said):
    answer = served[0].post("/predict", content=json.dumps({"inputs": inputs}).encode())
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_its_build_command_exists():
    words = re.search(r"^\$ ensembled build (.+)$", PAGE, re.MULTILINE)[1].split()
    options = command("build", "--help").stdout
    assert (ROOT / words[0].split(":")[0]).is_file()
    assert all(word in options for word in words if word.startswith("--"))
