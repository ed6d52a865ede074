"""Every statistic of members with weights, against plain numpy over the members' own outputs."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats

import ensemble
from ensemble import Ensemble, InputError
from ensemble.calibration import Calibration
from ensemble.statistics import Moments
from ensemble.tasks import Sample
from tests.scenarios import SCENARIOS, seeded

N, ROWS = 24, 5
LEVELS = (0.1, 0.5, 0.8)
TASKS = ("classification", "regression", "gaussian", "raw")


def mixture(seed=0, members=N):
    """Weights that differ much, some of them 0."""
    weights = torch.from_numpy(np.random.default_rng(seed).gamma(0.5, size=members))
    weights[3:6] = 0
    return weights / weights.sum()


@functools.cache
def made(task):
    scenario = SCENARIOS["gaussian" if task == "gaussian" else "mlp"]
    return ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.4), members=N, example=scenario.inputs(2), task=task, live=True
    )


def weighted(task, weights, calibration=None, noise=None):
    own = made(task)
    members = dataclasses.replace(own.members, mixture=weights)
    return Ensemble(own.program, members, own.origin, task=task, noise_variance=noise, calibration=calibration)


def inputs(task):
    return SCENARIOS["gaussian" if task == "gaussian" else "mlp"].inputs(ROWS)


def target(task):
    if task == "classification":
        return torch.arange(ROWS) % 4
    return torch.linspace(-1, 1, ROWS) if task == "gaussian" else torch.linspace(-2, 2, ROWS * 4).reshape(ROWS, 4)


def root(level, means, deviations, weights):
    ends = stats.norm.ppf(level, means, deviations)

    def distance(t):
        return float((weights * stats.norm.cdf(t, means, deviations)).sum()) - level

    return optimize.brentq(distance, ends.min() - 1, ends.max() + 1, xtol=1e-13)


def plain(task, outputs, w, target, *, noise=None, temperature=1.0):
    """The statistics of members' outputs (members, batch, ...), by their definitions, as one line of numpy each."""
    w = w / w.sum()
    over = lambda a: np.tensordot(w, a, 1)  # noqa: E731
    if task == "classification":
        p = special.softmax(outputs["output"] / temperature, axis=-1)
        mean, votes = over(p), over(np.eye(4)[p.argmax(-1)])
        own = np.take_along_axis(p, np.broadcast_to(target[:, None], (*p.shape[:2], 1)), -1)[..., 0]
        found = {
            "mean": mean,
            "label": mean.argmax(-1),
            "aleatoric_variance": over(p * (1 - p)),
            "epistemic_variance": over((p - mean) ** 2),
            "total_variance": mean * (1 - mean),
            "predictive_entropy": stats.entropy(mean, axis=-1),
            "expected_entropy": over(stats.entropy(p, axis=-1)),
            "mutual_information": over(stats.entropy(p, mean[None], axis=-1)),
            "variation_ratio": 1 - votes.max(-1),
            "log_prob": np.log(over(own)),
            "members": np.moveaxis(p, 0, 1),
        }
    else:
        values = outputs["mean"] if task == "gaussian" else outputs["output"]
        mean = over(values)
        noise = outputs["variance"] if task == "gaussian" else noise
        variances = None if noise is None else np.broadcast_to(noise, values.shape)
        found = {"mean": mean, "epistemic_variance": over((values - mean) ** 2), "members": np.moveaxis(values, 0, 1)}
        aleatoric = np.zeros_like(mean) if variances is None else over(variances)
        found["total_variance"] = found["epistemic_variance"] + aleatoric
        flat = values.reshape(len(w), -1)
        if variances is None:
            order = flat.argsort(0)
            reached = np.take_along_axis(np.broadcast_to(w[:, None], flat.shape), order, 0).cumsum(0)
            quantile = lambda p: np.array(  # noqa: E731
                [flat[order[np.argmax(r >= p - 1e-12), e], e] for e, r in enumerate(reached.T)]
            ).reshape(mean.shape)
        else:
            found["aleatoric_variance"] = aleatoric
            each = stats.norm.logpdf(target, values, np.sqrt(variances))
            found["log_prob"] = special.logsumexp(each, axis=0, b=w.reshape(-1, *[1] * (each.ndim - 1)))
            deviations = np.sqrt(variances).reshape(len(w), -1)
            quantile = lambda p: np.array(  # noqa: E731
                [root(p, m, d, w) for m, d in zip(flat.T, deviations.T, strict=True)]
            ).reshape(mean.shape)
        found["quantiles"] = np.stack([quantile(level) for level in LEVELS], -1)
        found["credible_interval"] = np.stack([quantile(level) for level in (0.1, 0.9)], -1)
        if task == "gaussian":
            found["member_variances"] = np.moveaxis(outputs["variance"], 0, 1)
    found["std"] = np.sqrt(found["total_variance"])
    found["standard_error"] = np.sqrt(found["epistemic_variance"] * (w**2).sum())
    return found


def outputs_of(task, members=None):
    y = made(task)(inputs(task))
    y = y if isinstance(y, dict) else {"output": y}
    return {name: tensor[:members].double().numpy() for name, tensor in y.items()}


def truth(task, weights, members=None, **options):
    """What the first so many members say."""
    return plain(task, outputs_of(task, members), weights[:members].numpy(), target(task).numpy(), **options)


