import importlib

import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError, ModelError
from ensemble.members import draw
from ensemble.structured import factored_program
from ensemble.variants.grouped import as_rows, evaluate_groups, grouped, loop_groups, pad
from ensemble.vectorised import loop
from tests.reference import call, difference, tensors
from tests.scenarios import SCENARIOS, seeded

# The package has a function of this name.
evaluate_module = importlib.import_module("ensemble.vectorised")
ROWS = (2, 1, 3)
CPU = torch.device("cpu")


def bound(ens, inputs):
    """A call's flat inputs."""
    return call(lambda *args, **kwargs: ens.program.bind(args, kwargs, CPU), inputs)


def groups_of(ens, recipe, members=3):
    """What runs, what is shared, each group's members by itself and all of them together, and each group's rows."""
    weights = {**ens.members.shared, **ens.origin.reference}
    names = recipe.select(weights, ens.origin.reference.keys())
    alone = [
        draw(recipe, ens.program, weights, names, count=members, seed=seed, device=CPU) for seed in range(len(ROWS))
    ]
    program = factored_program(ens.program, alone[0].factored) if alone[0].factored else ens.program
    together = {name: torch.stack([one.stacked[name] for one in alone]) for name in alone[0].stacked}
    return program, alone[0].shared, alone, together


