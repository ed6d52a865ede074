"""What is fitted on data, asked of an ensemble: intervals, sets, scores and abstention, by hand and by coverage."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import ensemble
from ensemble import InputError, ModelError, StatisticError
from ensemble.calibration import Calibration
from ensemble.calibration.conformal import aps, cqr, lac, normalised
from tests.scenarios import SCENARIOS, seeded

N, FITTED, TESTED = 20, 199, 2000


@functools.cache
def made(task):
    scenario = SCENARIOS["gaussian" if task == "gaussian" else "mlp"]
    noise = {"noise_variance": 0.3} if task == "regression" else {}
    return ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.3), members=N, example=scenario.inputs(2), task=task, live=True, **noise
    )


def rows(task, count, seed):
    """Inputs, and targets that the model is wrong about: drawn from other noise, or probabilities, than it says."""
    width = 3 if task == "gaussian" else 6
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    p = made(task).predict(x)
    if task == "classification":
        return x, torch.multinomial(p.mean**0.3, 1, generator=generator).squeeze(1)
    noise = torch.empty(p.mean.shape).exponential_(generator=generator)
    return x, p.mean + (0.5 + x[:, :1].abs().reshape(-1, *[1] * (p.mean.ndim - 1))) * noise


def with_calibration(task, **settings):
    own = made(task)
    return ensemble.Ensemble(
        own.program,
        own.members,
        own.origin,
        task=task,
        noise_variance=own.noise_variance,
        calibration=Calibration(**settings),
    )


@functools.cache
def fitted(task, score, level=0.9):
    """An ensemble whose thresholds come from rows of their own."""
    x, y = rows(task, FITTED, 1)
    own = made(task)
    if score in ("lac", "aps"):
        found = {"lac": lac, "aps": aps}[score](own.predict(x).mean, y)
        return with_calibration(task, set_score=score, set_scores=found.sort(0).values, confidence_level=level)
    if score == "cqr":
        ends = own.predict(x, statistics=["credible_interval"], confidence_level=level).credible_interval
        found = cqr(*ends.unbind(-1), y)
    else:
        p = own.predict(x, statistics=["mean", "std"])
        found = normalised(p.mean, p.std, y)
    return with_calibration(task, interval_score=score, interval_scores=found.sort(0).values, confidence_level=level)


@pytest.mark.parametrize("level", [None, 0.6])
@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("regression", "normalised"),
        ("regression", "cqr"),
        ("gaussian", "normalised"),
        ("gaussian", "cqr"),
        ("classification", "lac"),
        ("classification", "aps"),
    ],
)
def test_what_was_fitted_holds_on_new_rows(task, score, level):
    ens = fitted(task, score)
    x, y = rows(task, TESTED, 2)
    name = "prediction_set" if task == "classification" else "prediction_interval"
    p = ens.predict(x, statistics=[name], confidence_level=level)
    if task == "classification":
        covered = p.prediction_set.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        assert p.prediction_set.dtype == torch.bool
    else:
        lower, upper = p.prediction_interval.unbind(-1)
        covered = (lower <= y) & (y <= upper)
        assert covered.shape == y.shape
    # With these thresholds; the coverage over all that could have been fitted is a beta-binomial variable.
    rank = math.ceil(200 * (level or 0.9))
    low, high = stats.betabinom.interval(1 - 1e-5, TESTED, rank, 200 - rank)
    counts = covered.reshape(TESTED, -1).sum(0)
    assert int(counts.min()) >= low
    if score != "aps":
        assert int(counts.max()) <= high
    if task != "classification" and level is None:
        # The model itself is wrong.
        own = made(task).predict(x, statistics=["credible_interval"], confidence_level=level).credible_interval
        believed = ((own[..., 0] <= y) & (y <= own[..., 1])).reshape(TESTED, -1).sum(0)
        assert not low <= int(believed.min()) <= high


def test_an_interval_by_hand():
    scores = torch.arange(1.0, 10.0).double()
    ens = with_calibration("regression", interval_score="normalised", interval_scores=scores, confidence_level=0.5)
    x, _ = rows("regression", 4, 3)
    p = ens.predict(x, statistics=["mean", "std", "prediction_interval"])
    torch.testing.assert_close(p.prediction_interval, torch.stack([p.mean - 5 * p.std, p.mean + 5 * p.std], -1))
    p = ens.predict(x, statistics=["prediction_interval"], confidence_level=0.95)
    assert (p.prediction_interval == torch.tensor([-math.inf, math.inf])).all()
    p = ens.predict(x, statistics=["quantiles", "credible_interval"], levels=[0.25, 0.75])
    torch.testing.assert_close(p.quantiles, p.credible_interval)


def test_conformal_quantile_regression_moves_the_quantiles_of_the_level_that_was_fitted():
    ens = fitted("regression", "cqr", 0.8)
    x, _ = rows("regression", 4, 3)
    own = ens.predict(x, statistics=["quantiles"], levels=[0.1, 0.9]).quantiles
    for level in (0.5, 0.8, 0.95):
        ends = ens.predict(x, statistics=["prediction_interval"], confidence_level=level).prediction_interval
        bound = ens.calibration.interval_scores[math.ceil(200 * level) - 1].float()
        torch.testing.assert_close(ends, torch.stack([own[..., 0] - bound, own[..., 1] + bound], -1))


@pytest.mark.parametrize("task", ["classification", "regression", "gaussian", "raw"])
def test_out_of_distribution_scores_and_abstention(task):
    own = made("regression" if task == "raw" else task)
    noise = own.noise_variance if task == "regression" else None
    own = ensemble.Ensemble(own.program, own.members, own.origin, task=task, noise_variance=noise)
    x, _ = rows("regression" if task == "raw" else task, 50, 4)
    names = ["mutual_information", "predictive_entropy"]
    names = names if task == "classification" else ["epistemic_variance", "total_variance"]
    p = own.predict(x, statistics=names)
    epistemic, total = (p[name].double().reshape(50, -1).mean(1) for name in names)
    bound = float(total.median())
    own.calibration = Calibration(epistemic=epistemic[:30].sort().values, abstain_above=bound, risk=0.1)
    x[7] = math.nan
    for options in ({}, {"members": N}, {"tolerance": 1e-9}):
        p = own.predict(x, statistics=["ood_score", "abstain"], **options)
        assert p.ood_score.shape == p.abstain.shape == (50,)
        assert p.abstain.dtype == torch.bool
        for row in range(50):
            if row == 7:
                assert p.ood_score[row].isnan()
                assert p.abstain[row]
                continue
            share = float((epistemic[:30] < epistemic[row]).double().mean())
            # A row that was fitted on is its own neighbour, and its sums are rounded otherwise.
            assert float(p.ood_score[row]) == pytest.approx(share, abs=1.01 / 30 if row < 30 else 1e-6)
            if abs(float(total[row]) - bound) > 1e-6:
                assert bool(p.abstain[row]) == (float(total[row]) > bound)


def test_what_is_fitted_is_described():
    text = "fitted on 199 rows, score lac; confidence_level 0.9 unless another is asked for; every class above 0.995"
    assert text in fitted("classification", "lac").available_statistics()["prediction_set"].description
    ens = with_calibration("regression", epistemic=torch.zeros(3).double(), abstain_above=0.25, risk=0.125)
    having = ens.available_statistics()
    assert "fitted on 3 rows" in having["ood_score"].description
    assert "bound 0.25, risk 0.125" in having["abstain"].description
    assert ens.calibration.described()["epistemic_rows"] == 3
    assert set(ens.unavailable_statistics()) == {"prediction_interval"}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classification", ["prediction_set", "ood_score", "abstain"]),
        ("regression", ["prediction_interval", "ood_score", "abstain"]),
        ("gaussian", ["prediction_interval", "ood_score", "abstain"]),
        ("raw", ["ood_score", "abstain"]),
    ],
)
def test_what_was_not_fitted_says_what_to_do(task, names):
    own = made("regression" if task == "raw" else task)
    own = ensemble.Ensemble(own.program, own.members, own.origin, task=task)
    x, _ = rows("regression" if task == "raw" else task, 2, 5)
    for name in names:
        assert name not in own.available_statistics()
        with pytest.raises(StatisticError, match=rf"{name} was not fitted.*ensemble\.fit\(.*`ensembled build --data`"):
            own.predict(x, statistics=["mean", name])
    if task == "regression":
        for name in ("aleatoric_variance", "log_prob"):
            with pytest.raises(
                StatisticError, match=f"{name} of a regression needs its noise variance.*give noise_var"
            ):
                own.predict(x, statistics=[name])


def test_what_a_task_does_not_have_is_not_to_be_fitted():
    x, _ = rows("regression", 2, 5)
    other = [("regression", "prediction_set"), ("classification", "quantiles"), ("classification", "credible_interval")]
    for task, name in [*other, ("classification", "prediction_interval")]:
        with pytest.raises(StatisticError, match=f"'{name}', which {task} does not have"):
            made(task).predict(x, statistics=[name])


def test_of_what_keeps_every_member_there_is_none_with_a_tolerance():
    x, _ = rows("regression", 2, 5)
    for name in ("quantiles", "credible_interval", "members"):
        with pytest.raises(StatisticError, match=f"'{name}' cannot be asked for with a tolerance; ask for it with mem"):
            made("regression").predict(x, statistics=[name], tolerance=0.1)
    with pytest.raises(StatisticError, match="'prediction_interval' cannot be asked for with a tolerance"):
        fitted("regression", "cqr").predict(x, statistics=["prediction_interval"], tolerance=0.1)
    p = fitted("regression", "normalised").predict(x, statistics=["prediction_interval"], tolerance=1e9)
    assert p.prediction_interval.shape == (2, 4, 2)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"noise_variances": torch.ones(N + 1)}, "noise_variances"),
        ({"interval_score": "normalised", "interval_scores": torch.ones(5, 3)}, "interval_scores"),
        ({"interval_score": "normalised", "interval_scores": torch.ones(0)}, "interval_scores"),
        ({"set_score": "lac", "set_scores": torch.ones(5, 4)}, "set_scores"),
        ({"epistemic": torch.ones(5, 1)}, "epistemic"),
    ],
)
def test_a_calibration_of_another_model_is_refused(settings, name):
    with pytest.raises(ModelError, match=f"The calibration's {name} have the shape .* fit this ensemble itself"):
        with_calibration("regression", **settings)


def test_a_saved_calibration_of_another_model_is_refused(saved, tmp_path):
    own = ensemble.load(saved / "mlp")
    own.calibration = Calibration(epistemic=torch.linspace(0, 1, 9, dtype=torch.float64))
    own.save(tmp_path / "m")
    again, x = ensemble.load(tmp_path / "m"), torch.randn(3, 6)
    assert torch.equal(*(e.predict(x, statistics=["ood_score"]).ood_score for e in (again, own)))
    object.__setattr__(own.calibration, "epistemic", own.calibration.epistemic.reshape(9, 1))
    own.save(tmp_path / "n")
    with pytest.raises(ensemble.ArtifactError, match=r"does not fit .*epistemic have the shape"):
        ensemble.load(tmp_path / "n")


def test_levels_that_are_none_are_refused():
    ens = made("regression")
    x, _ = rows("regression", 2, 5)
    for wrong in (0, 1, -0.1, "0.9", float("nan"), True, [0.9], torch.tensor([0.1, 0.2])):
        with pytest.raises(InputError, match=r"A level must be a number between 0 and 1, such as 0\.9, however: "):
            ens.predict(x, statistics=["credible_interval"], confidence_level=wrong)
        if not isinstance(wrong, torch.Tensor):
            with pytest.raises(InputError, match="A level must be a number"):
                ens.predict(x, statistics=["quantiles"], levels=[0.5, wrong])
    for wrong in (0.5, "0.5"):
        with pytest.raises(InputError, match=r"levels must be a list of numbers, each between 0 and 1, such as \[0.05"):
            ens.predict(x, statistics=["quantiles"], levels=wrong)
    with pytest.raises(InputError, match="levels must hold at least one number"):
        ens.predict(x, statistics=["quantiles"], levels=[])
    p = ens.predict(x, statistics=["quantiles"], levels=np.array([0.9, 0.1]))
    assert (p.quantiles[..., 0] > p.quantiles[..., 1]).all()
    assert ens.predict(x, statistics=["quantiles"]).quantiles.shape == (2, 4, 3)


def test_targets_that_do_not_fit_are_refused():
    x, y = rows("classification", 3, 6)
    ens = made("classification")
    cases = [
        (None, "log_prob is that of a target: give it with target="),
        ("high", "target must be a tensor, array or list of numbers, however: new"),
        ([[1.0], [2.0, 3.0]], "target must be a tensor, array or list of numbers, however: expected sequence"),
        (y[:2], "There are 3 rows of inputs and targets of shape"),
        (y[:, None], r"Targets must have shape \[-1\]"),
        (y.float(), "class indices, integers"),
        (torch.tensor([0, 1, 4]), "class indices from 0 to 3"),
    ]
    for given, text in cases:
        with pytest.raises(InputError, match=text):
            ens.predict(x, statistics=["log_prob"], target=given)
    with pytest.raises(InputError, match="A target is for the statistic log_prob, which was not asked for"):
        ens.predict(x, target=y)
    own = made("regression")
    for given, text in ((torch.zeros(3), r"must have shape \[-1, 4\]"), (torch.full((3, 4), math.nan), "finite")):
        with pytest.raises(InputError, match=text):
            own.predict(x, statistics=["log_prob"], target=given)
    # What is a list, or of another number type, will do.
    want = own.predict(x, statistics=["log_prob"], target=torch.ones(3, 4)).log_prob
    assert torch.equal(own.predict(x, statistics=["log_prob"], target=np.ones((3, 4), int).tolist()).log_prob, want)


def test_each_of_several_outputs_has_its_target():
    scenario = SCENARIOS["many_outputs"]
    recipe, example = ensemble.Gaussian(0.2), scenario.inputs(2)
    ens = ensemble.perturb(
        seeded(scenario), recipe, members=4, example=example, task="regression", noise_variance=0.5, live=True
    )
    x = scenario.inputs(3)
    heads = list(ens.predict(x).heads)
    shapes = {head: ens.predict(x)[head].mean.shape for head in heads}
    targets = {head: torch.zeros(shape) for head, shape in shapes.items()}
    p = ens.predict(x, statistics=["log_prob", "members"], target=targets)
    for head in heads:
        each = stats.norm.logpdf(0, p[head].members.double().numpy(), math.sqrt(0.5))
        np.testing.assert_allclose(p[head].log_prob, np.log(np.exp(each).mean(1)), rtol=1e-5)
    one = ens.predict(x, statistics=[f"{heads[0]}.log_prob"], target={heads[0]: targets[heads[0]]})
    assert torch.equal(one[heads[0]].log_prob, p[heads[0]].log_prob)
    for wrong in (targets[heads[0]], {heads[0]: targets[heads[0]]}, {**targets, "x": 1}):
        with pytest.raises(InputError, match=f"target must be a dict with a target for each of {', '.join(heads)}"):
            ens.predict(x, statistics=["log_prob"], target=wrong)
    with pytest.raises(ModelError, match="several outputs cannot be calibrated"):
        ens.calibration = Calibration(epistemic=torch.zeros(2))
    with pytest.raises(
        StatisticError, match="ood_score is not there for a model with several outputs; make an ensemble"
    ):
        ens.predict(x, statistics=[f"{heads[0]}.ood_score"])


def test_moving_an_ensemble_keeps_what_was_fitted():
    ens = fitted("regression", "normalised")
    x, _ = rows("regression", 3, 7)
    moved = ens.to(dtype=torch.float64)
    assert moved.calibration is ens.calibration
    torch.testing.assert_close(
        moved.predict(x.double(), statistics=["prediction_interval"]).prediction_interval,
        ens.predict(x, statistics=["prediction_interval"]).prediction_interval,
        rtol=1e-4,
        atol=1e-5,
    )
    assert dataclasses.replace(ens.calibration, risk=1.0).risk == 1.0
