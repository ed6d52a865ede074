import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ensemble
from ensemble import LowRank, ModelError, vectorised
from ensemble.planning import measuring, planned
from ensemble.planning.measuring import RealBatch, candidates, measure
from ensemble.planning.plan import LOOP
from tests.ensemble.test_structured import remade
from tests.reference import difference
from tests.scenarios import SCENARIOS

BOUND = 1e-4


class Batch:
    """Runs for so many seconds of a clock of its own: with each chunk, and for one member of the loop.

    Args:
        costs: of all members, by chunk.
        errors: by chunk, of those that give other answers.
        refused: whether vmap refuses the model.
    """

    rows, members, compared = 3, 8, 4

    def __init__(self, monkeypatch, costs, errors=(), refused=False):
        self.costs, self.errors, self.refused = costs, dict(errors), refused
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def run(self, chunk):
        if self.refused and chunk != LOOP:
            raise ModelError("it branches")
        self.asked.append(chunk)
        self.now += self.costs[chunk]
        return [chunk]

    def loop_compared(self):
        self.loop_others()
        return [LOOP]

    def loop_others(self):
        self.asked.append("some")
        self.now += self.costs[LOOP] * self.compared / self.members

    def error(self, outputs):
        return self.errors.get(outputs[0], 0.0)


def test_the_fastest_candidate_is_chosen(monkeypatch):
    way = measure(Batch(monkeypatch, {8: 3.0, LOOP: 4.0, 4: 1.0, 2: 2.0}), [8, LOOP, 4, 2], BOUND, 1000)
    assert (way.rows, way.kind, way.chunk) == (3, "vmap", 4)
    assert {trial.chunk: trial.seconds for trial in way.trials} == pytest.approx({8: 3.0, LOOP: 4.0, 4: 1.0, 2: 2.0})


def test_the_loop_is_chosen_where_it_is_fastest(monkeypatch):
    batch = Batch(monkeypatch, {8: 3.0, LOOP: 1.0, 4: 3.0})
    way = measure(batch, [8, LOOP, 4], BOUND, 1000)
    assert (way.kind, way.chunk) == ("loop", LOOP)
    assert way.seconds == way.loop_seconds == pytest.approx(1.0)
    assert batch.asked.count(LOOP) > 1


@pytest.mark.parametrize(("seconds", "whole"), [(1000, 1), (150, 0)])
def test_a_hopeless_candidate_is_run_once_and_a_hopeless_loop_on_some_members_if_time_is_short(
    monkeypatch, seconds, whole
):
    batch = Batch(monkeypatch, {8: 1.0, LOOP: 40.0, 4: 5.0})
    way = measure(batch, [8, LOOP, 4], BOUND, seconds)
    assert batch.asked.count(4) == 1
    assert batch.asked.count(8) > 1
    assert batch.asked.count(LOOP) == whole
    assert way.loop_seconds == pytest.approx(40.0)


@pytest.mark.parametrize("seconds", [0.0, 10 / 7])
def test_the_loop_is_tried_though_the_time_was_spent_on_the_first_candidate(monkeypatch, seconds):
    batch = Batch(monkeypatch, {8: 1.5, LOOP: 0.5, 4: 0.1})
    way = measure(batch, [8, LOOP, 4], BOUND, seconds)
    assert batch.asked == [8, "some", "some"]
    assert (way.kind, way.loop_seconds) == ("loop", pytest.approx(0.5))


def test_a_loop_for_which_there_is_no_time_is_timed_on_some_members(monkeypatch):
    batch = Batch(monkeypatch, {8: 1000.0, LOOP: 900.0})
    way = measure(batch, [8, LOOP], BOUND, 2000)
    assert LOOP not in batch.asked
    assert (way.kind, way.seconds) == ("loop", pytest.approx(900.0))


def test_a_candidate_that_gives_other_answers_is_not_used(monkeypatch, caplog):
    batch = Batch(monkeypatch, {8: 1.0, LOOP: 9.0, 4: 2.0}, errors={8: 0.2, 4: 1e-5})
    with caplog.at_level(logging.WARNING, measuring.log.name):
        way = measure(batch, [8, LOOP, 4], BOUND, 1000)
    assert [(trial.chunk, trial.error) for trial in way.trials] == [(4, 1e-5), (LOOP, 0.0)]
    assert "vmap with 8 members at a time is not used for 3 rows: it differs" in caplog.text
    assert "by 0.2" in caplog.text


@pytest.mark.parametrize("error", [0.2, float("inf")])
def test_a_model_that_no_way_runs_right_is_refused(monkeypatch, error):
    batch = Batch(monkeypatch, {8: 1.0, LOOP: 9.0}, errors={8: 0.5, LOOP: error})
    with pytest.raises(ModelError, match=rf"3 rows .* the nearest differs by {min(error, 0.5)} \(bound 0.0001\)"):
        measure(batch, [8, LOOP], BOUND, 1000)


def test_where_vmap_refuses_the_model_there_is_the_loop(monkeypatch):
    way = measure(Batch(monkeypatch, {8: 1.0, LOOP: 9.0, 4: 1.0}, refused=True), [8, LOOP, 4], BOUND, 0)
    assert [trial.kind for trial in way.trials] == ["loop"]