def alike(got, want):
    return max(difference(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("recipe", [ensemble.Gaussian(0.1), ensemble.LowRank(0.1, rank=2)], ids=["dense", "factored"])
def test_each_group_gets_what_its_own_members_give_one_by_one(made, name, recipe):
    ens = made(name)
    rows = [bound(ens, SCENARIOS[name].inputs(count)) for count in ROWS]
    program, shared, alone, weights = groups_of(ens, recipe)
    inputs, counts = pad(rows)
    assert counts == list(ROWS)
    outputs = as_rows(grouped(program, shared, weights, inputs), program.outputs, counts)
    assert not program.looped_because
    assert not program.apart_because
    start = 0
    for own, given in zip(alone, rows, strict=True):
        # The full weights of every member, through the program that knows nothing of factors.
        expected = loop(ens.program, own, given, range(own.count))
        for output, want, spec in zip(outputs, expected, ens.program.outputs, strict=True):
            part = output.narrow(1 + spec.batch_dim, start, given[0].shape[0])
            assert difference(part, want) <= 1e-5
        start += given[0].shape[0]


@pytest.fixture
def mlp(made):
    ens = made("mlp")
    program, shared, _, weights = groups_of(ens, ensemble.LowRank(0.2))
    inputs, _ = pad([[torch.randn(2, 6)] for _ in ROWS])
    return program, shared, weights, inputs


def test_members_of_any_chunk_are_the_same(mlp):
    whole = loop_groups(*mlp)
    for chunk in (None, 0, 1, 2, 5):
        parts = list(evaluate_groups(*mlp, chunk=chunk))
        assert [part[0].shape[1] for part in parts] == {1: [1, 1, 1], 2: [2, 1]}.get(chunk, [3])
        assert alike(grouped(*mlp, chunk=chunk), whole) <= 1e-6


@pytest.mark.parametrize(("fits", "chunks", "at_once"), [(100, [3], 9), (7, [2, 1], 6), (2, [1, 1, 1], 2)])
def test_no_more_activations_than_the_bound_are_made_at_once(mlp, monkeypatch, fits, chunks, at_once):
    program, shared, weights, inputs = mlp
    sizes = []

    original = type(program).__call__

    def watched(self, given, flat):
        # Inside both vmaps a weight hides its dimensions of groups and of members.
        tensor = given["0.bias"]
        while torch._C._functorch.is_batchedtensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        sizes.append(tensor.numel() // 16)
        return original(self, given, flat)

    monkeypatch.setattr(type(program), "__call__", watched)
    monkeypatch.setattr(evaluate_module, "_ACTIVATION_BYTES", fits * program.activation_bytes * 2)
    parts = list(evaluate_groups(program, shared, weights, inputs))
    assert [part[0].shape[1] for part in parts] == chunks
    assert max(sizes) == at_once
    assert alike([torch.cat([part[0] for part in parts], 1)], loop_groups(program, shared, weights, inputs)) <= 1e-6


class Masked(nn.Module):
    """Export takes it, vmap does not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        y = self.layer(x).clone()
        y[y < 0] = 0
        return y


def test_a_model_that_vmap_refuses_is_run_by_the_loop_and_the_reason_is_kept():
    ens = ensemble.perturb(Masked(), ensemble.Gaussian(0.1), members=2, example=torch.randn(2, 3))
    program, shared, alone, weights = groups_of(ens, ensemble.Gaussian(0.1))
    inputs, _ = pad([[torch.randn(2, 3)] for _ in ROWS])
    with pytest.raises(ModelError, match="depends on other values"):
        grouped(program, shared, weights, inputs, chunk=3)
    got = grouped(program, shared, weights, inputs)
    assert "depends on other values" in program.looped_because
    for group, own in enumerate(alone):
        assert alike([got[0][group]], loop(ens.program, own, [inputs[0][group]], range(3))) <= 1e-6


class Signed(nn.Module):
    """Its own code asks for the sign of its rows, which all members share and groups do not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_a_model_that_takes_members_but_no_groups_is_run_group_by_group():
    ens = ensemble.perturb(Signed(), ensemble.Gaussian(0.1), members=2, example=torch.ones(2, 3), live=True)
    program, shared, alone, weights = groups_of(ens, ensemble.Gaussian(0.1))
    inputs = [torch.stack([torch.ones(2, 3), -torch.ones(2, 3), torch.rand(2, 3)])]
    got = grouped(program, shared, weights, inputs)
    assert program.apart_because
    assert not program.looped_because
    for group, own in enumerate(alone):
        assert alike([got[0][group]], loop(program, own, [inputs[0][group]], range(3))) <= 1e-6


def test_a_live_module_takes_groups_too():
    scenario = SCENARIOS["cnn"]
    ens = ensemble.perturb(seeded(scenario), ensemble.Gaussian(0.1), members=2, example=scenario.inputs(2), live=True)
    program, shared, alone, weights = groups_of(ens, ensemble.Gaussian(0.1))
    x = scenario.inputs(2)
    got = grouped(program, shared, weights, [torch.stack([x, 2 * x, 3 * x])])
    assert not program.apart_because
    for group, own in enumerate(alone):
        assert alike([got[0][group]], loop(program, own, [x * (group + 1)], range(3))) <= 1e-5


def test_short_groups_are_filled_with_a_row_of_their_own():
    inputs, counts = pad([[torch.ones(1, 2), torch.tensor([3])], [torch.zeros(3, 2), torch.tensor([0, 1, 2])]])
    assert counts == [1, 3]
    assert torch.equal(inputs[0], torch.stack([torch.ones(3, 2), torch.zeros(3, 2)]))
    assert inputs[1].tolist() == [[3, 3, 3], [0, 1, 2]]


def test_sizes_that_do_not_fit_are_refused(mlp):
    program, shared, weights, inputs = mlp
    with pytest.raises(InputError, match="All weights must begin with"):
        grouped(program, shared, {**weights, "0.bias": weights["0.bias"][:, :2]}, inputs)
    with pytest.raises(InputError, match="of the 3 groups of the weights"):
        grouped(program, shared, weights, [inputs[0][:2]])
    with pytest.raises(InputError, match="however: -1"):
        grouped(program, shared, weights, inputs, chunk=-1)
    with pytest.raises(InputError, match="at least one row"):
        pad([[torch.zeros(0, 2)]])


@pytest.mark.parametrize("bad", [[11, 1], [1, 11], [-1, 1], [1, -1]])
def test_no_group_reads_another_groups_table(bad):
    """Under vmap they lie one behind the other."""
    ens = ensemble.perturb(
        nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)),
        ensemble.Gaussian(0.1),
        members=2,
        example=torch.randint(10, (3, 2)),
    )
    program, shared, _, weights = groups_of(ens, ensemble.Gaussian(0.1))
    weights = {name: tensor[:2] for name, tensor in weights.items()}
    tokens = torch.tensor(bad)[:, None, None].expand(2, 1, 2)
    with pytest.raises(IndexError):
        grouped(program, shared, weights, [tokens])
    assert grouped(program, shared, weights, [tokens.clamp(0, 9)])[0].shape == (2, 3, 1, 3)


def test_outputs_hold_no_gradients_and_groups_do_not_see_each_other(mlp):
    program, shared, weights, inputs = mlp
    before = grouped(program, shared, weights, inputs)[0]
    assert not before.requires_grad
    other = inputs[0].clone()
    other[1] = torch.nan
    after = grouped(program, shared, weights, [other])[0]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert tensors([after[1]])[0].isnan().all()
