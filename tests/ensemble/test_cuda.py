"""What must hold on a CUDA device. Skipped where there is none."""

import pytest
import torch

import ensemble
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


def _cuda(value):
    match value:
        case torch.Tensor():
            return value.cuda()
        case dict():
            return {key: _cuda(item) for key, item in value.items()}
        case tuple():
            return tuple(map(_cuda, value))
    return value
