"""Statistics of members that somebody else evaluated."""

import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError
from ensemble.condense import Running, condense
from ensemble.vectorised import loop
from tests.scenarios import SCENARIOS, seeded

N, ROWS = 9, 4


@pytest.fixture(scope="module")
def ens():
    scenario = SCENARIOS["mlp"]
    recipe, example = ensemble.Gaussian(0.3), scenario.inputs(2)
    return ensemble.perturb(seeded(scenario), recipe, members=N, example=example, task="classification", live=True)


def test_members_come_in_any_chunks_from_anywhere(ens):
    x, y = SCENARIOS["mlp"].inputs(ROWS), torch.arange(ROWS)
    names = list(ens.available_statistics())
    mixture = torch.arange(1.0, N + 1, dtype=torch.float64) / 45
    asked = ens.outputs.asked(names, ROWS, mixture=mixture, target=y)
    one_by_one = (loop(ens.program, ens.members, [x], [index]) for index in range(N))
    got = condense(asked, one_by_one)
    want = condense(asked, [loop(ens.program, ens.members, [x], range(N))])
    assert list(got) == ["output"]
    assert list(got["output"]) == names
    for name, tensor in want["output"].items():
        torch.testing.assert_close(got["output"][name], tensor, rtol=1e-5, atol=1e-6)
    equal = condense(ens.outputs.asked(names, ROWS, target=y), [loop(ens.program, ens.members, [x], range(N))])
    assert not torch.allclose(equal["output"]["mean"], want["output"]["mean"], atol=1e-4)
    for name, tensor in ens.predict(x, statistics=names, target=y).flat().items():
        torch.testing.assert_close(equal["output"][name], tensor, rtol=1e-5, atol=1e-6)


def test_some_rows_go_on_alone(ens):
    x, y = SCENARIOS["mlp"].inputs(ROWS), torch.arange(ROWS)
    names = [name for name, s in ens.available_statistics().items() if not s.keeps_members]
    running = Running(ens.outputs.asked(names, ROWS, target=y), judged=True)
    running.update(loop(ens.program, ens.members, [x], range(4)))
    index = torch.tensor([3, 1])
    some = running.rows(index)
    some.update(loop(ens.program, ens.members, [x[index]], range(4, N)))
    assert (running.count, some.count, some.weight) == (4, N, N)
    want = ens.predict(x[index], statistics=[*names, "standard_error"], target=y[index])
    for name, tensor in some.finish()["output"].items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some.standard_error.float(), want.standard_error.amax(-1), rtol=1e-5, atol=1e-6)
    first = ens.predict(x, statistics=names, members=4, target=y)
    for name, tensor in running.finish()["output"].items():
        torch.testing.assert_close(tensor, first[name], rtol=1e-5, atol=1e-6)


class Lengths(nn.Module):
    """As many outputs as inputs, whatever their number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


def test_a_target_of_another_size_than_the_outputs_of_this_call_is_refused():
    ens = ensemble.perturb(
        Lengths(), ensemble.Gaussian(0.3), members=3, example=torch.zeros(2, 5), task="regression", noise_variance=1.0,
        live=True,
    )  # fmt: skip
    x = torch.zeros(2, 5)
    asked = ens.outputs.asked(["log_prob"], 2, target=torch.zeros(2, 5))
    assert condense(asked, [(torch.zeros(3, 2, 5),)])["output"]["log_prob"].shape == (2, 5)
    with pytest.raises(InputError, match=r"The target must have the shape \[2, 1\], however: \[2, 5\]"):
        condense(asked, [(torch.zeros(3, 2, 1),)])
    assert ens.predict(x, statistics=["log_prob"], target=x).log_prob.shape == (2, 5)