@pytest.mark.parametrize(("members", "most"), [(1, 5), (2, 2), (3, 100), (128, 128), (128, 10), (100_000, 50_000)])
def test_candidates_are_chunks_that_fit_and_the_loop(members, most):
    found = candidates(members, most)
    assert LOOP in found[:2]
    assert len(set(found)) == len(found)
    assert all(chunk == LOOP or 1 <= chunk <= min(members, most) for chunk in found)
    assert found[0] == min(members, most)


@pytest.mark.parametrize("members", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_what_is_compared_are_members_answers_whichever_way_they_were_run(made, name, members):
    ens = remade(made(name), LowRank(scale=0.3), members=members)
    inputs = ens.example(3)
    batch = RealBatch(ens.running, ens.program, ens.members, inputs)
    assert (batch.rows, batch.members, batch.compared) == (3, members, min(4, members))
    want = ens.loop(*inputs)[{1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 7: [0, 2, 4, 6]}[members]]
    for got in (batch.loop_compared(), *map(batch.run, batch.chunks()), batch.run(3)):
        assert difference(got[0], want) <= 1e-5
        assert batch.error(got) <= 1e-5
    assert batch.error([want + 0.5 * want.abs().max()]) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("members", "groups"), [(3, [(0, 3), (0, 3)]), (9, [(0, 4), (4, 8), (0, 4)])])
def test_a_loop_on_some_members_takes_others_each_time(made, monkeypatch, members, groups):
    ens = remade(made("mlp"), LowRank(scale=0.3), members=members)
    batch = RealBatch(ens.running, ens.program, ens.members, ens.example(2))
    ran, run = [], measuring.evaluate

    def evaluate(program, some, inputs, *, chunk):
        assert chunk == LOOP
        for outputs in run(program, some, inputs, chunk=chunk):
            ran.append(outputs[0])
            yield outputs

    monkeypatch.setattr(measuring, "evaluate", evaluate)
    for _ in groups:
        batch.loop_others()
    want = ens.loop(*ens.example(2))
    for got, (start, stop) in zip(ran, groups, strict=True):
        assert difference(got, want[start:stop]) <= 1e-5


def test_what_is_no_number_is_as_far_as_can_be_unless_the_loop_has_it_too(made):
    ens = made("mlp").to("cpu")
    [x] = ens.example(2)
    x[1] = float("nan")
    batch = RealBatch(ens.running, ens.program, ens.members, [x])
    [got] = batch.run(5)
    assert got[:, 1].isnan().all()
    assert batch.error([got]) <= 1e-5
    assert batch.error([got.nan_to_num(0.0)]) == float("inf")
    assert batch.error([torch.full_like(got, float("nan"))]) == float("inf")


def test_an_ensemble_runs_as_it_was_measured_and_answers_the_same(made):
    ens = made("cnn").to("cpu")
    x = torch.randn(5, 2, 8, 8)
    before = ens(x)
    told = []
    plan = ens.measure((1, 4, 8), seconds=5, progress=told.append)
    assert [way.rows for way in plan.ways] == told == [1, 4, 8]
    assert ens.plan is plan
    assert all(way.seconds <= way.loop_seconds for way in plan.ways)
    assert all(0 <= trial.error <= 1e-5 for way in plan.ways for trial in way.trials)
    torch.testing.assert_close(ens(x), before, rtol=1e-5, atol=1e-6)
    assert ens.check() < 1e-5


def test_sizes_for_which_no_time_is_left_are_run_as_the_largest_that_was_measured(made):
    ens = made("cnn").to("cpu")
    [way] = ens.measure((1, 2, 4, 8, 16, 32, 64), seconds=0).ways
    assert way.seconds <= way.loop_seconds
    assert ens(torch.randn(9, 2, 8, 8)).shape[:2] == (5, 9)


def test_a_model_whose_vmapped_answers_are_wrong_is_run_by_the_loop(made, monkeypatch):
    right = vectorised._vmapped

    def wrong(*arguments):
        for outputs in right(*arguments):
            yield tuple(output + 1 for output in outputs)

    monkeypatch.setattr(vectorised, "_vmapped", wrong)
    ens = remade(made("mlp"), LowRank(scale=0.3), members=6)
    plan = ens.measure((1, 4), seconds=1)
    assert {trial.kind for way in plan.ways for trial in way.trials} == {"loop"}
    x = SCENARIOS["mlp"].inputs(4)
    assert difference(ens(x), ens.loop(x)) <= 1e-5
    assert ens.check() <= 1e-5


def test_an_ensemble_that_no_way_runs_right_is_not_measured(made, monkeypatch):
    ens = made("mlp").to("cpu")
    exact = measuring.loop
    monkeypatch.setattr(measuring, "loop", lambda *of: tuple(2 * output for output in exact(*of)))
    with pytest.raises(ModelError, match="No way of running 1 rows gives what the loop over members gives"):
        ens.measure((1,), seconds=0.1)
    assert ens.plan is None


@pytest.mark.parametrize(
    ("device", "convolutions", "bound"), [("cpu", True, 1e-4), ("cuda", False, 1e-4), ("cuda", True, 1e-2)]
)
def test_how_near_ways_must_be_follows_what_the_device_may_round(monkeypatch, device, convolutions, bound):
    made = ensemble.perturb(nn.Linear(2, 2), ensemble.Gaussian(scale=0.1), members=2, example=torch.ones(1, 2))
    monkeypatch.setattr(planned, "tf32_allowed", lambda: (False, convolutions))
    monkeypatch.setattr(type(made), "device", torch.device(device))
    assert made._bound == bound
