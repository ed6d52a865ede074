import threading

import pytest
import torch

import ensemble
from ensemble import LowRank, ModelError, adaptive, vectorised
from ensemble.backends import openvino
from ensemble.backends.declined import Declined
from ensemble.members import Members
from ensemble.planning import measuring
from ensemble.planning.compiled import Compiled
from ensemble.planning.optimize import Step
from ensemble.planning.plan import LOOP, Plan, Trial, Way
from tests.ensemble.test_structured import remade
from tests.reference import alone, call, difference, tensors, worst
from tests.scenarios import SCENARIOS, seeded

# Convolution, recurrence, attention, tied weights, several inputs and outputs.
CONVERTED = ["cnn", "gru", "encoder", "tied", "many_inputs", "many_outputs"]

converts = pytest.mark.skipif(bool(openvino.missing(torch.device("cpu"))), reason="OpenVINO is not there")


def as_if_fastest(ens, compiled):
    """Use a call that was compiled, whatever it gains for such a small model."""
    ens.adopt(compiled)
    trial = Trial(compiled.kind, compiled.chunk, compiled.rows, 0.0, compiled.precision)
    ens._runner._calls[compiled.key] = compiled.call
    ens._runner.plan = ens.plan.with_trial(trial)


@converts
@pytest.mark.parametrize("recipe", [LowRank(scale=0.3), ensemble.Gaussian(scale=0.1)], ids=["factored", "dense"])
@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_call_gives_what_each_members_module_gives(made, workshop, name, recipe):
    scenario, ens = SCENARIOS[name], remade(made(name), recipe, members=6)
    states = [ens.member(index) for index in range(6)]
    ens.measure((1, 4), seconds=0.1)
    # Two calls of three members each, and one padded row more than what is asked.
    as_if_fastest(ens, ens.compile(Step("openvino", 4, 3, "float32"), workshop))
    assert {way.kind for way in ens.plan.ways} == {"openvino"}
    # Fewer rows are padded and cut off again; more are run without it.
    for rows in (1, 3, 4, 5):
        inputs = scenario.inputs(rows)
        assert worst(call(ens, inputs), seeded(scenario), states, inputs) <= 1e-4
    some = call(ens.predict, scenario.inputs(3), statistics=["members"], members=4).flat()
    every = call(ens.predict, scenario.inputs(3), statistics=["members"]).flat()
    for key, values in some.items():
        assert difference(values, every[key][:, :4]) <= 1e-6


@converts
@pytest.mark.parametrize("name", ["mlp", "cnn", "gru"])
def test_members_that_scale_a_product_are_converted_too(made, workshop, name):
    scenario, ens = SCENARIOS[name], remade(made(name), ensemble.Rank1(scale=0.3), members=6)
    ens.measure((3,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 3, 2, "float32"), workshop))
    inputs = scenario.inputs(3)
    states = [ens.member(index) for index in range(6)]
    assert worst(call(ens, inputs), seeded(scenario), states, inputs) <= 1e-5


@converts
def test_what_one_call_gave_is_not_touched_by_the_next(made, workshop):
    ens = remade(made("mlp"), LowRank(scale=0.3))
    ens.measure((2,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 2, len(ens), "float32"), workshop))
    first = SCENARIOS["mlp"].inputs(2)
    second = -first
    kept = tensors(call(ens, first))
    copies = [tensor.clone() for tensor in kept]
    call(ens, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@converts
def test_threads_may_share_a_converted_call(made, workshop):
    ens = remade(made("cnn"), LowRank(scale=0.3))
    ens.measure((2,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 2, len(ens), "float32"), workshop))
    inputs = [torch.randn_like(SCENARIOS["cnn"].inputs(2)) for _ in range(3)]
    expected = [tensors(call(ens, each)) for each in inputs]
    wrong = []

    def ask(number):
        for _ in range(20):
            for got, want in zip(tensors(call(ens, inputs[number])), expected[number], strict=True):
                if difference(got, want) > 1e-6:
                    wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@converts