def compare(prediction, want, names=None):
    assert set(prediction) == set(names or want)
    for name in prediction:
        np.testing.assert_allclose(prediction[name].double().numpy(), want[name], rtol=2e-5, atol=1e-6, err_msg=name)


def ask(ens, **options):
    names = [n for n, s in ens.available_statistics().items() if "tolerance" not in options or not s.keeps_members]
    about = target(ens.task) if "log_prob" in names else None
    if "quantiles" in names:
        options |= {"levels": LEVELS, "confidence_level": 0.8}
    return ens.predict(inputs(ens.task), statistics=names, target=about, **options)


@pytest.mark.parametrize("chunk", [None, 0, 7])
@pytest.mark.parametrize("weights", [None, mixture()], ids=["equal", "weighted"])
@pytest.mark.parametrize("task", TASKS)
def test_every_statistic_is_that_of_the_mixture(task, weights, chunk):
    ens = weighted(task, weights)
    compare(ask(ens, chunk=chunk), truth(task, torch.ones(N).double() if weights is None else weights))


@pytest.mark.parametrize("noise", [0.3, None], ids=["one", "each"])
def test_a_regression_has_its_noise_or_each_members_own(noise):
    own = torch.linspace(0.05, 0.9, N, dtype=torch.float64)
    ens = weighted("regression", mixture(), None if noise else Calibration(noise_variances=own), noise)
    variances = noise or own.numpy()[:, None, None]
    for chunk in (None, 5):
        compare(ask(ens, chunk=chunk), truth("regression", mixture(), noise=variances))


def test_the_logits_are_divided_by_the_temperature_before_anything_else():
    ens = weighted("classification", mixture(), Calibration(temperature=2.5))
    want = truth("classification", mixture(), temperature=2.5)
    compare(ask(ens, chunk=7), want)


@pytest.mark.parametrize("task", TASKS)
def test_the_first_so_many_are_a_mixture_too(task):
    ens = weighted(task, mixture())
    got = ask(ens, members=11)
    assert got.count == 11
    compare(got, truth(task, mixture(), 11))


def test_members_that_have_no_weight_together_are_refused():
    weights = torch.zeros(N, dtype=torch.float64)
    weights[10:] = 1 / 14
    ens = weighted("regression", weights)
    for options in ({"members": 10}, {"members": 10, "tolerance": 0.1}):
        with pytest.raises(InputError, match="The first 10 members have no weight in the mixture; ask for more"):
            ens.predict(inputs("regression"), **options)
    assert ens.predict(inputs("regression"), members=11).std.count_nonzero() == 0
    # Judged for the first time once somebody has a say.
    weights = torch.zeros(N, dtype=torch.float64)
    weights[16:] = 1 / 8
    loose = weighted("regression", weights).predict(inputs("regression"), tolerance=1e9)
    assert loose.counts.tolist() == [N] * ROWS


@pytest.mark.parametrize("task", ["classification", "regression", "gaussian"])
def test_a_tolerance_bounds_the_weighted_standard_error(task):
    ens = weighted(task, mixture(), None, 0.3 if task == "regression" else None)
    errors = {n: truth(task, mixture(), n, noise=0.3)["standard_error"] for n in (16, N)}
    largest = errors[16].reshape(ROWS, -1).max(1)
    tolerance = float(np.median(largest)) * (1 + 1e-6)
    p = ask(ens, tolerance=tolerance)
    assert p.counts.tolist() == [16 if error <= tolerance else N for error in largest]
    assert len(set(p.counts.tolist())) == 2
    for row, count in enumerate(p.counts.tolist()):
        want = truth(task, mixture(), count, noise=0.3)
        for name in p:
            np.testing.assert_allclose(p[name][row].double().numpy(), want[name][row], rtol=2e-5, atol=1e-6)


members = st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 4)), min_size=1, max_size=9)


@given(members, st.integers(1, 9))
def test_a_weight_is_as_good_as_so_many_equal_members(values, chunk):
    if not any(count for _, count in values):
        values = [(value, 1) for value, _ in values]
    weights = torch.tensor([float(count) for _, count in values], dtype=torch.float64)
    one, many = Moments({"mean", "deviation"}, mixture=weights / weights.sum()), Moments({"mean", "deviation"})
    for part in torch.tensor([[value] for value, _ in values]).split(chunk):
        one.update(Sample(part, None))
    many.update(Sample(torch.tensor([[value] for value, count in values for _ in range(count)]), None))
    size = max(abs(value) for value, _ in values) or 1.0
    assert float(one.mean) == pytest.approx(float(many.mean), abs=1e-12 * size)
    assert float(one.epistemic_variance) == pytest.approx(float(many.epistemic_variance), abs=1e-12 * size**2, rel=1e-9)


def test_a_member_without_weight_may_be_no_number():
    moments = Moments({"mean", "deviation", "entropy", "variance"}, mixture=torch.tensor([0.5, 0, 0.5]).double())
    p = torch.tensor([[[0.5, 0.5]], [[math.nan, math.nan]], [[0.1, 0.9]]])
    moments.update(Sample(p, p))
    assert moments.mean.isfinite().all()
    assert moments.epistemic_variance.isfinite().all()
    assert moments.expected_entropy.isfinite().all()
    assert moments.aleatoric_variance.isfinite().all()
