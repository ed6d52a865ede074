import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ensemble
from ensemble import StatisticError
from ensemble.statistics import STATISTICS, Asked, Moments, available, entropy, resolve
from ensemble.tasks import TASKS, Sample
from tests.scenarios import SCENARIOS, mlp, seeded

N, ROWS = 40, 6


def built(task, **options):
    name = "gaussian" if task == "gaussian" else "mlp"
    scenario = SCENARIOS[name]
    ens = ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.4), members=N, example=scenario.inputs(2), task=task, live=True, **options
    )
    x = scenario.inputs(ROWS)
    return ens, x, everything(ens, x)


def target(ens):
    """One for each row, where the task has a likelihood."""
    for _, shape in ens.outputs.targets().values():
        if ens.task == "classification":
            return torch.arange(ROWS) % 4
        return torch.linspace(-1, 1, ROWS * math.prod(shape)).reshape(ROWS, *shape)
    return None


def everything(ens, x, **options):
    """A prediction of every statistic that there is."""
    return ens.predict(x, statistics=list(ens.available_statistics()), target=target(ens), **options)


def finished(name, moments, task="classification"):
    """A statistic of moments alone."""
    return STATISTICS[name].finish(moments, Asked(task, (), ()))


def close(got, want, **tolerance):
    np.testing.assert_allclose(got.double().numpy(), want, **{"rtol": 2e-6, "atol": 1e-7} | tolerance)


def test_classification_against_scipy():
    ens, x, p = built("classification")
    logits = ens(x).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = probabilities.mean(0)
    votes = stats.mode(probabilities.argmax(-1), axis=0)
    predictive = stats.entropy(mean, axis=-1)
    expected = stats.entropy(probabilities, axis=-1).mean(0)
    close(p.mean, mean)
    assert np.array_equal(p.label, mean.argmax(-1))
    close(p.predictive_entropy, predictive)
    close(p.expected_entropy, expected)
    # Mutual information is also the mean divergence of the members from their mean.
    close(p.mutual_information, predictive - expected, atol=2e-7)
    close(p.mutual_information, stats.entropy(probabilities, mean[None], axis=-1).mean(0), atol=2e-7)
    close(p.variation_ratio, 1 - votes.count / N)
    close(p.aleatoric_variance, (probabilities * (1 - probabilities)).mean(0))
    close(p.epistemic_variance, probabilities.var(0))
    # The law of total variance: a class is a Bernoulli variable of the mean probability.
    close(p.total_variance, mean * (1 - mean))
    close(p.std, np.sqrt(mean * (1 - mean)))
    close(p.standard_error, np.sqrt(probabilities.var(0) / N))
    close(p.members, probabilities.swapaxes(0, 1))
    assert p.members.shape == (ROWS, N, 4)
    assert p.label.dtype == torch.int64


def test_a_modal_class_need_not_be_the_label():
    p = torch.tensor([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    moments = Moments({"mean", "votes"})
    moments.update(Sample(p, None))
    assert finished("label", moments).tolist() == [1]
    assert finished("variation_ratio", moments).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("noise", [None, 0.25])
def test_regression_against_numpy(noise):
    ens, x, p = built("regression", noise_variance=noise)
    values = ens(x).double().numpy()
    close(p.mean, values.mean(0))
    close(p.epistemic_variance, values.var(0))
    close(p.total_variance, values.var(0) + (noise or 0))
    close(p.std, np.sqrt(values.var(0) + (noise or 0)))
    close(p.standard_error, stats.sem(values, ddof=0))
    close(p.members, values.swapaxes(0, 1))
    if noise is None:
        with pytest.raises(StatisticError, match="give noise_variance="):
            ens.predict(x, statistics=["aleatoric_variance"])
    else:
        close(p.aleatoric_variance, np.full_like(values[0], noise))


def test_gaussian_is_the_mixture_of_the_members():
    ens, x, p = built("gaussian")
    y = ens(x)
    mean, variance = y["mean"].double().numpy(), y["variance"].double().numpy()
    close(p.mean, mean.mean(0))
    close(p.aleatoric_variance, variance.mean(0))
    close(p.epistemic_variance, mean.var(0))
    close(p.total_variance, variance.mean(0) + mean.var(0))
    close(p.members, mean.T)
    close(p.member_variances, variance.T)
    # The same from a large sample of the mixture itself.
    rng = np.random.default_rng(0)
    draws = rng.normal(mean[:, 0, None], np.sqrt(variance[:, 0, None]), (N, 20000))
    assert float(p.total_variance[0]) == pytest.approx(draws.var(), rel=0.02)


def test_raw_outputs_have_a_mean_and_a_spread():
    ens, x, p = built("raw")
    close(p.std, ens(x).double().numpy().std(0))
    assert set(p) == {
        "mean",
        "std",
        "epistemic_variance",
        "total_variance",
        "standard_error",
        "quantiles",
        "credible_interval",
        "members",
    }


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, N])
@pytest.mark.parametrize("task", ["classification", "regression", "gaussian"])
def test_chunks_give_what_all_at_once_gives(task, chunk):
    ens, x, whole = built(task)
    for name, tensor in everything(ens, x, chunk=chunk).flat().items():
        close(tensor, whole[name].double().numpy(), rtol=1e-5, atol=1e-6)


