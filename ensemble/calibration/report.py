"""What fitting found: kept with the ensemble as plain JSON values, and shown as a table, JSON or a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ensemble.calibration.averaging import gain
from ensemble.calibration.budget import Budget
from ensemble.calibration.families import Average, Family, noise_summary
from ensemble.calibration.split import Rows
from ensemble.calibration.state import Calibration
from ensemble.calibration.trials import TEMPERATURES, Trial
from ensemble.errors import EnsembledError
from ensemble.tasks import Task


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the search came to.

    Args:
        single: the net alone.
        averages: of each recipe that was tried, the best first.
        families: all that were asked for.
        kept: what the ensemble is made of.
        why: in words.
        reached: mean log-likelihood of the selection rows under the members as they are kept.
        notes: what a user should know.
    """

    single: Average
    averages: tuple[Average, ...]
    families: tuple[Family, ...]
    kept: Average
    why: str
    reached: float
    notes: tuple[str, ...] = ()


def describe(
    finding: Finding, rows: Rows, task: Task, clock: Budget, calibration: Calibration, notes: Sequence[str]
) -> dict[str, Any]:
    """A report, as plain JSON values.

    Every log-likelihood is the mean over the selection rows, in nats for each element of the target. Those of recipes
    are of the average over their settings and the net alone, each row being left out of the weights that judge it.
    """
    untried = [f for f in finding.families if not f.trials]
    return {
        "task": task,
        "rows": rows.sizes,
        "budget_seconds": clock.total,
        "seconds": round(clock.spent, 3),
        "single": {"log_likelihood": finding.single.log_likelihood, **_noise(finding.single, task)},
        "recipes": [_recipe(one, finding, task) for one in finding.averages]
        + [
            {"recipe": f.name, "log_likelihood": None, "failure": f.failure or "the budget was spent before"}
            for f in untried
        ],
        "kept": {
            "recipe": finding.kept.family.name,
            "why": finding.why,
            "log_likelihood": finding.reached,
            **_noise(finding.kept, task),
            "settings": [
                {"settings": _settings(cell.trial), "noise": cell.noise, "weight": cell.weight}
                for cell in sorted(finding.kept.cells, key=lambda cell: -cell.weight)
                if cell.weight >= 1e-3
            ],
        },
        "confidence_level": calibration.confidence_level,
        "risk": calibration.risk,
        "notes": list(notes),
    }


def _recipe(one: Average, finding: Finding, task: Task) -> dict[str, Any]:
    ours, error = gain(one.left_out, finding.single.left_out)
    weights: dict[int, float] = {}
    for cell in one.cells:
        weights[id(cell.trial)] = weights.get(id(cell.trial), 0.0) + cell.weight
    return {
        "recipe": one.family.name,
        "log_likelihood": one.log_likelihood,
        "gain": ours,
        "gain_standard_error": error if math.isfinite(error) else None,
        **_noise(one, task),
        "seconds": round(one.family.seconds, 3),
        "cut_short": one.family.cut_short,
        "failure": one.family.failure or None,
        "curve": [
            {
                "settings": _settings(trial),
                "log_likelihood": _best(trial, one, task),
                "weight": weights.get(id(trial), 0.0),
                "seconds": round(trial.seconds, 3),
            }
            for trial in _in_order([cell.trial for cell in one.cells])
        ],
    }


def _best(trial: Trial, one: Average, task: Task) -> float:
    """Of a setting with its likeliest noise variance, or with the family's temperature."""
    means = trial.likelihood.mean(1)
    if task == "classification":
        nearest = min(range(len(TEMPERATURES)), key=lambda k: abs(math.log(TEMPERATURES[k] / one.temperature)))
        return float(means[nearest])
    return float(means.max())


def _noise(one: Average, task: Task) -> dict[str, float | None]:
    if task == "classification":
        return {"temperature": one.temperature}
    return {"noise_variance" if task == "regression" else "variance_factor": noise_summary(one.cells)}


def _settings(trial: Trial) -> dict[str, Any] | None:
    """What tells a trial from its family's others; None of the net alone."""
    if trial.recipe is None:
        return None
    varied = {name for candidate in type(trial.recipe).candidates() for name in candidate}
    every = trial.recipe.settings()
    return {name: value for name, value in every.items() if not varied or name in varied}


