import subprocess
import sys

import pytest
import torch
from torch.func import stack_module_state

import ensemble
from tests.reference import alone, call, difference, tensors
from tests.scenarios import SCENARIOS, mlp, seeded


def modules(name, made):
    """Every member as a module of its own."""
    found = []
    for index in range(len(made(name))):
        module = seeded(SCENARIOS[name])
        module.load_state_dict(made(name).member(index))
        found.append(module.eval())
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_stacked_weights_are_laid_out_as_stack_module_state_does(made, name):
    parameters, buffers = stack_module_state(modules(name, made))
    reference = {**parameters, **buffers}
    members = made(name).members
    for key, stacked in members.stacked.items():
        assert torch.equal(stacked, reference[key])
        assert stacked.is_contiguous()
    for key, shared in members.shared.items():
        if key in reference:
            assert torch.equal(shared.expand(reference[key].shape), reference[key])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_members_state_dict_is_complete_and_its_own(made, name):
    ens, model = made(name), seeded(SCENARIOS[name])
    state = ens.member(2)
    assert list(state) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert (state[key].shape, state[key].dtype) == (tensor.shape, tensor.dtype)
        perturbed = ens.program.aliases.get(key, key) in ens.members.stacked and bool(tensor.any())
        assert torch.equal(state[key], tensor) != perturbed
    for tensor in state.values():
        tensor.zero_()
    assert any(bool(tensor.any()) for tensor in ens.member(2).values())


def test_tied_weights_are_one_weight(made):
    ens = made("tied")
    assert sorted(ens.members.stacked) == ["body.bias", "body.weight", "embed.weight"]
    state = ens.member(1)
    assert torch.equal(state["out.weight"], state["embed.weight"])
    assert torch.equal(state["again.bias"], state["body.bias"])


def test_what_the_recipe_does_not_choose_is_shared(made):
    ens = made("some")
    assert sorted(ens.members.stacked) == ["3.bias", "3.weight"]
    assert sorted(ens.members.shared) == ["0.bias", "0.weight"]
    assert ens.members.nbytes == 4 * (5 * (16 * 4 + 4) + 6 * 16 + 16)


@pytest.mark.parametrize("index", [-1, 5, 100])
def test_there_is_no_member_beyond_the_last(made, index):
    with pytest.raises(IndexError, match=r"Members are 0 .. 4, however"):
        made("mlp").member(index)


def test_a_member_is_the_same_whatever_the_number_of_members_and_the_slices(monkeypatch, tmp_path):
    model, x = seeded(SCENARIOS["mlp"]), torch.randn(2, 6)
    recipe = ensemble.Gaussian(0.1)
    few = ensemble.perturb(model, recipe, members=20, seed=9, example=x)
    many = ensemble.perturb(model, recipe, members=2000, seed=9, example=x)
    monkeypatch.setattr("ensemble.members._SLICE_BYTES", 4 * 96 * 3)
    sliced = ensemble.perturb(model, recipe, members=20, seed=9, example=x)
    few.save(tmp_path / "m")
    loaded = ensemble.load(tmp_path / "m")
    other = ensemble.perturb(model, recipe, members=20, seed=10, example=x)
    for name, weight in model.named_parameters():
        member = few.member(17)[name]
        for same in (many, sliced, loaded):
            assert torch.equal(same.member(17)[name], member)
        assert torch.equal(recipe.draw(name, weight, 9, range(17, 18))[0], member)
        assert not torch.equal(other.member(17)[name], member)
        assert not torch.equal(few.member(16)[name], member)


def test_a_member_is_the_same_in_another_process_with_other_threads(tmp_path):
    code = """
import sys, hashlib, torch, ensemble
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3))
members = int(sys.argv[2])
ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=members, seed=4, example=torch.zeros(1, 300), live=True)
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in ens.member(17).values())).hexdigest())
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, *settings], stdout=subprocess.PIPE, text=True)
        for settings in (("1", "18"), ("2", "40"))
    ]
    digests = {run.communicate()[0] for run in runs}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "tied", "many_inputs", "norms", "odd"])
def test_separately_trained_models_answer_as_themselves(name):
    scenario = SCENARIOS[name]
    models = [seeded(scenario, seed) for seed in range(3)]
    models[1].eval()
    ens = ensemble.stack(models, example=scenario.inputs(2))
    assert [model.training for model in models] == [True, False, True]
    inputs = scenario.inputs(4)
    outputs = tensors(call(ens, inputs))
    for index, model in enumerate(models):
        for many, one in zip(outputs, alone(model, model.state_dict(), inputs), strict=True):
            assert difference(many[index], one) <= 1e-5
        state, trained = ens.member(index), model.state_dict()
        assert all(torch.equal(state[key], trained[key]) for key in ens.members.stacked if key in trained)


def test_weights_that_are_equal_in_all_models_are_shared():
    models = [mlp() for _ in range(3)]
    for model in models[1:]:
        model[0].load_state_dict(models[0][0].state_dict())
    ens = ensemble.stack(models, example=torch.zeros(2, 6))
    assert sorted(ens.members.shared) == ["0.bias", "0.weight"]
    assert sorted(ens.members.stacked) == ["3.bias", "3.weight"]


# The bytes that the process may have beyond those of the stack, as a share of it.
PEAK = """
import resource, torch, ensemble
from torch import nn
model = nn.Sequential(nn.Linear({width}, {width}, bias=False), nn.Linear({width}, 4))
x = torch.zeros(2, {width})
# Export loads much of PyTorch, which is none of the stack's memory.
ensemble.perturb(nn.Linear(2, 2), ensemble.Gaussian(0.1), members=2, example=torch.zeros(2, 2))
models = [nn.Sequential(nn.Linear({width}, {width}, bias=False), nn.Linear({width}, 4)) for _ in range({stacked})]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if models:
    ens = ensemble.stack(models, example=x)
else:
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members={members}, example=x)
peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(peak / ens.members.nbytes, ens.members.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
@pytest.mark.parametrize(("width", "members", "stacked"), [(1500, 33, 0), (2048, 0, 18)], ids=["perturb", "stack"])
def test_the_peak_of_memory_while_building_is_near_the_size_of_the_stack(width, members, stacked):
    code = PEAK.format(width=width, members=members, stacked=stacked)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[1]) > 280
    assert float(out[0]) < 1.5
