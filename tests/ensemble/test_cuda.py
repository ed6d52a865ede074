"""What must hold on a CUDA device. Skipped where there is none."""

import dataclasses

import pytest
import torch

import ensemble
from ensemble.calibration import Calibration
from tests.reference import call, tensors
from tests.scenarios import SCENARIOS, seeded

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("name", SCENARIOS)
def test_outputs_are_close_to_those_of_the_cpu(made, name):
    # float64, so that the precision of a device's float32 products does not count.
    cpu = made(name).to(dtype=torch.float64)
    gpu = cpu.to("cuda")
    inputs = SCENARIOS[name].inputs(3)
    for a, b in zip(tensors(call(cpu, inputs)), tensors(call(gpu, inputs)), strict=True):
        assert b.device.type == "cuda"
        assert torch.allclose(a.double(), b.cpu().double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "tied"])
def test_members_are_bit_for_bit_those_of_the_cpu(made, name, tmp_path):
    ens, scenario = made(name), SCENARIOS[name]
    recipe = ens.origin.recipe
    drawn = ensemble.perturb(seeded(scenario).cuda(), recipe, members=5, seed=3, example=_cuda(scenario.inputs(3)))
    ens.save(tmp_path / "m")
    for other in (ens.to("cuda"), drawn, ensemble.load(tmp_path / "m", device="cuda")):
        assert other.device.type == "cuda"
        for index in (0, 4):
            state = other.member(index)
            assert all(torch.equal(tensor, state[key]) for key, tensor in ens.member(index).items())


def test_an_ensemble_made_on_a_device_is_saved_and_loaded_on_the_cpu(made, tmp_path):
    ens = made("cnn").to("cuda")
    assert ens.check() < 1e-4
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.device.type == "cpu"
    x = SCENARIOS["cnn"].inputs(2)
    assert torch.equal(again(x), made("cnn")(x))


def test_statistics_come_from_the_device(made):
    x = SCENARIOS["mlp"].inputs(4)
    cpu, gpu = made("mlp").predict(x), made("mlp").to("cuda").predict(x)
    assert gpu.mean.device.type == "cuda"
    assert torch.allclose(cpu.std, gpu.std.cpu(), rtol=1e-3, atol=1e-4)


def test_fitted_statistics_of_weighted_members_are_those_of_the_cpu():
    scores = torch.linspace(0.01, 0.99, 39, dtype=torch.float64)
    for name, task in (("mlp", "classification"), ("mlp", "regression"), ("gaussian", "gaussian")):
        scenario = SCENARIOS[name]
        recipe, example = ensemble.Gaussian(0.3), scenario.inputs(2)
        cpu = ensemble.perturb(seeded(scenario), recipe, members=20, example=example, task=task, live=True)
        cpu.members = dataclasses.replace(cpu.members, mixture=torch.arange(20.0, dtype=torch.float64) / 190)
        own = {"set_score": "aps", "set_scores": scores}
        if task != "classification":
            own = {"interval_score": "normalised", "interval_scores": scores}
        if task == "regression":
            own["noise_variances"] = torch.linspace(0.1, 1, 20, dtype=torch.float64)
        cpu.calibration = Calibration(epistemic=scores / 10, abstain_above=0.5, **own)
        gpu = cpu.to("cuda")
        x = scenario.inputs(4)
        target = cpu.predict(x).mean.argmax(-1) if task == "classification" else cpu.predict(x).mean
        names = list(cpu.available_statistics())
        for options in ({"statistics": names}, {"statistics": ["mean", "log_prob", "ood_score"], "tolerance": 1e-6}):
            one, other = (ens.predict(x, target=target, **options) for ens in (cpu, gpu))
            for key, tensor in other.flat().items():
                assert tensor.device.type == "cuda"
                torch.testing.assert_close(tensor.cpu(), one[key], rtol=1e-3, atol=1e-3)


def _cuda(value):
    match value:
        case torch.Tensor():
            return value.cuda()
        case dict():
            return {key: _cuda(item) for key, item in value.items()}
        case tuple():
            return tuple(map(_cuda, value))
    return value
