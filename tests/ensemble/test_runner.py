import shutil
import threading

import pytest
import torch

import ensemble
from ensemble import LowRank, ModelError
from ensemble.compiled import chunk_for
from ensemble.runner import Compiled
from tests.ensemble.test_structured import remade
from tests.reference import call, tensors, worst
from tests.scenarios import SCENARIOS, seeded

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@compiler
@pytest.mark.parametrize("name", ["cnn", "gru", "attention", "many_outputs", "switch"])
def test_a_compiled_call_gives_what_each_members_module_gives(made, name):
    scenario, ens = SCENARIOS[name], remade(made(name), LowRank(scale=0.3), members=6)
    states = [ens.member(index) for index in range(6)]
    ens.measure((1, 4), seconds=0.5)
    compiled = ens.compile(4)
    # As if it were the fastest, whatever it is for such a small model.
    ens._runner.adopt(compiled, ens.example(4), 1e-5)
    ens._runner._calls[4, compiled.chunk] = compiled.call
    ens._runner.plan = ens.plan.with_compiled(4, compiled.chunk, 0.0)
    assert {way.kind for way in ens.plan.ways} == {"compiled"}
    # Fewer rows are padded and cut off again; more are run without it.
    for rows in (1, 3, 4, 5):
        inputs = scenario.inputs(rows)
        assert worst(call(ens, inputs), seeded(scenario), states, inputs) <= 1e-5
    some = call(ens.predict, scenario.inputs(3), statistics=["members"], members=4).flat()
    every = call(ens.predict, scenario.inputs(3), statistics=["members"]).flat()
    for name, values in some.items():
        assert torch.equal(values, every[name][:, :4])


@compiler
def test_an_ensemble_goes_on_answering_while_a_call_is_compiled(made):
    ens = remade(made("attention"), LowRank(scale=0.3))
    inputs = SCENARIOS["attention"].inputs(2)
    before, found = tensors(ens(inputs)), []
    thread = threading.Thread(target=lambda: found.append(ens.compile(2)))
    thread.start()
    answers = 0
    while thread.is_alive():
        for got, want in zip(tensors(ens(inputs)), before, strict=True):
            assert torch.equal(got, want)
        answers += 1
    assert answers > 5
    assert isinstance(found[0], Compiled)


def test_a_call_that_gives_other_answers_is_not_used(made):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.5)
    plan = ens.plan
    wrong = Compiled(2, 5, lambda own, inputs: (torch.zeros(5, 2, 3),))
    shape = ens(torch.zeros(2, 6)).shape
    wrong = Compiled(2, 5, lambda own, inputs: (torch.zeros(shape),))
    with pytest.raises(ModelError, match="for 2 rows gives other answers; it is not used"):
        ens.adopt(wrong)
    assert ens.plan is plan


def test_a_call_that_is_slower_is_not_used(made):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.5)

    def slow(own, inputs):
        threading.Event().wait(0.05)
        return (ens(inputs[0], chunk=5),)

    assert ens.adopt(Compiled(2, 5, slow)) is False
    assert ens.plan.ways[0].kind != "compiled"


def test_no_compiler_is_said_in_one_sentence(made, monkeypatch):
    def broken(*_):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore\nlines")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    with pytest.raises(ModelError, match="cannot be compiled here: InvalidCxxCompiler: No working C") as caught:
        made("mlp").compile(2)
    assert "\n" not in str(caught.value)


def test_a_live_module_is_not_compiled():
    model = torch.nn.Linear(2, 2)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=torch.zeros(2, 2), live=True)
    with pytest.raises(ModelError, match="without live=True"):
        ens.compile(2)


@pytest.mark.parametrize(("members", "rows"), [(1, 1), (128, 1), (128, 10**6), (97, 64), (60, 300)])
def test_a_compiled_chunk_divides_the_members(made, members, rows):
    program = made("cnn").program
    chunk = chunk_for(program, members, rows)
    assert members % chunk == 0
    assert chunk == 1 or chunk * rows * program.activation_bytes <= 16 * 2**20
