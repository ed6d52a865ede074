"""Every statistic: what it is, what it needs, and how it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ensemble.calibration import conformal
from ensemble.calibration.state import Calibration
from ensemble.statistics.mixture import quantiles
from ensemble.statistics.moments import Moments, entropy
from ensemble.statistics.statistic import Asked, Statistic
from ensemble.tasks import Task

_ALL: tuple[Task, ...] = ("classification", "regression", "gaussian", "raw")
_CLASSES: tuple[Task, ...] = ("classification",)
_VALUES: tuple[Task, ...] = ("regression", "gaussian")
_NUMBERS: tuple[Task, ...] = ("regression", "gaussian", "raw")


def _per_row(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return trailing[:-1]


def _per_member(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return (-1, *trailing)


def _ends(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return (*trailing, 2)


def _per_level(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return (*trailing, -1)


def _one(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return ()


def _label(m: Moments, _: Asked) -> Tensor:
    # The largest of what is no number would be a class like any other.
    return torch.where(m.mean.isfinite().all(-1), m.mean.argmax(-1), -1)


def _variation(m: Moments, _: Asked) -> Tensor:
    # The modal class is the one with most votes; label may differ from it.
    return 1 - m.votes.amax(-1)


def _information(m: Moments, _: Asked) -> Tensor:
    return (entropy(m.mean) - m.expected_entropy).clamp_min(0)


def _quantiles(m: Moments, levels: Sequence[float]) -> Tensor:
    values, variances, weights = m.components()
    return quantiles(values, variances, levels, weights)


def _central(m: Moments, level: float) -> Tensor:
    return _quantiles(m, [(1 - level) / 2, (1 + level) / 2])


def _fitted(asked: Asked) -> Calibration:
    # resolve() does not let by what was not fitted.
    assert asked.calibration is not None
    return asked.calibration


def _threshold(scores: Tensor | None, asked: Asked, like: Tensor) -> Tensor:
    assert scores is not None
    return conformal.threshold(scores, asked.confidence_level).to(like.device)


def _prediction_interval(m: Moments, asked: Asked) -> Tensor:
    fitted = _fitted(asked)
    if fitted.interval_score == "cqr":
        # Of the level that the scores were made with, whatever level is asked for.
        lower, upper = _central(m, fitted.confidence_level).unbind(-1)
        return conformal.cqr_interval(lower, upper, _threshold(fitted.interval_scores, asked, lower))
    bound = _threshold(fitted.interval_scores, asked, m.mean)
    return conformal.normalised_interval(m.mean, m.total_variance.sqrt(), bound)


def _prediction_set(m: Moments, asked: Asked) -> Tensor:
    fitted = _fitted(asked)
    chosen = conformal.lac_set if fitted.set_score == "lac" else conformal.aps_set
    return chosen(m.mean, _threshold(fitted.set_scores, asked, m.mean))


def epistemic_part(m: Moments, task: Task) -> Tensor:
    """What ``ood_score`` compares, (batch,): mutual information of a classification, epistemic variance of any other
    task, the mean over the target's elements."""
    return _row_mean((entropy(m.mean) - m.expected_entropy).clamp_min(0) if task in _CLASSES else m.epistemic_variance)


def total_part(m: Moments, task: Task) -> Tensor:
    """What ``abstain`` compares, (batch,): predictive entropy of a classification, total variance of any other task,
    the mean over the target's elements."""
    return _row_mean(entropy(m.mean) if task in _CLASSES else m.total_variance)


def _row_mean(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1).mean(1)


def _ood_score(m: Moments, asked: Asked) -> Tensor:
    part, scores = epistemic_part(m, asked.task), _fitted(asked).epistemic
    assert scores is not None
    return conformal.percentile(scores.to(part.device), part)


def _abstain(m: Moments, asked: Asked) -> Tensor:
    # What is no number is no reason to answer.
    bound = _fitted(asked).abstain_above
    assert bound is not None
    answered: Tensor = total_part(m, asked.task) <= bound
    return ~answered


