import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import ensemble
from ensemble import LowRank, ModelError
from ensemble.backends import BACKENDS, inductor, openvino, toolchain
from ensemble.backends.job import Job
from ensemble.backends.tracing import trace
from ensemble.backends.worker import build
from ensemble.planning.optimize import Step, follow, key_of
from tests.ensemble.test_structured import remade
from tests.reference import call, worst
from tests.scenarios import SCENARIOS, seeded

CPU = torch.device("cpu")
compiles = pytest.mark.skipif(bool(inductor.missing(CPU)), reason="there is no C++ compiler")
converts = pytest.mark.skipif(bool(openvino.missing(CPU)), reason="OpenVINO is not there")


@pytest.mark.parametrize("name", ["mlp", "cnn", "raw_lstm", "encoder", "tied", "odd"])
def test_what_compilers_are_given_is_the_vmapped_call(made, name):
    ens = remade(made(name), LowRank(scale=0.3), members=4)
    job = ens._runner.job("inductor", ens.example(3), 4)
    traced, tensors = trace(job)
    members = ens._runner.members
    given = [members.shared[s.name] for s in job.shared] + [members.stacked[s.name] for s in job.own] + ens.example(3)
    assert [t.shape for t in given] == [t.shape for t in tensors]
    wanted = next(ens._runner(ens.example(3)))
    for got, want in zip(traced(*given), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    openvino.rewrite(traced, 4)
    for got, want in zip(traced(*given), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@converts
def test_what_a_rewriting_cannot_do_costs_its_speed_only(made, tmp_path, monkeypatch):
    def fails(traced, members):
        raise KeyError("val")

    monkeypatch.setattr(openvino, "rewrite", fails)
    ens = remade(made("cnn"), LowRank(scale=0.3), members=4)
    inputs = ens.example(3)
    job = ens._runner.job("openvino", inputs, 4)
    assert build(job, tmp_path) == ""
    call = openvino.Compiled(job, tmp_path / job.key, ens.members, "float32")
    for got, want in zip(call(0, inputs), next(ens._runner(inputs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@compiles
def test_a_compiled_package_gives_what_each_members_module_gives(made, workshop):
    scenario, ens = SCENARIOS["mlp"], remade(made("mlp"), LowRank(scale=0.3), members=6)
    ens.measure((1, 4), seconds=0.1)
    compiled = ens.compile(Step("inductor", 4, 3, "float32"), workshop)
    ens.adopt(compiled)
    inputs = scenario.inputs(4)
    flat = ens.program.bind((inputs,), {}, CPU)
    whole = [torch.cat([compiled.call(start, flat)[0] for start in (0, 3)])]
    assert worst(whole, seeded(scenario), [ens.member(index) for index in range(6)], inputs) <= 1e-5
    assert call(ens, inputs).shape == whole[0].shape


def test_a_compiler_that_is_missing_is_named_with_what_to_do(made, workshop, monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    ens = remade(made("mlp"), LowRank(scale=0.3))
    ens.measure((2,), seconds=0.1)
    assert ens.steps() == []
    assert ens.missing_backends() == {
        "openvino": "OpenVINO is not installed; pip install 'ensembled[openvino]'",
        "inductor": "there is no C++ compiler; install g++",
    }
    with pytest.raises(ModelError, match="inductor cannot be used here: there is no C"):
        ens.compile(Step("inductor", 2, 5, "float32"), workshop)


@pytest.mark.parametrize("kind", ["inductor", "cudagraph"])
def test_a_backend_that_cannot_compute_in_a_precision_is_told_by_the_plan(made, workshop, monkeypatch, kind):
    for name in [name for name in BACKENDS if name != kind]:
        monkeypatch.delitem(BACKENDS, name)
    monkeypatch.setattr(BACKENDS[kind], "missing", lambda _: "")
    monkeypatch.setattr(workshop, "build", None)
    ens = remade(made("mlp"), LowRank(scale=0.3))
    ens.measure((1, 2), seconds=0.1)
    adopted = []

    def compile(step, left):
        return step if step.precision == "float32" else ens.compile(step, workshop, left)

    assert {step.precision for step in ens.steps()} == {"float32"}
    todo = ens.steps(precision="bfloat16")
    assert follow(ens._runner, todo, compile=compile, adopt=adopted.append, seconds=10)
    assert [step for step in todo if step.precision == "float32"] == adopted
    reason = f"{kind} computes in the weights' own dtype (dtype=, --dtype), not in bfloat16."
    assert ens.plan.failures == {f"{kind} in bfloat16": reason}


@pytest.fixture
def tf32():
    """Sets what PyTorch may round to TensorFloat-32 on a GPU: products, convolutions."""

    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def choose(products, convolutions):
        torch.set_float32_matmul_precision("high" if products else "highest")
        torch.backends.cudnn.allow_tf32 = convolutions

    before = settings()
    yield SimpleNamespace(choose=choose, settings=settings)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def on_a_gpu(inputs):
    """Without data, which needs no GPU."""
    with FakeTensorMode():
        return [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in inputs]


ROUNDED = [(False, False), (False, True), (True, False), (True, True)]


def test_what_is_rounded_to_tf32_is_part_of_a_job_and_of_a_plan_on_a_gpu(made, tf32):
    ens = remade(made("mlp"), LowRank(scale=0.3))
    inputs = {"cuda": on_a_gpu(ens.example(2)), "cpu": ens.example(2)}
    jobs, plans = {"cuda": set(), "cpu": set()}, {"cuda": set(), "cpu": set()}
    for rounded in ROUNDED:
        tf32.choose(*rounded)
        for device, given in inputs.items():
            job = ens._runner.job("inductor", given, 5)
            assert job.tf32 == (rounded if device == "cuda" else (False, False))
            assert Job.from_json(job.to_json()) == job
            jobs[device].add(job.key)
            plans[device].add(key_of(ens._runner, (1,), "float32", given))
    assert {device: len(keys) for device, keys in jobs.items()} == {"cuda": 4, "cpu": 1}
    assert {device: len(keys) for device, keys in plans.items()} == {"cuda": 4, "cpu": 1}


@pytest.mark.parametrize("rounded", ROUNDED)
def test_the_process_that_compiles_for_a_gpu_rounds_as_the_one_that_answers(made, tf32, tmp_path, monkeypatch, rounded):
    ens, found = remade(made("mlp"), LowRank(scale=0.3)), []
    tf32.choose(*rounded)
    text = ens._runner.job("inductor", on_a_gpu(ens.example(2)), 5).to_json()
    wanted = tf32.settings()
    # As they are in a new process.
    tf32.choose(False, True)
    monkeypatch.setattr(toolchain, "cuda_home", lambda: tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr(inductor, "trace", lambda job: (torch.nn.Identity(), [torch.zeros(2)]))
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda *_, **__: found.append((tf32.settings(), os.environ["CUDA_HOME"])),
    )
    inductor.build(Job.from_json(text), tmp_path / "x")
    assert found == [(wanted, str(tmp_path / "cuda"))]


def test_backends_of_other_devices_say_so():
    assert "GPU" in BACKENDS["cudagraph"].missing(CPU)
    assert "processor" in BACKENDS["openvino"].missing(torch.device("cuda"))


@converts
def test_openvino_sends_nothing_home():
    program = """
import sys
from ensemble.backends.openvino import openvino
ov = openvino()
ov.convert_model
assert not any(name.startswith("openvino_telemetry") for name in sys.modules), "telemetry"
import openvino.tools.ovc.telemetry_utils as utils
assert utils.init_ovc_telemetry().__class__.__module__ == "openvino.tools.ovc.telemetry_stub"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@converts
def test_a_failed_build_leaves_nothing_and_says_which_operation_it_was(made, tmp_path):
    ens = remade(made("volumes"), LowRank(scale=0.3))
    job = ens._runner.job("openvino", ens.example(2), len(ens))
    level = logging.getLogger().level
    assert "No conversion rule found for operations: aten._trilinear.default" in build(job, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().level == level


class Hashing(torch.nn.Module):
    """Ids that a table has no room for are hashed into it; the product needs 64 bits."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(16, 3)

    def forward(self, ids):
        return self.table((ids * 2654435761) % 16)


@converts
def test_integers_that_outgrow_32_bits_are_left_to_pytorch(tmp_path):
    ids = torch.tensor([[3], [70_001]])
    ens = ensemble.perturb(Hashing(), ensemble.Gaussian(0.1), members=2, example=ids)
    job = ens._runner.job("openvino", ens.example(2), 2)
    assert "OpenVINO computes integers in 32 bits" in build(job, tmp_path)