def test_bfloat16_is_used_where_it_is_good_enough_and_says_how_far_it_is(made, workshop):
    ens = remade(made("mlp"), LowRank(scale=0.3))
    ens.measure((4,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 4, len(ens), "bfloat16"), workshop))
    trial = next(trial for trial in ens.plan.ways[0].trials if trial.compiled)
    assert trial.precision == "bfloat16"
    x = SCENARIOS["mlp"].inputs(4)
    got, want = tensors(call(ens, x)), tensors(call(ens.loop, x))
    assert all(difference(a, b) < 2e-2 for a, b in zip(got, want, strict=True))


@converts
def test_numbers_that_openvino_would_round_are_left_to_pytorch(made, workshop):
    ens = remade(made("mlp"), LowRank(scale=0.3)).to(dtype=torch.float64)
    ens.measure((2,), seconds=0.1)
    with pytest.raises(ModelError, match="OpenVINO does not compute in float64"):
        ens.compile(Step("openvino", 2, len(ens), "float32"), workshop)


def test_a_call_that_gives_other_answers_is_not_used(made):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.5)
    plan, shape = ens.plan, ens(torch.zeros(2, 6)).shape
    wrong = Compiled("openvino", 2, 5, lambda start, inputs: (torch.zeros(shape),))
    with pytest.raises(ModelError, match="for 2 rows that openvino compiled gives other answers; it is not used"):
        ens.adopt(wrong)
    assert ens.plan is plan


def test_a_call_that_is_slower_is_not_used_and_its_time_is_told(made):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.5)

    def slow(start, inputs):
        threading.Event().wait(0.05)
        return (ens(inputs[0], chunk=5),)

    assert ens.adopt(Compiled("openvino", 2, 5, slow)) is False
    way = ens.plan.ways[0]
    assert not way.best.compiled
    tried = next(trial for trial in way.trials if trial.kind == "openvino")
    assert tried.seconds >= 0.05
    assert tried.error < 1e-5


@pytest.mark.parametrize(("compiled", "best"), [(5.0, "loop"), (3.0, "openvino")])
def test_a_machine_that_became_slower_does_not_let_a_way_win_that_lost_before(made, monkeypatch, compiled, best):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.1)
    trials = [Trial("loop", LOOP, 2, 1.0), Trial("vmap", 5, 2, 1.5), Trial("vmap", 2, 2, 1.2)]
    ens._runner.plan = Plan((Way.of(2, trials),))
    # What took one second takes four in the race.
    monkeypatch.setattr(ens._runner, "_race", lambda *_: (compiled, 4.0))
    ens.adopt(Compiled("openvino", 2, 5, lambda start, inputs: (ens(inputs[0], chunk=5),)))
    way = ens.plan.ways[0]
    assert way.best.kind == best
    seconds = {(trial.kind, trial.chunk): trial.seconds for trial in way.trials}
    assert seconds == {("loop", LOOP): 4.0, ("vmap", 5): 6.0, ("vmap", 2): 4.8, ("openvino", 5): compiled}


def test_the_first_round_of_a_race_decides_alone_only_where_one_is_far_ahead(made, monkeypatch):
    runner = made("mlp").to("cpu")._runner
    monkeypatch.setattr("ensemble.planning.runner._TIMING_SECONDS", 0.0)

    def race(*times):
        given = iter(times)
        monkeypatch.setattr("ensemble.planning.runner.timed", lambda *_: next(given))
        return runner._race(None, None)

    assert race(3.0, 2.0, 1.0, 2.5) == (1.0, 2.0)
    assert race(3.0, 1.0) == (3.0, 1.0)


def test_an_ensemble_goes_on_answering_while_a_call_is_compiled(made, workshop):
    ens = remade(made("attention"), LowRank(scale=0.3))
    inputs = SCENARIOS["attention"].inputs(2)
    before, found = tensors(ens(inputs)), []
    thread = threading.Thread(target=lambda: found.append(_compiled_or_why(ens, workshop)))
    thread.start()
    answers = 0
    while thread.is_alive():
        for got, want in zip(tensors(ens(inputs)), before, strict=True):
            assert torch.equal(got, want)
        answers += 1
    assert answers > 5
    assert found


def _compiled_or_why(ens, workshop):
    try:
        return ens.compile(Step("openvino", 2, 5, "float32"), workshop)
    except ModelError as error:
        return error


