import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError, ModelError
from ensemble import vectorised as module
from ensemble.vectorised import default_chunk, evaluate
from tests.reference import call, difference, tensors, worst
from tests.scenarios import SCENARIOS, seeded

LIVE = [name for name, scenario in SCENARIOS.items() if scenario.live]
RECURRENT = [name for name, scenario in SCENARIOS.items() if not scenario.live]


@pytest.mark.parametrize("name", SCENARIOS)
def test_chunks_of_any_size_give_the_same(made, name):
    ens, inputs = made(name), SCENARIOS[name].inputs(2)
    whole = tensors(call(ens, inputs))
    for chunk in (0, 1, 3, 5):
        for many, some in zip(whole, tensors(call(ens, inputs, chunk=chunk)), strict=True):
            assert difference(some, many) <= 1e-5


def test_a_chunk_of_less_than_no_members_is_refused(made):
    with pytest.raises(InputError, match="chunk must be a number of members, or 0 for the loop, however: -1"):
        made("mlp")(torch.zeros(1, 6), chunk=-1)


def live(name):
    scenario = SCENARIOS[name]
    recipe = ensemble.Gaussian(scale=0.1, include=scenario.include)
    return ensemble.perturb(seeded(scenario), recipe, members=5, seed=3, example=scenario.inputs(3), live=True)


@pytest.mark.parametrize("name", LIVE)
def test_a_live_module_gives_what_its_copies_give(made, name):
    scenario, ens = SCENARIOS[name], live(name)
    for rows in (1, 2, 7):
        inputs = scenario.inputs(rows)
        states = [ens.member(index) for index in range(5)]
        assert worst(call(ens, inputs, chunk=3), seeded(scenario), states, inputs) <= 1e-5
    for index in (0, 4):
        exported, mine = made(name).member(index), ens.member(index)
        # A live module does not tell which of its weights it reads, so all are perturbed.
        assert all(torch.equal(mine[key], exported[key]) for key in made(name).members.stacked)
    with pytest.raises(ModelError, match="make it without live=True"):
        ens.save("never-written")


@pytest.mark.parametrize("name", RECURRENT)
def test_a_live_recurrent_layer_which_vmap_refuses_is_run_by_the_loop_and_the_reason_is_kept(name):
    scenario, ens = SCENARIOS[name], live(name)
    assert "cannot run for many members at once" in ens.looped_because
    assert "without live=True" in ens.looped_because
    assert "\n" not in ens.looped_because
    inputs = scenario.inputs(2)
    assert worst(call(ens, inputs), seeded(scenario), [ens.member(i) for i in range(5)], inputs) <= 1e-5
    plan = ens.measure((1, 2), seconds=0.2)
    assert {way.kind for way in plan.ways} == {"loop"}
    with pytest.raises(ModelError, match="cannot run for many members at once"):
        call(ens, inputs, chunk=2)


class Masked(nn.Module):
    """A common idiom that export takes and vmap does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        y = self.layer(x).clone()
        y[y < 0] = 0
        return y


def test_an_exported_model_that_vmap_refuses_is_run_by_the_loop_saved_and_loaded(tmp_path):
    model, x = Masked(), torch.randn(3, 3)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=4, example=x)
    assert worst(ens(x), model, [ens.member(i) for i in range(4)], x) <= 1e-5
    assert "depends on other values" in ens.looped_because
    assert ens.check() == 0
    ens.save(tmp_path / "m")
    assert torch.equal(ensemble.load(tmp_path / "m")(x), ens(x))


def test_a_live_module_follows_a_dtype_and_keeps_its_own_copy():
    model = seeded(SCENARIOS["mlp"])
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=torch.randn(2, 6), live=True)
    x = torch.randn(4, 6)
    double = ens.to(dtype=torch.float64)
    assert double(x).dtype == torch.float64
    assert float((double(x) - ens(x)).abs().max()) < 1e-6
    assert double.program.exclusively() is not ens.program.exclusively()


@pytest.fixture
def restless():
    """Threads take turns a thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("chunk", [0, 1, 2, None])
def test_threads_get_what_they_get_alone(made, restless, chunk):
    ens = made("cnn")
    inputs = [torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    expected = [ens(x, chunk=chunk) for x in inputs]
    start = threading.Barrier(8)

    def ask(number):
        start.wait()
        return all(torch.equal(ens(inputs[number], chunk=chunk), expected[number]) for _ in range(8))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_two_ensembles_in_threads_leave_the_settings_of_the_process_as_they_were(made):
    ensembles = [made("encoder"), made("attention"), made("mlp"), made("tied")]
    inputs = [SCENARIOS[name].inputs(2) for name in ("encoder", "attention", "mlp", "tied")]
    filters = list(warnings.filters)
    assert torch.backends.mha.get_fastpath_enabled()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: [call(ensembles[i], inputs[i]) for _ in range(10)], range(4)))
    assert torch.backends.mha.get_fastpath_enabled()
    assert warnings.filters == filters
    assert module._calls == 0


def test_a_first_call_in_many_threads_does_not_read_another_threads_weights():
    # The size of activations is found in the first call, while others may be inside the skeleton.
    model = seeded(SCENARIOS["mlp"])
    x = torch.randn(2, 6)
    for _ in range(3):
        ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=4, example=x).to(dtype=torch.float64)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, ens=ens: ens(x), range(16)))
        assert all(torch.equal(result, results[0]) for result in results)


def test_the_default_chunk_keeps_activations_below_a_bound(made, monkeypatch):
    ens = made("mlp")
    monkeypatch.setattr(module, "_ACTIVATION_BYTES", 2 * ens.program.activation_bytes)
    assert default_chunk(ens.program, ens.members, [torch.zeros(1, 6)]) == 2
    assert default_chunk(ens.program, ens.members, [torch.zeros(1000, 6)]) == 1
    monkeypatch.setattr(module, "_ACTIVATION_BYTES", 2**40)
    assert default_chunk(ens.program, ens.members, [torch.zeros(1, 6)]) == 5


def test_members_are_yielded_in_order_and_no_more_than_asked(made):
    ens, x = made("mlp"), torch.randn(2, 6)
    parts = [outputs[0] for outputs in evaluate(ens.program, ens.members, [x], count=4, chunk=3)]
    assert sum(len(part) for part in parts) == 4
    assert difference(torch.cat(parts), ens(x)[:4]) <= 1e-6


def test_shared_layers_run_once_and_their_gradients_are_not_kept(made):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.body(x)
            shapes.append(tuple(hidden.shape))
            return self.head(hidden)

    shapes: list[tuple[int, ...]] = []
    ens = ensemble.perturb(
        Counted(), ensemble.Gaussian(0.1, include="head.*"), members=6, example=torch.randn(2, 4), live=True
    )
    shapes.clear()
    y = ens(torch.randn(3, 4), chunk=6)
    assert shapes == [(3, 4)]
    assert not y.requires_grad


def test_a_slow_fallback_does_not_warn(made, capfd):
    call(made("volumes"), SCENARIOS["volumes"].inputs(2))
    assert capfd.readouterr().err == ""