members = st.integers(1, 12).flatmap(lambda n: st.lists(st.floats(-1e6, 1e6, width=32), min_size=n, max_size=n))


@given(members, st.randoms(use_true_random=False))
def test_any_split_and_order_of_members_gives_the_same_moments(values, random):
    order = random.sample(range(len(values)), len(values))
    cuts = sorted(random.sample(range(len(values) + 1), random.randint(0, len(values))))
    bounds = [0, *cuts, len(values)]
    moments = Moments({"mean", "deviation"})
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            moments.update(Sample(torch.tensor([[values[i]] for i in order[start:stop]]), None))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    size = max(map(abs, values)) or 1.0
    assert float(moments.mean) == pytest.approx(mean, abs=1e-13 * size)
    assert float(moments.epistemic_variance) == pytest.approx(variance, abs=1e-13 * size**2, rel=1e-9)
    assert float(moments.epistemic_variance) >= 0


def test_a_small_spread_around_a_large_mean_does_not_cancel():
    generator = torch.Generator().manual_seed(0)
    values = 1e6 + 1e-3 * torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    moments = Moments({"mean", "deviation"})
    for part in values.split(7):
        moments.update(Sample(part, None))
    close(moments.epistemic_variance.sqrt(), values.numpy().std(0), rtol=1e-6, atol=0)
    naive = (values.square().mean(0) - values.mean(0).square()).numpy()
    assert np.abs(naive / values.numpy().var(0) - 1).max() > 1


def test_many_members_far_from_zero_in_float32_lose_nothing_in_the_sum():
    values = torch.full((4096, 1), 16777216.0)
    values[::2] += 2
    moments = Moments({"mean", "deviation"})
    for part in values.split(5):
        moments.update(Sample(part, None))
    assert float(moments.mean) == 16777217.0
    assert float(moments.epistemic_variance) == pytest.approx(1, rel=1e-9)


@given(st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=9))
def test_mutual_information_is_between_nothing_and_the_predictive_entropy(logits):
    p = torch.tensor(logits)[:, None].softmax(-1)
    moments = Moments({"mean", "entropy"})
    for part in p.split(2):
        moments.update(Sample(part, None))
    information = float(finished("mutual_information", moments))
    predictive = float(finished("predictive_entropy", moments))
    assert 0 <= information <= predictive + 1e-12
    assert predictive <= math.log(3) + 1e-6


def test_members_that_agree_know_everything_that_can_be_known():
    ens = ensemble.perturb(
        seeded(SCENARIOS["mlp"]), ensemble.Gaussian(0), members=9, example=torch.zeros(1, 6), task="classification"
    )
    x = 5 * torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    p = ens.predict(x, statistics=["mutual_information", "epistemic_variance", "variation_ratio"])
    # Members of one call may still differ in the last bit of a product.
    assert float(p.mutual_information.max()) < 1e-12
    assert float(p.epistemic_variance.max()) < 1e-13
    assert not p.variation_ratio.any()


def test_members_that_are_sure_and_disagree_have_all_uncertainty_between_them():
    p = torch.eye(4)[:, None]
    moments = Moments({"mean", "entropy", "votes"})
    moments.update(Sample(p, None))
    assert float(finished("mutual_information", moments)) == pytest.approx(math.log(4), rel=1e-12)
    assert float(moments.expected_entropy) == 0
    assert float(finished("variation_ratio", moments)) == 0.75


