"""Fewer members, against a loop over rows and members that knows nothing of chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ensemble
from ensemble import adaptive
from ensemble.adaptive import FIRST, checkpoints
from ensemble.planning.plan import Plan, Trial, Way
from tests.scenarios import SCENARIOS, seeded

N, ROWS = 100, 8


def built(task="classification", name="mlp", members=N):
    scenario = SCENARIOS[name]
    model, recipe = seeded(scenario), ensemble.Gaussian(0.4)
    args = scenario.inputs(2)
    made = ensemble.perturb(model, recipe, members=members, example=args, task=task, live=True)
    return made, scenario.inputs(ROWS)


def errors(ens, x) -> np.ndarray:
    """The standard error of the mean after 1 .. N members, (N, rows): the largest over classes."""
    values = ens(x).double()
    values = (values.softmax(-1) if ens.task == "classification" else values).numpy()
    return np.stack([np.sqrt(values[:n].var(0) / n).max(-1) for n in range(1, len(values) + 1)])


def needed(after: np.ndarray, tolerance: float) -> list[int]:
    """How many members each row needs, one row after the other."""
    return [
        next((n for n in checkpoints(len(after)) if after[n - 1, row] <= tolerance), len(after))
        for row in range(after.shape[1])
    ]


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("chunk", [None, 0, 7])
def test_each_row_gets_as_many_members_as_its_mean_needs_and_no_more(task, chunk):
    ens, x = built(task)
    after = errors(ens, x)
    # Some rows are done early, some late, some never.
    for tolerance in np.quantile(after[[23, 63, N - 1]], [0.1, 0.3, 0.5, 0.9]):
        p = ens.predict(x, tolerance=float(tolerance), chunk=chunk, statistics=["mean", "std", "standard_error"])
        assert p.counts.tolist() == needed(after, tolerance)
        assert p.count == max(p.counts)
        for row, count in enumerate(p.counts.tolist()):
            alone = ens.predict(x[row : row + 1], members=count, statistics=["mean", "std", "standard_error"])
            for name, tensor in alone.flat().items():
                torch.testing.assert_close(p[name][row : row + 1], tensor, rtol=1e-5, atol=1e-6)
            if count < N:
                assert p.standard_error[row].max() <= tolerance * (1 + 1e-6)
    assert len(set(needed(after, np.quantile(after[[23, 63, N - 1]], 0.5)))) > 2


def test_what_shares_a_batch_and_what_is_asked_for_change_nothing():
    ens, x = built()
    tolerance = float(np.quantile(errors(ens, x)[40], 0.5))
    whole = ens.predict(x, tolerance=tolerance)
    assert len(set(whole.counts.tolist())) > 1
    order = torch.tensor([3, 0, 7, 1])
    some = ens.predict(x[order], tolerance=tolerance)
    assert some.counts.tolist() == whole.counts[order].tolist()
    for name, tensor in some.flat().items():
        torch.testing.assert_close(tensor, whole[name][order], rtol=1e-5, atol=1e-6)
    assert ens.predict(x, tolerance=tolerance, statistics=["label"]).counts.tolist() == whole.counts.tolist()


def test_every_statistic_that_needs_no_members_is_that_of_the_first_so_many():
    ens, x = built()
    names = [name for name, s in ens.available_statistics().items() if not s.keeps_members]
    target = torch.arange(ROWS) % 4
    tolerance = float(np.quantile(errors(ens, x)[40], 0.5))
    p = ens.predict(x, tolerance=tolerance, statistics=names, target=target)
    for row, count in enumerate(p.counts.tolist()):
        alone = ens.predict(x[row : row + 1], members=count, statistics=names, target=target[row : row + 1])
        for name in names:
            torch.testing.assert_close(p[name][row : row + 1], alone[name], rtol=1e-5, atol=1e-6)


def test_a_row_is_judged_by_all_outputs_of_the_model():
    scenario = SCENARIOS["many_outputs"]
    ens = ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.3), members=N, example=scenario.inputs(2), task="raw", live=True
    )
    x = scenario.inputs(ROWS)
    heads = list(ens.predict(x).heads)
    assert len(heads) > 1
    after = np.max(
        [
            [np.sqrt(v[:n].var(0) / n).reshape(ROWS, -1).max(-1) for n in range(1, N + 1)]
            for head in heads
            for v in [ens.predict(x, statistics=[f"{head}.members"])[f"{head}"].members.double().swapaxes(0, 1).numpy()]
        ],
        axis=0,
    )
    tolerance = float(np.quantile(after[40], 0.5))
    for head in heads:
        p = ens.predict(x, tolerance=tolerance, statistics=[f"{head}.mean"])
        assert p.counts.tolist() == needed(after, tolerance)
        assert p[head].counts.tolist() == p.counts.tolist()


def test_members_are_the_most_that_a_tolerance_takes():
    ens, x = built()
    p = ens.predict(x, tolerance=1e-9, members=20)
    assert p.counts.tolist() == [20] * ROWS
    assert p.counts.dtype == torch.int64
    torch.testing.assert_close(p.mean, ens.predict(x, members=20).mean)
    assert ens.predict(x, tolerance=10.0).counts.tolist() == [FIRST] * ROWS
    assert ens.predict(x, members=20).counts is None


def test_what_is_no_number_takes_all_members():
    ens, x = built("regression")
    x[2] = float("nan")
    p = ens.predict(x, tolerance=10.0)
    assert p.counts.tolist() == [N if row == 2 else FIRST for row in range(ROWS)]
    assert p.mean[2].isnan().all()


def test_rows_that_are_done_are_not_evaluated_any_more(monkeypatch):
    ens, x = built()
    tolerance = float(np.quantile(errors(ens, x)[40], 0.5))
    evaluated = 0
    run = adaptive.evaluate

    def counted(*args, **rest):
        nonlocal evaluated
        for outputs in run(*args, **rest):
            evaluated += outputs[0].shape[0] * outputs[0].shape[1]
            yield outputs

    monkeypatch.setattr(adaptive, "evaluate", counted)
    p = ens.predict(x, tolerance=tolerance)
    assert evaluated == int(p.counts.sum()) < N * ROWS


def test_few_members_do_not_run_a_compiled_call_for_many():
    ens, x = built()
    compiled, eager = Trial("inductor", 50, ROWS, 0.1), Trial("vmap", 10, ROWS, 0.2)
    ens._runner.plan = Plan((Way.of(ROWS, [compiled, eager]),))
    ran = []

    def call(start, batch):
        ran.append(start)
        return (torch.zeros(50, ROWS, 4),)

    ens._runner._calls["inductor", ROWS, 50, "float32"] = call
    torch.testing.assert_close(ens.predict(x, members=10).mean, built()[0].predict(x, members=10).mean)
    torch.testing.assert_close(ens.predict(x, tolerance=10.0).mean, built()[0].predict(x, members=FIRST).mean)
    assert ran == []
    assert (ens.predict(x, members=30).mean == 0.25).all()
    assert ran == [0]


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "0.1", None])
def test_what_is_no_tolerance_is_refused(wrong):
    ens, x = built(members=4)
    if wrong is None:
        assert ens.predict(x, tolerance=wrong).counts is None
        return
    with pytest.raises(ensemble.InputError, match="tolerance must be a number above 0, however"):
        ens.predict(x, tolerance=wrong)


def test_every_members_output_cannot_be_had_with_a_tolerance():
    ens, x = built(members=4)
    with pytest.raises(ensemble.StatisticError, match="'members' cannot be asked for with a tolerance"):
        ens.predict(x, statistics=["mean", "members"], tolerance=0.1)


@given(st.integers(1, 5000))
def test_checkpoints_ascend_to_all_and_overshoot_by_half_at_most(total):
    points = checkpoints(total)
    assert points[-1] == total
    assert points[0] == min(FIRST, total)
    assert all(a < b <= 1.5 * a for a, b in itertools.pairwise(points))
