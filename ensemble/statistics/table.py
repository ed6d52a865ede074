"""Every statistic: what it is, what it needs, and how it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ensemble.calibration import conformal
from ensemble.calibration.state import Calibration
from ensemble.errors import StatisticError
from ensemble.statistics.mixture import quantiles
from ensemble.statistics.moments import Moments, entropy
from ensemble.tasks import Head, Task

# What only fitting can give.
FITTED = ("prediction_interval", "prediction_set", "ood_score", "abstain")
CONFIDENCE_LEVEL = 0.9
LEVELS = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of an ensemble, and all that is needed to answer it from its members' outputs.

    Args:
        task, heads: what the outputs mean, and every prediction that the model makes.
        statistics: which of which heads.
        noise_variance: of a regression, target²; None if it is not known.
        calibration: what was fitted; None if nothing was.
        mixture: weights of the members, (N,) float64, in the order in which they are evaluated; equal by default.
        confidence_level: of intervals and sets.
        levels: of quantiles.
        targets: by the name of the head, what :func:`~ensemble.data.checked_targets` gives, on any device.
    """

    task: Task
    heads: tuple[Head, ...]
    statistics: tuple[tuple[Head, tuple[Statistic, ...]], ...]
    noise_variance: float | None = None
    calibration: Calibration | None = None
    mixture: Tensor | None = None
    confidence_level: float = CONFIDENCE_LEVEL
    levels: tuple[float, ...] = LEVELS
    targets: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One named output.

    Args:
        name: as it is asked for.
        description: what it is, with its formula.
        unit: of the values; "target" stands for the unit of the model's target.
        tasks: which tasks have it.
        needs: the moments that it is computed from.
        finish: moments, what is asked -> (batch, ...).
        shape: trailing shape of the model's output -> trailing shape of the statistic, -1 for a size that depends on
            what is asked: the members, the levels.
        dtype: of the values.
        default: part of the default set.
        uses: what a request may say about it: "confidence_level", "levels", "target".
    """

    name: str
    description: str
    unit: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...]
    finish: Callable[[Moments, Asked], Tensor]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda trailing: trailing
    dtype: torch.dtype = torch.float32
    default: bool = False
    uses: tuple[str, ...] = ()

    @property
    def keeps_members(self) -> bool:
        """Whether every member's output is kept until the last one was seen."""
        return bool({"values", "variances"} & set(self.needs))


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


_TABLE = (
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
              lambda m, asked: _quantiles(m, asked.levels), _per_level, uses=("levels",)),
    Statistic("credible_interval", "lower and upper end: quantiles of the mixture at (1 ∓ confidence_level) / 2; what "
              "the model believes, without a guarantee", "target", _NUMBERS, ("values", "variances"),
              lambda m, asked: _central(m, asked.confidence_level), _ends, uses=("confidence_level",)),
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

STATISTICS: Mapping[str, Statistic] = {statistic.name: statistic for statistic in _TABLE}

_NO_NOISE = (
    "{name} of a regression needs its noise variance, which this ensemble does not know; give noise_variance= when it "
    "is made, or have ensemble.fit() find it."
)
_NOT_FITTED = (
    "{name} was not fitted: it takes data that the members were not made from. Make the ensemble with "
    "ensemble.fit(model, (inputs, targets), task=...), or `ensembled build --data`."
)


def available(
    task: Task, noise_variance: float | None = None, calibration: Calibration | None = None
) -> list[Statistic]:
    """The statistics that an ensemble has, in the order in which they are listed everywhere, with what was fitted.

    Args:
        task, noise_variance, calibration: the ensemble's.
    """
    return [
        _with_what_was_fitted(s, calibration)
        for s in _TABLE
        if task in s.tasks and _lacking(s, task, noise_variance, calibration) is None
    ]


def unavailable(
    task: Task, noise_variance: float | None = None, calibration: Calibration | None = None
) -> dict[str, str]:
    """The statistics that an ensemble of this task would have if more were known of it: by name, what to do."""
    return {
        s.name: why
        for s in _TABLE
        if task in s.tasks and (why := _lacking(s, task, noise_variance, calibration)) is not None
    }


def check(names: Sequence[str] | None, having: Mapping[str, Statistic], lacking: Mapping[str, str], task: Task) -> None:
    """That names are those of statistics that there are.

    Args:
        names: None for the default ones.
        having, lacking: what :func:`available` and :func:`unavailable` gave, by name.

    Raises:
        StatisticError: an unknown name, one that the task does not have, or one that was not fitted.
    """
    if names is None:
        return
    if isinstance(names, str):
        raise StatisticError(f"statistics must be a list of names, such as [{names!r}].")
    if not names:
        raise StatisticError(f"statistics must name at least one of {', '.join(having)}.")
    for name in names:
        if name in lacking:
            raise StatisticError(lacking[name])
        if name not in having:
            why = f"which {task} does not have" if name in STATISTICS else "which does not exist"
            raise StatisticError(f"Asked for {str(name)[:60]!r}, {why}; there are {', '.join(having)}.")


def resolve(
    names: Sequence[str] | None,
    task: Task,
    noise_variance: float | None = None,
    calibration: Calibration | None = None,
) -> list[Statistic]:
    """The statistics of these names, the default ones for None.

    Raises:
        StatisticError: as :func:`check` does.
    """
    having = {s.name: s for s in available(task, noise_variance, calibration)}
    check(names, having, unavailable(task, noise_variance, calibration), task)
    if names is None:
        return [s for s in having.values() if s.default]
    return [having[name] for name in dict.fromkeys(names)]


def _lacking(
    statistic: Statistic, task: Task, noise_variance: float | None, calibration: Calibration | None
) -> str | None:
    """Why an ensemble of a task that has it does not have it; None if it does."""
    fitted = calibration or Calibration()
    name = statistic.name
    noisy = task != "regression" or noise_variance is not None or fitted.noise_variances is not None
    if name in ("aleatoric_variance", "log_prob") and not noisy:
        return _NO_NOISE.format(name=name)
    given = {
        "prediction_interval": fitted.interval_scores,
        "prediction_set": fitted.set_scores,
        "ood_score": fitted.epistemic,
        "abstain": fitted.abstain_above,
    }
    return _NOT_FITTED.format(name=name) if name in given and given[name] is None else None


def _with_what_was_fitted(statistic: Statistic, calibration: Calibration | None) -> Statistic:
    """The same statistic with what it needs, and its description with what it was fitted on."""
    if calibration is None:
        return statistic
    words, needs = calibration.words(statistic.name), statistic.needs
    if statistic.name == "prediction_interval" and calibration.interval_score == "cqr":
        needs = ("values", "variances")
    if not words and needs == statistic.needs:
        return statistic
    description = f"{statistic.description} ({words})" if words else statistic.description
    return dataclasses.replace(statistic, needs=needs, description=description)