def _in_order(trials: Sequence[Trial]) -> list[Trial]:
    """Each once, the net alone first, then by settings."""
    once = {id(trial): trial for trial in trials}.values()
    numbers = [[v for v in (_settings(t) or {}).values() if isinstance(v, int | float)] for t in once]
    return [t for _, t in sorted(zip(numbers, once, strict=True), key=lambda one: one[0])]


class FitReport:
    """Shows an ensemble's ``report``.

    Args:
        report: of :func:`ensemble.fit`.

    Raises:
        EnsembledError: the ensemble was not fitted.

    Example:
        >>> print(FitReport(ens.report).table())
        >>> FitReport(ens.report).plot("scales.png")
    """

    def __init__(self, report: Mapping[str, Any] | None) -> None:
        if not report or "kept" not in report or "recipes" not in report:
            raise EnsembledError("There is no report: the ensemble was not made by fit().")
        self.report = dict(report)

    def json(self) -> str:
        """As text."""
        return json.dumps(self.report, indent=2, ensure_ascii=False)

    def table(self) -> str:
        """What each recipe reached and what was kept, as plain text."""
        found, single, kept = self.report, self.report["single"], self.report["kept"]
        rows = [("recipe", "log-likelihood", "gain", "settings", "seconds", "likeliest")]
        rows.append(("the net alone", f"{single['log_likelihood']:.4f}", "", "", "", ""))
        for one in found["recipes"]:
            if one["log_likelihood"] is None:
                rows.append((one["recipe"], "not tried", "", "", "", one["failure"]))
                continue
            error = one["gain_standard_error"]
            rows.append(
                (
                    ("* " if one["recipe"] == kept["recipe"] else "") + one["recipe"],
                    f"{one['log_likelihood']:.4f}",
                    f"{one['gain']:+.4f}" + (f" ± {error:.4f}" if error is not None else ""),
                    str(len(one["curve"]) - 1) + (" (cut short)" if one["cut_short"] else ""),
                    f"{one['seconds']:.1f}",
                    _words(max(one["curve"], key=lambda point: point["weight"])["settings"]),
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        ]
        sizes = found["rows"]
        lines += [
            "",
            f"kept: {kept['recipe']}. {kept['why']}",
            f"{sizes['selection']} rows chose, {sizes['conformal']} vouch for intervals and sets, {sizes['learning']} "
            f"were there to learn from; {found['seconds']:.1f} s of {found['budget_seconds']:g} s.",
            *(f"note: {note}" for note in found["notes"]),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Of each recipe with a scale: (scale, log-likelihood), ascending; of several settings of a scale the best."""
        found: dict[str, list[tuple[float, float]]] = {}
        for one in self.report["recipes"]:
            best: dict[float, float] = {}
            for point in one.get("curve", []):
                settings = point["settings"]
                size = 0.0 if settings is None else _size(settings)
                if size is not None:
                    best[size] = max(best.get(size, -math.inf), point["log_likelihood"])
            if len(best) > 1:
                found[one["recipe"]] = sorted(best.items())
        return found

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw log-likelihood against scale into a file; needs matplotlib.

        Raises:
            EnsembledError: matplotlib is not installed, or the file cannot be written.
        """
        from ensemble.plotting import figure, written

        with figure() as (made, axes):
            for name, points in self.curves().items():
                axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)
            level = self.report["single"]["log_likelihood"]
            axes.axhline(level, color="black", linewidth=0.8, linestyle=":", label="the net alone")
            best = max([level, *(y for points in self.curves().values() for _, y in points)])
            # Scales that are far too large would flatten the rest.
            axes.set_ylim(level - 3 * max(best - level, 0.02), best + 0.5 * max(best - level, 0.02))
            axes.set_xscale("symlog", linthresh=0.01)
            axes.set_xlim(left=0)
            axes.set_xlabel("scale (0: the net alone)")
            axes.set_ylabel("log-likelihood of held-out rows, nats")
            axes.legend(frameon=False)
            written(made, path)


def _size(settings: Mapping[str, Any]) -> float | None:
    """The setting by which a recipe is small or large."""
    value = settings.get("scale", settings.get("p"))
    return float(value) if isinstance(value, int | float) else None


def _words(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "scale 0"
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )
