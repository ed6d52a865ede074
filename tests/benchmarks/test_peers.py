"""Every way gives what the members give as plain modules. The optional ones are tried where they are installed."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from benchmarks.models import MODELS, Case
from benchmarks.speed import reference
from benchmarks.speed.peers import Stacked, as_array
from benchmarks.speed.running import PEERS, WAYS, Running
from benchmarks.speed.worker import RefusedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    fast = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(fast)


def installed(*ways):
    return [way for way in ways if WAYS[way].package is None or importlib.util.find_spec(WAYS[way].package)]


def check(model, way, members=3, rows=2):
    case = MODELS[model]()
    expected = case.ensemble("dense", members).loop(*case.inputs(rows))
    with torch.no_grad():
        call = PEERS[way](case, members)(case.inputs(rows))
        for _ in range(2):
            np.testing.assert_allclose(as_array(call()), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("way", installed("loop", "vmap", "jax"))
@pytest.mark.parametrize("model", ["tiny", "cnn8"])
def test_peers_agree(model, way):
    check(model, way)


@pytest.mark.parametrize("way", installed("openvino", "onnxruntime"))
def test_runtimes_agree(way):
    check("tiny", way)


def test_a_recurrent_model_is_exported_as_what_it_is_made_of():
    """vmap refuses the layer itself; the graph is what OpenVINO and ONNX Runtime are given."""

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.LSTM(4, 5, batch_first=True)

        def forward(self, x):
            return self.layer(x)[0][:, -1]

    case = Case("LSTM", Last().eval(), (3, 4), recurrent=True)
    inputs = case.inputs(2)
    with pytest.raises(RuntimeError, match="lstm"), torch.no_grad():
        PEERS["vmap"](case, 2)(inputs)()
    program = Stacked(case, 2).exported(inputs)
    expected = case.ensemble("dense", 2).loop(*inputs)
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=1e-5)


def test_the_tables_name_every_peer():
    assert set(PEERS) <= set(WAYS)
    assert all(way.recipe == "dense" for name, way in WAYS.items() if name in PEERS)


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
def test_jax_says_which_models_it_has_not():
    with pytest.raises(RefusedError, match="not written for this model"):
        PEERS["jax"](MODELS["lstm"](), 2)


def test_a_way_is_checked_before_it_is_timed(tmp_path, monkeypatch):
    path = tmp_path / "reference"
    reference.write("tiny", "dense", 4, [1, 2], path, 60)
    running = Running("tiny", "vmap", 4, [1, 2], path, planning=1.0)
    running.start()
    prepared = running.prepare(2)
    assert prepared.error < 1e-6
    assert prepared.checked == 4
    assert all(seconds > 0 for seconds in running.run(2, 0.01))
    right = PEERS["loop"]
    monkeypatch.setitem(PEERS, "loop", lambda case, n: lambda inputs: lambda: right(case, n)(inputs)() + 0.1)
    wrong = Running("tiny", "loop", 4, [1, 2], path, planning=1.0)
    wrong.start()
    with pytest.raises(RefusedError, match="wrong: differs"):
        wrong.prepare(1)
    with pytest.raises(KeyError):
        wrong.run(1, 0.01)


def test_this_library_runs_as_it_plans_and_says_how(tmp_path, monkeypatch):
    path = tmp_path / "reference"
    reference.write("tiny", "low_rank", 4, [1, 2], path, 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # No time to compile anything, which the plan tells.
    running = Running("tiny", "low_rank", 4, [1, 2], path, planning=0.0)
    running.start()
    for rows in (1, 2):
        prepared = running.prepare(rows)
        assert prepared.error < 1e-6
        assert prepared.note.startswith(("vmap, ", "loop"))
        assert "no time was left" in prepared.note
    # What is planned once holds for all batches.
    assert len(running.run(1, 0.01)) >= 1
    assert len(running.run(2, 0.01)) >= 1