TABLE = (
    Statistic("label", "argmax of mean: the class with the highest probability; −1 where mean is no number",
              "class index", _CLASSES,
              ("mean",), _label, _per_row, torch.int64, default=True),
    Statistic("mean", "mean over members of the prediction (for classes: of the probabilities, never the logits)",
              "target", _ALL, ("mean",), lambda m, _: m.mean, default=True),
    Statistic("std", "√total_variance", "target", _ALL, ("deviation", "variance"),
              lambda m, _: m.total_variance.sqrt(), default=True),
    Statistic("aleatoric_variance", "noise in the target itself: the mean of the members' variances "
              "(for classes: of p_i (1 − p_i))", "target²", (*_CLASSES, *_VALUES), ("mean", "variance"),
              lambda m, _: m.aleatoric_variance),
    Statistic("epistemic_variance", "disagreement of the members: the variance over members of the prediction",
              "target²", _ALL, ("deviation",), lambda m, _: m.epistemic_variance),
    Statistic("total_variance", "aleatoric_variance + epistemic_variance (the latter alone where no noise variance "
              "is known)", "target²", _ALL, ("deviation", "variance"), lambda m, _: m.total_variance),
    Statistic("standard_error", "Monte-Carlo standard error of mean: √(epistemic_variance / N), or with weights "
              "√(epistemic_variance · Σ w_i²)", "target", _ALL,
              ("deviation",), lambda m, _: m.monte_carlo_variance.sqrt()),
    Statistic("predictive_entropy", "H(mean p): the whole uncertainty of the class", "nats", _CLASSES, ("mean",),
              lambda m, _: entropy(m.mean), _per_row, default=True),
    Statistic("expected_entropy", "mean of H(p_i): the aleatoric part", "nats", _CLASSES, ("entropy",),
              lambda m, _: m.expected_entropy, _per_row, default=True),
    Statistic("mutual_information", "predictive_entropy − expected_entropy: the epistemic part (BALD)", "nats",
              _CLASSES, ("mean", "entropy"), _information, _per_row, default=True),
    Statistic("variation_ratio", "1 − (members voting for the modal class) / N", "", _CLASSES, ("votes",),
              _variation, _per_row),
    Statistic("quantiles", "quantiles of the mixture that the members are, at the asked levels (of the members' "
              "predictions where no noise variance is known)", "target", _NUMBERS, ("values", "variances"),
              lambda m, asked: _quantiles(m, asked.levels), _per_level, uses=("levels",), searches=-1),
    Statistic("credible_interval", "lower and upper end: quantiles of the mixture at (1 ∓ confidence_level) / 2; what "
              "the model believes, without a guarantee", "target", _NUMBERS, ("values", "variances"),
              lambda m, asked: _central(m, asked.confidence_level), _ends, uses=("confidence_level",), searches=2),
    Statistic("prediction_interval", "lower and upper end of a conformal interval, which holds the target with a "
              "probability of confidence_level at least, for rows like those that it was fitted on", "target", _VALUES,
              ("deviation", "variance"), _prediction_interval, _ends, uses=("confidence_level",)),
    Statistic("prediction_set", "a conformal set, of each class whether it is in it; the set holds the true class with "
              "a probability of confidence_level at least, for rows like those that it was fitted on", "", _CLASSES,
              ("mean",), _prediction_set, dtype=torch.bool, uses=("confidence_level",)),
    Statistic("log_prob", "log of the probability that the mixture gives the target: log Σ w_i p_i(target)", "nats",
              _CLASSES, ("likelihood",), lambda m, _: m.log_likelihood, _per_row, uses=("target",)),
    Statistic("log_prob", "log of the mixture's density at the target: log Σ w_i N(target; μ_i, σ_i²), of each "
              "element by itself", "nats", _VALUES, ("likelihood",), lambda m, _: m.log_likelihood, uses=("target",)),
    Statistic("ood_score", "how unusual the row is to the members: the share of the rows that it was fitted on whose "
              "mutual_information is below this row's", "", _CLASSES, ("mean", "entropy"), _ood_score, _one),
    Statistic("ood_score", "how unusual the row is to the members: the share of the rows that it was fitted on whose "
              "epistemic_variance (mean over the target's elements) is below this row's", "", _NUMBERS,
              ("deviation",), _ood_score, _one),
    Statistic("abstain", "whether the answer is too uncertain to be given: predictive_entropy is above the bound that "
              "keeps the share of errors of the other rows at the risk that it was fitted for", "", _CLASSES,
              ("mean",), _abstain, _one, torch.bool),
    Statistic("abstain", "whether the answer is too uncertain to be given: total_variance (mean over the target's "
              "elements) is above the bound that keeps the mean squared error of the other rows at the risk that it "
              "was fitted for", "", _NUMBERS, ("deviation", "variance"), _abstain, _one, torch.bool),
    Statistic("members", "every member's own prediction (for classes: probabilities)", "target", _ALL, ("values",),
              lambda m, _: m.every("values"), _per_member),
    Statistic("member_variances", "every member's own variance", "target²", ("gaussian",), ("variances",),
              lambda m, _: m.every("variances"), _per_member),
)  # fmt: skip

STATISTICS: Mapping[str, Statistic] = {statistic.name: statistic for statistic in TABLE}
