"""Which statistics an ensemble has, and of those that it has not, why and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ensemble.calibration.state import Calibration
from ensemble.errors import StatisticError
from ensemble.statistics.statistic import Statistic
from ensemble.statistics.table import STATISTICS, TABLE
from ensemble.tasks import Task

# What only fitting can give.
FITTED = ("prediction_interval", "prediction_set", "ood_score", "abstain")

_NO_NOISE = (
    "{name} of a regression needs its noise variance, which this ensemble does not know; give noise_variance= when it "
    "is made, or have ensemble.fit() find it."
)
_NOT_FITTED = (
    "{name} was not fitted: it takes data that the members were not made from. Make the ensemble with "
    "ensemble.fit(model, (inputs, targets), task=...), or `ensembled build --data`."
)
_AGREED = (
    "{name} was not fitted: there were no rows for it, or the members agree on all of them, as copies of the net alone "
    "do, so that nothing tells one row from another. Fit with a recipe that makes members differ."
)
_NO_RISK = (
    "{name} was not fitted: it keeps answers to a risk, which was not given. Make the ensemble with ensemble.fit(..., "
    "risk=), or `ensembled build --data --risk`."
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
        for s in TABLE
        if task in s.tasks and _lacking(s, task, noise_variance, calibration) is None
    ]


def unavailable(
    task: Task, noise_variance: float | None = None, calibration: Calibration | None = None
) -> dict[str, str]:
    """The statistics that an ensemble of this task would have if more were known of it: by name, what to do."""
    return {
        s.name: why
        for s in TABLE
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
    if name not in given or given[name] is not None:
        return None
    if fitted.interval_scores is None and fitted.set_scores is None:
        return _NOT_FITTED.format(name=name)
    return {"ood_score": _AGREED, "abstain": _NO_RISK}.get(name, _NOT_FITTED).format(name=name)


def _with_what_was_fitted(statistic: Statistic, calibration: Calibration | None) -> Statistic:
    """The same statistic with what it needs, and its description with what it was fitted on."""
    if calibration is None:
        return statistic
    if statistic.name == "prediction_interval" and calibration.interval_score == "cqr":
        statistic = dataclasses.replace(statistic, needs=("values", "variances"), searches=2)
    words = calibration.words(statistic.name)
    return dataclasses.replace(statistic, description=f"{statistic.description} ({words})") if words else statistic