def test_the_entropy_of_certainty_and_of_ignorance():
    assert float(entropy(torch.tensor([0.0, 1.0, 0.0]))) == 0
    assert float(entropy(torch.full((8,), 0.125, dtype=torch.float64))) == pytest.approx(math.log(8), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_float32_or_better_whatever_the_weights(dtype):
    scenario = SCENARIOS["mlp"]
    ens = ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.3), members=N, example=scenario.inputs(2), task="classification"
    ).to(dtype=dtype)
    x = scenario.inputs(ROWS)
    p = everything(ens, x, chunk=7)
    logits = ens(x).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    close(p.mean, probabilities.mean(0))
    close(p.mutual_information, stats.entropy(probabilities, probabilities.mean(0)[None], axis=-1).mean(0), atol=3e-7)
    assert {t.dtype for name, t in p.flat().items() if name != "label"} == {torch.float32}


def test_member_outputs_are_kept_only_if_they_are_asked_for(monkeypatch):
    ens, x, _ = built("classification")
    seen = []
    update = Moments.update

    def spy(self, sample):
        update(self, sample)
        held = [self.mean, self._deviation, *self._sums.values(), *(t for kept in self._kept.values() for t in kept)]
        seen.append(max(tensor.numel() for tensor in held))

    monkeypatch.setattr(Moments, "update", spy)
    ens.predict(x, chunk=10)
    names = [name for name, s in ens.available_statistics().items() if not s.keeps_members]
    ens.predict(x, statistics=names, target=target(ens), chunk=10)
    assert set(seen) == {ROWS * 4}
    seen.clear()
    ens.predict(x, statistics=["members"], chunk=10)
    assert max(seen) >= 10 * ROWS * 4


def test_fewer_members_may_be_asked_for():
    ens, x, _ = built("classification")
    p = ens.predict(x, statistics=["mean", "members"], members=3)
    assert p.count == 3
    assert p.members.shape == (ROWS, 3, 4)
    close(p.mean, ens(x)[:3].softmax(-1).double().mean(0).numpy())
    for wrong in (0, N + 1, -1):
        with pytest.raises(ensemble.InputError, match=f"members must be between 1 and {N}, however: {wrong}"):
            ens.predict(x, members=wrong)


@pytest.mark.parametrize("task", TASKS)
def test_every_statistic_is_described_and_has_the_shape_that_it_states(task):
    ens, x, p = built(task)
    trailing = ens._outputs.heads[0].trailing
    for name, statistic in ens.available_statistics().items():
        assert statistic.description
        size_asked = 3 if name == "quantiles" else N
        assert p[name].shape == (ROWS, *[size_asked if size == -1 else size for size in statistic.shape(trailing)])
        assert p[name].dtype == statistic.dtype
        assert torch.isfinite(p[name]).all()
    assert [s.name for s in resolve(None, task)] == ens.default_statistics()
    assert set(ens.predict(x)) == set(ens.default_statistics())
    assert {s.name for s in available(task, 1.0)} <= set(STATISTICS)


@pytest.mark.parametrize(
    ("task", "names", "text"),
    [
        ("raw", ["median"], "'median', which does not exist; there are mean, std"),
        ("raw", ["mutual_information"], "'mutual_information', which raw does not have"),
        ("regression", ["label"], "which regression does not have"),
        ("gaussian", ["mean", "x" * 500], "'x{60}', which does not exist"),
        ("raw", "mean", r"must be a list of names, such as \['mean'\]"),
        ("raw", [None], "'None', which does not exist"),
    ],
)
def test_names_that_a_task_does_not_have_are_refused(task, names, text):
    with pytest.raises(StatisticError, match=text):
        resolve(names, task)


def test_a_name_asked_for_twice_is_computed_once():
    assert [s.name for s in resolve(["std", "mean", "std"], "raw")] == ["std", "mean"]
    with pytest.raises(StatisticError, match="must name at least one of mean, std"):
        resolve([], "raw")


def test_a_regressor_of_one_member_has_no_spread():
    ens = ensemble.perturb(mlp(), ensemble.Gaussian(1), members=1, example=torch.zeros(1, 6), task="regression")
    p = ens.predict(torch.randn(3, 6), statistics=["std", "standard_error"])
    assert not p.std.any()
    assert not p.standard_error.any()