def test_a_live_module_is_not_compiled(workshop):
    model = torch.nn.Linear(2, 2)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=torch.zeros(2, 2), live=True)
    ens.measure((1,), seconds=0.1)
    assert ens.steps() == []
    with pytest.raises(ModelError, match="without live=True"):
        ens.job(Step("inductor", 1, 2, "float32"))


def test_a_call_that_fails_is_not_used_and_the_error_is_the_librarys(made):
    ens = made("mlp").to("cpu")
    plan = ens.measure((2,), seconds=0.2)

    def failing(start, inputs):
        raise RuntimeError("no such primitive\nand more")

    with pytest.raises(ModelError, match=r"openvino cannot run what it compiled: RuntimeError no such primitive$"):
        ens.adopt(Compiled("openvino", 2, 5, failing))
    assert ens.plan is plan


def test_a_call_that_is_far_from_the_loop_is_not_used_though_the_vmapped_one_is_as_far(made, monkeypatch):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.2)
    call = Compiled("openvino", 2, 5, lambda start, inputs: (ens(inputs[0], chunk=5),))
    monkeypatch.setattr(measuring, "loop", lambda *_: (torch.zeros(4, *ens(torch.zeros(2, 6)).shape[1:]),))
    with pytest.raises(ModelError, match="differs from the loop over members by"):
        ens.adopt(call)


def test_what_a_call_declines_is_run_without_it_from_there_on(made):
    ens = made("mlp").to("cpu")
    x, declining = torch.randn(2, 6), []

    def call(start, inputs):
        if declining and start >= declining[0]:
            raise Declined
        return (ens(inputs[0], chunk=5)[start : start + 1],)

    ens.measure((2,), seconds=0.2)
    as_if_fastest(ens, Compiled("openvino", 2, 1, call))
    want = ens(x, chunk=5)
    for start in (0, 1, 3):
        declining[:] = [start]
        torch.testing.assert_close(ens(x), want)
        torch.testing.assert_close(
            ens.predict(x, statistics=["members"], members=4)["members"], want[:4].transpose(0, 1)
        )


def test_a_call_that_another_thread_has_just_put_away_is_not_missed(made):
    ens = made("mlp").to("cpu")
    ens.measure((2,), seconds=0.2)
    [x] = ens.example(2)
    want = ens(x)
    as_if_fastest(ens, Compiled("openvino", 2, 5, lambda start, inputs: (want,)))
    ens._runner._calls.clear()
    torch.testing.assert_close(ens(x), want)


@pytest.mark.parametrize("rows", [8, 9, 2000])
def test_activations_are_bounded_for_more_rows_than_were_measured(made, monkeypatch, rows):
    ens = remade(made("mlp"), LowRank(scale=0.3), members=256)
    compiled, eager = Trial("inductor", 256, 8, 1e-3), Trial("vmap", 128, 8, 2e-3)
    ens._runner.plan = Plan((Way.of(8, [compiled, eager]),))
    monkeypatch.setattr(vectorised, "_ACTIVATION_BYTES", ens.running.activation_bytes * 2000 * 6)
    sizes, cut = [], Members.slice

    def slice(self, start, stop):
        sizes.append(stop - start)
        return cut(self, start, stop)

    monkeypatch.setattr(Members, "slice", slice)
    asked, run = [], adaptive.evaluate

    def evaluate(*arguments, chunk, **options):
        asked.append(chunk)
        return run(*arguments, chunk=chunk, **options)

    monkeypatch.setattr(adaptive, "evaluate", evaluate)
    x = torch.randn(rows, 6)
    most = 6 if rows == 2000 else 128
    got = ens(x)
    assert max(sizes) == most
    # With a tolerance members are run apart from those before them.
    ens.predict(x, tolerance=1e-9)
    assert set(asked) == {most}
    for index in (0, 127, 255):
        [want] = alone(seeded(SCENARIOS["mlp"]), ens.member(index), x)
        assert difference(got[index], want) <= 1e-4


def test_a_loop_that_was_fastest_stays_one_for_more_rows(made):
    ens = made("mlp").to("cpu")
    ens._runner.plan = Plan((Way.of(2, [Trial("loop", LOOP, 2, 1e-3)]),))
    assert ens._runner.eager_chunk([torch.zeros(1, 6)]) == ens._runner.eager_chunk([torch.zeros(2000, 6)]) == LOOP
